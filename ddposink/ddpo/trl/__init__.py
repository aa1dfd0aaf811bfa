"""TRL's own DDPO as the reference engine, and its names and behaviour as a drop-in for what it dropped."""
