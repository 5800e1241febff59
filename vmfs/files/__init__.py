"""Files, directories and names."""
