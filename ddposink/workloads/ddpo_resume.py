"""What a killed training leaves behind, so that the next attempt at its pass can go on from there.

Two things lie in the pass's scratch folder. ``step-N/`` is a training after N steps: the engine's own
checkpoint and, beside it, what the workload knows of these steps. It gets its name only once it is whole, and
only then is its predecessor removed. ``measured.json`` is what evaluations have found: the base model's
scores, which need not be drawn again, and the effects of earlier cells. Whatever is damaged or of another
training is removed with a note; it never stops a pass. Floats survive JSON exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.workload import Missing
from ddposink.ddpo import Engine, StepLog

MEASURED, PROGRESS, ENGINE, UNFINISHED = "measured.json", "progress.json", "engine", ".part"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a broken file may raise


@dataclass
class Progress:
    """A training so far. ``joules``: energy of all its steps; ``peaks``: the highest memory of any."""

    logs: list[StepLog] = field(default_factory=list)
    peaks: dict[str, int | Missing] = field(default_factory=dict)
    joules: float | Missing = 0.0


@dataclass
class Findings:
    """What evaluations have found so far; arrays are (prompts,) float64.

    ``base`` and ``spread``: scores of the base model and what the noise alone does to them, by reward;
    ``extremes``: lowest and highest score of its pictures. ``vendi``: how many different pictures it gave.
    ``shares``: part of the trained reward's variance that each part of a weighted sum makes.
    ``seen``: (step, effect on the trained reward, on the others) of every cell. ``ratio_deviation``: largest
    |ratio − 1| before any training.
    """

    base: dict[str, np.ndarray] = field(default_factory=dict)
    spread: dict[str, float | None] = field(default_factory=dict)
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    vendi: float = float("nan")
    shares: dict[str, float] = field(default_factory=dict)
    seen: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    ratio_deviation: float | None = None


class Scratch:
    """The scratch ``folder`` of one pass. ``discarded`` says what was found unusable, and why."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.discarded: list[str] = []

    def save(self, engine: Engine, progress: Progress) -> None:
        """Keep the training as it is. A disk that takes no checkpoint costs the checkpoint only."""
        whole = self.folder / f"step-{engine.step}"
        part = whole.with_name(whole.name + UNFINISHED)
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            engine.save(part / ENGINE)
            _write(part / PROGRESS, _plain(progress))
            shutil.rmtree(whole, ignore_errors=True)
            os.replace(part, whole)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            print(f"no checkpoint at step {engine.step}: {error}")
            return
        for older in self._checkpoints():
            if older != whole:
                shutil.rmtree(older, ignore_errors=True)

    def load(self, engine: Engine, at_most: int) -> Progress | None:
        """Take ``engine`` to the newest checkpoint of at most ``at_most`` steps; None if there is none."""
        for folder in self._checkpoints():
            step = int(folder.name.removeprefix("step-"))
            try:
                if step > at_most:
                    raise ValueError(f"it lies beyond step {at_most}, of which nothing is known")
                progress = _progress(_read(folder / PROGRESS))
                if [log.step for log in progress.logs] != list(range(1, step + 1)):
                    raise ValueError(f"its log is not that of {step} steps")
                engine.load(folder / ENGINE)
            except _DAMAGE as error:
                self._discard(folder, error)
                continue
            print(f"going on from the checkpoint at step {step}")
            return progress
        return None

    def remember(self, findings: Findings) -> None:
        """Keep what evaluations have found so far."""
        content = asdict(findings) | {
            "base": {name: values.tolist() for name, values in findings.base.items()},
            "seen": [(step, own.tolist(), rest.tolist()) for step, own, rest in findings.seen],
        }
        part = self.folder / (MEASURED + UNFINISHED)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(part, content)
            os.replace(part, self.folder / MEASURED)
        except OSError as error:
            print(f"{self.folder / MEASURED} was not written: {error}")

    def recall(self, rewards: Collection[str], prompts: int, unanswered: Collection[int]) -> Findings | None:
        """What earlier attempts have found on these ``rewards``, without the cells that are ``unanswered``.

        ``prompts``: how many the evaluation has. None if there is nothing, or nothing that can be used.
        """
        file = self.folder / MEASURED
        if not file.exists():
            return None
        try:
            content = _read(file)
            base = {name: np.array(values, dtype=np.float64) for name, values in content["base"].items()}
            if base.keys() != set(rewards) or any(values.shape != (prompts,) for values in base.values()):
                raise ValueError("it holds other rewards or prompts")
            seen = [
                (int(step), np.array(own), np.array(rest))
                for step, own, rest in content["seen"]
                if step not in unanswered
            ]
            return Findings(
                base,
                content["spread"],
                {name: (low, high) for name, (low, high) in content["extremes"].items()},
                content["vendi"],
                content["shares"],
                seen,
                content["ratio_deviation"],
            )
        except _DAMAGE as error:
            self._discard(file, error)
            return None

    def _checkpoints(self) -> list[Path]:
        """Whole checkpoints, newest first."""
        found = [path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def _discard(self, path: Path, error: Exception) -> None:
        note = f"{path.name} of an earlier attempt was discarded: {error}"
        print(note)
        self.discarded.append(note)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def save_points(begin: int, until: int, every: int) -> Iterator[int]:
    """Multiples of ``every`` (0: none) after ``begin``, and ``until`` last."""
    if every:
        yield from range((begin // every + 1) * every, until, every)
    yield until


def _plain(progress: Progress) -> dict[str, Any]:
    def value(known: float | Missing) -> Any:
        return {"missing": known.reason} if isinstance(known, Missing) else known

    return {
        "logs": [asdict(log) for log in progress.logs],
        "peaks": {name: value(known) for name, known in progress.peaks.items()},
        "joules": value(progress.joules),
    }


def _progress(content: dict[str, Any]) -> Progress:
    def value(known: Any) -> Any:
        return Missing(known["missing"]) if isinstance(known, dict) else known

    return Progress(
        logs=[StepLog(**log) for log in content["logs"]],
        peaks={name: value(known) for name, known in content["peaks"].items()},
        joules=value(content["joules"]),
    )


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps({"sha256": _digest(content), "content": content}), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    document = json.loads(file.read_text(encoding="utf-8"))
    content = document["content"]
    if document["sha256"] != _digest(content):
        raise ValueError(f"{file.name} is not what was written")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
