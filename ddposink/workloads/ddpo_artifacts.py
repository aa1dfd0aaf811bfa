"""What a `ddpo` cell leaves behind beside its numbers: scores, pictures, curves and weights, as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.workload import Missing
from ddposink.ddpo import Engine, StepLog
from ddposink.evaluation.scores import Evaluator, Pictures, Scorer, prompt_spread, score
from ddposink.evaluation.sheet import save_sheet
from ddposink.workloads.ddpo_scores import effect

SHEET_PROMPTS, SHEET_SEEDS = 8, 2
DENOISING_PICTURES = 64  # of all evaluation pictures, for each other number of denoising steps


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Named arrays as ``.npz``, numbers in single precision: pictures are drawn of them, not verdicts."""
    small = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
    np.savez_compressed(path, **small)  # type: ignore[arg-type]
    return path


def save_pictures(path: Path, pictures: Pictures) -> Path:
    """The first pictures as one sheet, a column per prompt."""
    shown = list(pictures.groups.items())[:SHEET_PROMPTS]
    columns = [[pictures.images[i] for i in index[:SHEET_SEEDS]] for _, index in shown]
    return save_sheet(columns, [prompt for prompt, _ in shown], path)


def save_logs(path: Path, logs: Sequence[StepLog]) -> Path:
    """The curves of the training so far, one value per training step.

    What is told of every denoising step is kept as rows and columns of a map.
    """
    rows = [{n: v for n, v in asdict(log).items() if not isinstance(v, dict)} for log in logs]
    arrays = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows])
        for name in rows[0]
        if any(row[name] is not None for row in rows)
    }
    arrays |= {
        **({"reward": arrays.pop("reward_mean")} if "reward_mean" in arrays else {}),
        "queries": arrays.pop("samples"),
        "forwards": arrays.pop("unet_forwards"),
        "seconds": np.cumsum(arrays["sampling_s"] + arrays["training_s"]),
    }
    arrays |= times(logs)
    arrays |= _of_parts("part", [log.parts for log in logs])
    arrays |= _of_parts("share", [log.shares for log in logs])  # none where all rewards are equal
    return save_arrays(path, arrays | maps(logs))


def _of_parts(what: str, steps: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """A curve for each part of a weighted reward; NaN where a step says nothing of it."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {f"{what} {name}": np.array([step.get(name, np.nan) for step in steps]) for name in names}


def times(logs: Sequence[StepLog]) -> dict[str, np.ndarray]:
    """Seconds of every training step that add up to it; ``time reward`` only where the engine times it.

    Elsewhere it is in that of sampling, and of learning where a reward is learnt from as it judges.
    """
    reward = np.array([np.nan if log.reward_s is None else log.reward_s for log in logs])
    sampling = np.array([log.sampling_s for log in logs]) - np.nan_to_num(reward)
    known = {"time reward": reward} if np.isfinite(reward).any() else {}
    return {"time sampling": sampling} | known | {"time learning": np.array([log.training_s for log in logs])}


def maps(logs: Sequence[StepLog]) -> dict[str, np.ndarray]:
    """What is told of every denoising step: flat arrays of training step, denoising step and values.

    Denoising steps count from 1; a value is NaN where nothing was learnt from the step.
    """
    told = [log for log in logs if log.by_step]
    if not told:
        return {}
    names = list(told[0].by_step)
    count = len(told[0].by_step[names[0]])
    found = {
        "training step": np.repeat([log.step for log in told], count),
        "denoising step": np.tile(np.arange(1, count + 1), len(told)),
    }
    for name in names:
        values = [np.nan if v is None else v for log in told for v in log.by_step[name]]
        found[f"{name}_by_step"] = np.array(values)
    found["ratio_off_by_step"] = abs(
        found["ratio_mean_by_step"] - 1
    )  # before it is rounded to single precision
    return found


def save_weights(folder: Path, engine: Engine) -> list[Path]:
    """What a stock pipeline loads."""
    engine.export(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def save_denoising(
    path: Path, counts: Iterable[int], engine: Engine, evaluator: Evaluator, trained: Scorer
) -> Path:
    """Effect on the trained reward when evaluated with ``counts`` denoising steps, ascending."""
    values = []
    for count in counts:
        tuned = score(evaluator.draw(count, DENOISING_PICTURES), {"": trained})[""]
        with engine.base():
            pictures = evaluator.draw(count, DENOISING_PICTURES)
        base = score(pictures, {"": trained})[""]
        found = effect(tuned - base, prompt_spread(base, pictures))
        values.append(
            (count, np.nan if isinstance(found, Missing) else found.value, tuned.mean(), base.mean())
        )
    columns = np.array(values, dtype=np.float64).T
    names = ("denoising_steps", "effect", "reward", "base_reward")
    return save_arrays(path, dict(zip(names, columns, strict=True)))
