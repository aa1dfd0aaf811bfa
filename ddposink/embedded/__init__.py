"""How the models that are shipped were made: run again, they are made again."""
