"""The fault campaign: a place to run in, the faults, and what must hold after each."""
