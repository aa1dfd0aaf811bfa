"""``python -m ddposink.train_encoder``: see `ddposink.embedded.train_encoder`."""

import typer

from ddposink.embedded.train_encoder import main

__all__ = ["main"]

if __name__ == "__main__":
    typer.run(main)
