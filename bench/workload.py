"""What the harness must know of a workload: the only vocabulary that `bench` and `ddposink` share.

A workload declares its parameters, its metrics and its views as data, so that the parent can
validate a suite, plan it, draw tables and gate it without importing torch or knowing what a cache
or a reward is. Only `run` is executed in a child process, where torch may be imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from bench.declarations import Control, Metric, Scalar, View

ALLOW_CODE = "BENCH_ALLOW_CODE"  # environment: "1" if the command line lets parameters name code


@dataclass(frozen=True)
class Cost:
    """Estimated work of a cell or pass, e.g. ``Cost(16384, "tokens")``."""

    amount: int
    unit: str


@dataclass(frozen=True)
class Cell:
    """One point of the grid: one row of the final table.

    ``id`` is a content hash over workload, code version, parameters, identity of model and data,
    seed and repeat; ``params`` is canonical JSON data (defaults filled in).
    """

    id: str
    params: Mapping[str, Any]
    label: str
    seed: int = 0
    repeat: int = 0


@dataclass(frozen=True)
class Pass:
    """Cells answered by one piece of work; sorted along the workload's prefix axis.

    ``stops`` are the values of that axis at all cells of the pass, those answered earlier too: work that is
    cut there whoever asks adds up in the same order, so that a pass that goes on gives the same bits.
    ``identity``: what the names in its parameters referred to when it was planned (`Workload.identity`); a
    child measures nothing else. None: not known, or something was missing.
    """

    id: str
    workload: str
    cells: tuple[Cell, ...]
    cost: Cost
    stops: tuple[Any, ...] = ()
    identity: Mapping[str, str] | None = None


class Context(Protocol):
    """What a running workload may tell the harness. Implemented by the worker."""

    out: Path  # folder for this pass's artifacts; exists
    # A folder that the next attempt at this pass finds again if this one dies; may not exist. What lies in it
    # may be of a moment after an answer that was lost. Replace its files, do not append to them: on a cluster
    # an answer waits until they are at rest for a moment, and a pass whose answers wait too long is ended.
    scratch: Path

    def progress(self, done: int, total: int, **values: float) -> None:
        """Report progress (cheap, rate limited), e.g. ``progress(512, 4096, perplexity=17.2)``.

        Values whose name begins with a slash are not shown, only written for trackers (``--log-with``).
        """

    def emit(
        self,
        cell: Cell,
        metrics: Mapping[str, float | int | Missing | Samples | None],
        *,
        status: str = "ok",
        reason: str | None = None,
        facts: Mapping[str, Scalar] | None = None,
        conformance: Mapping[str, Scalar] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """A cell has been answered. Written at once; a later crash cannot take it back."""


@dataclass(frozen=True)
class Missing:
    """A metric that could not be measured, and why. Becomes null with the reason."""

    reason: str


@dataclass(frozen=True)
class Samples:
    """A metric with its raw values; ``value`` is the summary shown in tables (e.g. the median)."""

    value: float
    values: tuple[float, ...]


class Skip(Exception):  # noqa: N818 - an outcome, not a mistake
    """Raised by ``run`` (or ``identity``) when a need is missing; cells become ``skipped``."""


class Workload(Protocol):
    """Torch-free declaration of something that can be measured; see the module docstring."""

    name: str
    Params: type[BaseModel]  # one cell's parameters, extra="forbid"
    metrics: tuple[Metric, ...]
    views: tuple[View, ...]
    prefix_axis: str | None  # cells differing only here share a pass ("length", "steps")
    preload: tuple[str, ...]  # modules the fork server imports before any child starts

    def version(self) -> str:
        """Hash of the code that produces the numbers; part of every cell id. See `bench.version`."""

    def label(self, params: BaseModel) -> str:
        """Short name of a cell for tables and the live view."""

    def columns(self, params: BaseModel) -> dict[str, Scalar]:
        """Flat, displayable columns of a cell (model, policy, sinks, window, length, …)."""

    def identity(self, params: BaseModel) -> dict[str, str]:
        """What the names in ``params`` refer to (revision, sha256). Cheap; no torch, no network."""

    def cost(self, params: BaseModel) -> Cost:
        """Estimated work of this cell alone."""

    def published(self) -> list[dict[str, Scalar]]:
        """Published reference values: rows with column filters, ``metric``, ``value``, ``source``."""

    def run(self, work: Pass, ctx: Context) -> None:
        """Measure every cell of ``work``; child process only."""


@runtime_checkable
class Seeded(Protocol):
    """A workload that knows when a seed changes a number; of others every seed is measured."""

    def seeded(self, params: BaseModel) -> bool:
        """Whether cells of these parameters differ by their seed. Cheap, without torch."""


@runtime_checkable
class Replicated(Protocol):
    """A workload whose sentences are about what a seed repeats, with samples nested in each repetition."""

    replicate: str  # what one seed is: "training"
    sample: str  # what the samples of a metric are, the same ones in every repetition: "prompt"


@runtime_checkable
class Controlled(Protocol):
    """A workload that has a control: a cell that does the same, knows nothing, and is to be beaten."""

    control: Control


@runtime_checkable
class Advising(Protocol):
    """A workload that has something to say about cells that are legal but probably not meant."""

    def notes(self, params: BaseModel) -> Sequence[str]:
        """Sentences for the plan and the report; cheap, without torch."""
