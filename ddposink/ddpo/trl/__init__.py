"""TRL's own DDPO as the reference engine, repaired where it is broken."""
