"""Base and head measured side by side: A B, B A, A B … in one session, every time in fresh processes.

A machine drifts: it warms up, gets neighbours, changes its clock. Numbers taken minutes apart carry that
drift, numbers taken one after the other share it. So every pass is measured by both sides in immediate
succession, the order turns with every repetition, and only the two numbers of a repetition are compared.
Both sides are driven by the same script, each with the code of its own tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from bench.errors import UserError
from bench.gate.match import Block, Question, blocks, keys
from bench.gate.scope import Asked
from bench.results.record import SCHEMA_VERSION, Record
from bench.text import clean

DRIVER = Path(__file__).with_name("side.py")
LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Tree:
    """Code to measure: a source tree (or none: what is installed) and the interpreter to run it with."""

    name: str
    path: Path | None = None
    python: Path = Path(sys.executable)
    prepared: str = "the packages installed here"
    env: Mapping[str, str] = field(default_factory=dict)  # added to the environment


class SideProcess:
    """A driver process of one tree. ``records`` are all it has measured, in order.

    ``lenient``: cells that this tree refuses are left out instead of ending it all.
    """

    def __init__(self, tree: Tree, asked: Asked, folder: Path, *, lenient: bool = False) -> None:
        self.tree, self.folder = tree, folder
        self.records: list[Record] = []
        self.ready: dict[str, Any] = {}
        folder.mkdir(parents=True)
        self.log = folder / "driver.log"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [str(tree.python), "-P", str(DRIVER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(tree),
            )
        self._send(
            tree=str(tree.path.resolve()) if tree.path else None,
            folder=str(folder.resolve()),
            lenient=lenient,
            **asked.message(),
        )

    def await_ready(self) -> None:
        """Wait until the tree is imported and the suite is planned. Raises UserError if it cannot be."""
        self.ready = self._answer("ready")

    @property
    def passes(self) -> list[list[str]]:
        """Labels of the cells of every pass."""
        return self.ready["passes"]

    @property
    def cells(self) -> list[list[Question]]:
        """Parameters and seed of the cells of every pass."""
        return [[(params, seed) for params, seed in work] for work in self.ready["cells"]]

    def measure(self, number: int, repeat: int) -> list[Record]:
        """Measure a pass once, in a fresh process."""
        self._send(number=number, repeat=repeat)
        lines = self._answer("measured")["records"]
        try:
            records = [Record.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise self._newer() from error
        if any(record.schema_version > SCHEMA_VERSION for record in records):
            raise self._newer()  # they may read alike and mean something else
        self.records += records
        return records

    def close(self) -> None:
        """End the driver and whatever it is measuring."""
        process = self._process
        with suppress(OSError):
            _pipe(process.stdin).close()
        try:
            process.wait(0.2 if sys.exc_info()[0] else LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_SECONDS)
            process.kill()
        process.wait()
        _pipe(process.stdout).close()

    def _send(self, **command: Any) -> None:
        with suppress(BrokenPipeError):  # its last words come with the next answer
            stdin = _pipe(self._process.stdin)
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()

    def _newer(self) -> UserError:
        return UserError(
            f"{self.tree.name} writes records that this version of bench cannot read",
            hint="gate the older code with the newer: check out the newer one, and name the older as REF",
        )

    def _answer(self, wanted: str) -> dict[str, Any]:
        for line in _pipe(self._process.stdout):
            event: dict[str, Any] = json.loads(line)
            if event["event"] == wanted:
                return event
            if event["event"] == "failed":
                raise UserError(
                    f"{self.tree.name} cannot be measured: {clean(event['reason'], 500)}",
                    hint=event.get("hint") or f"see {self.log}",
                )
        code = self._process.wait()
        raise UserError(
            f"{self.tree.name} cannot be measured: its process ended with code {code}{_last_line(self.log)}",
            hint=f"see {self.log}",
        )


@dataclass
class PairSession:
    """Two sides ready to be measured in turn. Use as a context manager."""

    base: SideProcess
    head: SideProcess
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of parameters that a side may not know
    pairs: int = 0  # repetitions measured so far

    @classmethod
    def start(cls, base: Tree, head: Tree, asked: Asked, folder: Path) -> PairSession:
        """Start both drivers at once and wait for both."""
        sides: list[SideProcess] = []
        try:
            for name, tree in (("base", base), ("head", head)):
                sides.append(SideProcess(tree, asked, folder / name, lenient=name == "base"))
            for side in sides:
                side.await_ready()
        except BaseException:
            for side in sides:
                side.close()
            raise
        return cls(sides[0], sides[1], asked.defaults)

    def __enter__(self) -> PairSession:
        return self

    def __exit__(self, *error: object) -> None:
        for side in (self.base, self.head):
            side.close()

    @property
    def new(self) -> int:
        """Cells of head that the base has not got."""
        base, head = self._keys()
        return len({key for work in head for key in work} - {key for work in base for key in work})

    @property
    def aligned(self) -> bool:
        """Whether every pass can be measured by both sides in immediate succession."""
        return blocks(*self._keys()) is not None

    def _keys(self) -> tuple[list[list[str]], list[list[str]]]:
        """What the cells of every pass are matched by, of base and head."""
        sides = self.base.cells, self.head.cells
        base, head = ([cell for work in side for cell in work] for side in sides)
        names = [iter(side) for side in keys(base, head, self.defaults)]
        found = ([[next(own) for _ in work] for work in side] for side, own in zip(sides, names, strict=True))
        return next(found), next(found)

    def measure(
        self, pairs: int, wanted: Callable[[str], bool] = lambda label: True, tell: Tell | None = None
    ) -> None:
        """Add ``pairs`` repetitions of the passes that have a cell whose label is ``wanted``."""
        for repeat in range(self.pairs, self.pairs + pairs):
            order = (self.base, self.head) if repeat % 2 == 0 else (self.head, self.base)
            for numbers in self._blocks(wanted):
                for side in order:
                    for number in numbers[side is self.head]:
                        found = side.measure(number, repeat)
                        if tell:
                            tell("head" if side is self.head else "base", repeat, found)
            self.pairs = repeat + 1

    def _blocks(self, wanted: Callable[[str], bool]) -> Iterable[Block]:
        """What is measured by both sides in immediate succession: a pass, or everything if they differ."""
        found = blocks(*self._keys())
        if found is None:
            return [(range(len(self.base.passes)), range(len(self.head.passes)))]
        return [(base, head) for base, head in found if any(map(wanted, self._labels(base, head)))]

    def _labels(self, base: Sequence[int], head: Sequence[int]) -> list[str]:
        """Labels of a block: head's, which are those that are judged, or base's where head has none."""
        side, numbers = (self.head, head) if head else (self.base, base)
        return [label for number in numbers for label in side.passes[number]]


Tell = Callable[[str, int, Sequence[Record]], None]


def _environment(tree: Tree) -> dict[str, str]:
    """This environment, the tree first on the import path."""
    env = {**os.environ, **tree.env}
    paths = [str(tree.path.resolve()) if tree.path else "", tree.env.get("PYTHONPATH", "")]
    if "PYTHONPATH" not in tree.env:
        paths.append(os.environ.get("PYTHONPATH", ""))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return env


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""
