"""``python -m ddposink.train_tiny``: see `ddposink.embedded.train_tiny`."""

import typer

from ddposink.embedded.train_tiny import main

__all__ = ["main"]

if __name__ == "__main__":
    typer.run(main)
