"""``python -m ddposink.train_sinks``: see `ddposink.embedded.train_sinks`."""

import typer

from ddposink.embedded.train_sinks import main

__all__ = ["main"]

if __name__ == "__main__":
    typer.run(main)
