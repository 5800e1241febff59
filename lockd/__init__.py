"""The array's lock logic: whole-LUN reservations, compare-and-write, fencing. Needs no vmfs."""
