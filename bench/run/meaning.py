"""Whether a cell's names mean where it is measured what they meant where and when the run was planned.

A cell's id holds what its names refer to (the hash of a text, of a model's folder), found where the run was
started. A node may have another file of that name, and a file may change while a run goes on: numbers would
be of something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from bench.errors import UserError
from bench.workload import Cell, Pass, Skip, Workload

Meaning = Mapping[str, str] | None  # as `Workload.identity` tells; None: something is missing
_CHANGED = "the data has changed since the run was planned"


class OtherDataError(Exception):
    """There is other data than the cell is of."""


def meaning(workload: Workload, cell: Cell) -> Meaning:
    """What the names of ``cell`` refer to on this machine; of all cells of its pass the same.

    Raises OtherDataError if that cannot be told: a file has gone.
    """
    try:
        return dict(workload.identity(workload.Params.model_validate(dict(cell.params))))
    except Skip:
        return None
    except ValidationError as error:
        raise OtherDataError(f"{error.errors()[0]['msg']}; looked for below {Path.cwd()}") from None
    except (UserError, ValueError, OSError) as error:
        raise OtherDataError(str(error).splitlines()[0]) from None


def check_meaning(workload: Workload, cell: Cell, there: Meaning) -> None:
    """Raises OtherDataError if names mean something else here than ``there``, where the run was started.

    What is missing here too, or only here, is left to the pass, which skips its cells with the reason.
    """
    here = meaning(workload, cell)
    if here is None or here == there:
        return
    if there is None:
        raise OtherDataError("it has what is missing where the run was started: nobody knows what it is of")
    first = _first_difference(here, there)
    raise OtherDataError(
        f"{first} is {here.get(first)}, where the run was started it is {there.get(first)}; "
        "bring the same files to every node"
    )


def check_planned(workload: Workload, work: Pass) -> None:
    """Raises OtherDataError if names of ``work`` mean something else than when it was planned.

    What is missing by now is left to the pass; a pass whose identity is not known is not looked at.
    """
    if work.identity is None:
        return
    again = "run the same command again: it is planned anew"
    try:
        here = meaning(workload, work.cells[0])
    except OtherDataError as error:
        raise OtherDataError(f"{_CHANGED}: {error}; {again}") from None
    if here is None or here == work.identity:
        return
    first = _first_difference(here, work.identity)
    raise OtherDataError(
        f"{_CHANGED}: {first} was {work.identity.get(first)} and is {here.get(first)}; {again}"
    )


def _first_difference(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return min(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
