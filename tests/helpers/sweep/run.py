"""The sweep itself: every architecture in a process of its own, a line each, and the table at the end."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

import torch

from helpers.sweep import table
from helpers.sweep.cells import BAD, CRASHED, Row, measure
from helpers.sweep.tiny_configs import architectures, has_own_windows

LIMIT_S = 180  # for one architecture


def cases(kinds: Sequence[str] = ()) -> list[tuple[str, bool]]:
    """Which models to try: every architecture, and once more where it can have windows of its own."""
    return [
        (kind, own)
        for kind in kinds or architectures()
        for own in ((False, True) if has_own_windows(kind) else (False,))
    ]


def sweep(kinds: Sequence[str] = ()) -> Iterator[Row]:
    """A row for every case; a process that dies or hangs is a row too."""
    for kind, own in cases(kinds):
        yield _apart(kind, own)


def _apart(kind: str, own: bool) -> Row:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_measure, args=(sender, kind, own), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(LIMIT_S):
            return receiver.recv()
        return Row.uniform(kind, own, CRASHED, f"no answer within {LIMIT_S} seconds")
    except EOFError:
        process.join()
        return Row.uniform(kind, own, CRASHED, f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _measure(sender: Connection, kind: str, own: bool) -> None:
    torch.set_num_threads(1)
    sender.send(measure(kind, own))


def main() -> int:
    """Exit code 1 if any number is wrong, cannot be checked, or a run crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="ARCHITECTURE", help="default: all that are registered")
    parser.add_argument("--write", action="store_true", help=f"write the table into {table.PAGE.name}")
    args = parser.parse_args()
    unknown = set(args.kinds) - set(architectures())
    if unknown or (args.write and args.kinds):
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "--write needs all architectures")
    torch.set_num_threads(1)
    rows, start = [], time.monotonic()
    for row in sweep(args.kinds):
        rows.append(row)
        cells = " · ".join(f"{policy} {cell}" for policy, cell in row.cells.items())
        print(f"{row.name:36} {cells}  {row.reason[:140]}".rstrip(), flush=True)
    print(f"{len(rows)} models in {time.monotonic() - start:.0f} s: {table.said(rows)}")
    if args.write:
        table.write(rows)
    return int(any(outcome in BAD for row in rows for outcome in row.outcomes))
