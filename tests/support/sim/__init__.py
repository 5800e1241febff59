"""A cluster of hosts in one process, on virtual time, under faults that a seed decides.

    plan.py     what a seed asks for: hosts, workload, faults, as data
    lun.py      the LUN: what has landed, what is durable, what a power cut leaves
    host.py     one start of one host: its device, its process, and how it freezes and dies
    wire.py     the connection between a host and lockd
    daemon.py   lockd: the real engine and machine; processes are made up
    watch.py    checkers that stand outside: they see each write that lands and each step of lockd
    story.py    what the contents of the LUN may be, given what was written and acknowledged
    world.py    all of it together; `run_seed`
    mutants.py  faults of the protocol, seeded to see whether the checkers notice

`docs/simulation.md` has the fault model, zone by zone.
"""
