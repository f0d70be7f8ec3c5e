"""Loops over memory, one folder per device; they neither validate nor allocate."""
