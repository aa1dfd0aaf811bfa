"""The single questions of the preflight, each put to fresh engines of either kind.

A question returns what it found: whether it is well (None: nothing is broken, but read the note), the
measured value, its limit, and a note.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from ddposink.ddpo import lora
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.loss import ratio_limit
from ddposink.ddpo.preflight.subject import PROMPTS, Finding, Subject, trained_weights
from ddposink.ddpo.protocol import Pipeline
from ddposink.ddpo.rules import DDPO
from ddposink.models.denoiser import denoiser, denoiser_name, networks

PIXEL_LIMIT = 1e-5  # of a pixel in [0, 1]


def batch_arithmetic(config: DDPOConfig | Mapping[str, Any]) -> Finding:
    """Whether the batch sizes of the *full* configuration go into each other."""
    try:
        full = config if isinstance(config, DDPOConfig) else DDPOConfig.from_dict(dict(config))
    except ValueError as error:
        return Finding(False, "invalid", "", str(error))
    value = f"{full.samples_per_epoch} samples, {full.updates_per_epoch} updates a step"
    return Finding(
        True, value, "divisible", f"per process; {full.num_train_timesteps} denoising steps learnt from"
    )


def ratio_before_update(subject: Subject) -> Finding:
    """Before the first update, learning must see the policy that sampled: every ratio is 1."""
    engine = subject.engine()
    probe = getattr(engine, "ratio_deviation", None)  # per denoising step; not every engine has it
    per_step = probe().tolist() if probe else []
    squares = next(iter(engine.run(1))).approx_kl or 0.0
    average = math.sqrt(2 * squares)  # as learning itself goes, root mean square
    worst = max([average, *per_step])
    at = (
        f"denoising step {per_step.index(worst) + 1} of {len(per_step)}"
        if worst in per_step
        else "the update itself"
    )
    clip, most = subject.config.train_clip_range, ratio_limit(subject.config, subject.pipeline)
    note = f"worst at {at}" if worst else "exactly 1"
    if not all(map(math.isfinite, [average, *per_step])):
        return Finding(False, "nan", f"{most:.0e}", "the ratio is not finite")
    if subject.precision == "no":
        return Finding(worst <= most, f"{worst:.1e}", f"{most:.0e}", note)
    times = f"{worst / clip:.2g}× the clip range {clip:g}"
    if worst <= clip:
        return Finding(True, f"{worst:.1e}", f"{clip:g}", f"{subject.precision}: {times}; {note}")
    return Finding(
        None,
        f"{worst:.1e}",
        f"{clip:g}",
        f"{subject.precision} clips where nothing was learnt: {times}; {note}; prefer fp32",
    )


def invariant_before_update(subject: Subject) -> Finding:
    """What must hold before an algorithm without likelihoods learns: see `algorithms`."""
    found = subject.engine().invariant()  # type: ignore[attr-defined]
    return Finding(found.holds, f"{found.off:.1e}", f"{found.limit:g}", found.name)


def same_weights_across_processes(subject: Subject) -> Finding:
    """After one update, two processes must hold the same weights: gradients were shared."""
    from ddposink.ddpo.preflight.ranks import weights_of_processes

    ((first, second),) = weights_of_processes([subject.shortened()])
    return _compare(first, second, "2 processes, one update")


def resumed_equals_uninterrupted(subject: Subject) -> Finding:
    """Training to 3 steps, and to 1, saved, loaded and on to 3, must be the same training."""
    short = subject.shortened()
    with tempfile.TemporaryDirectory() as folder:
        engine = short.engine()
        list(engine.run(1))
        engine.save(Path(folder) / "checkpoint")
        rewards = [log.reward_mean or 0.0 for log in engine.run(3)]
        trained = trained_weights(denoiser(engine.pipeline))
        engine = short.engine()
        engine.load(Path(folder) / "checkpoint")
        resumed = [log.reward_mean or 0.0 for log in engine.run(3)]
    compared = _compare(trained, trained_weights(denoiser(engine.pipeline)), "weights after 3 steps")
    if compared[0] and rewards != resumed:
        return Finding(False, f"{abs(rewards[-1] - resumed[-1]):.1e}", "0", "the rewards of step 3 differ")
    return compared


def reload_gives_same_pictures(subject: Subject) -> Finding:
    """What is exported must, loaded into the stock pipeline, draw what the trained one draws."""
    engine = subject.shortened().engine()
    list(engine.run(2))
    with tempfile.TemporaryDirectory() as folder:
        engine.export(Path(folder))
        reloaded = _stock(subject, Path(folder), like=engine.pipeline)
    _to_float32(engine.pipeline)
    with engine.evaluated():
        drawn = pictures(engine.pipeline)
    with engine.base():
        change = (pictures(engine.pipeline) - drawn).abs().max().item()
    if change == 0:
        return Finding(False, "0", "> 0", "two updates changed no picture: nothing is learnt")
    off = (pictures(reloaded) - drawn).abs().max().item()
    limit = min(PIXEL_LIMIT, change / 2)
    note = f"largest difference of a pixel; training changed {change:.1e}"
    return Finding(off <= limit, f"{off:.1e}", f"{limit:.0e}", note)


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "ratio before update": ratio_before_update,
    "invariant before update": invariant_before_update,
    "processes agree": same_weights_across_processes,
    "resume": resumed_equals_uninterrupted,
    "save and reload": reload_gives_same_pictures,
}


def applies(name: str, config: DDPOConfig) -> bool:
    """Whether a check of `CHECKS` is about the configuration's algorithm: only `ddpo` has a ratio."""
    return name != ("invariant before update" if config.algorithm == DDPO else "ratio before update")


@torch.no_grad()
def pictures(pipeline: Pipeline) -> Tensor:
    """Pictures (B, H, W, 3) of fixed prompts and seed."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        list(PROMPTS), num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np"
    )
    return torch.from_numpy(drawn.images)


def _stock(subject: Subject, folder: Path, like: Pipeline) -> Pipeline:
    """The pipeline as a user would load it from what `Engine.export` wrote, rounded as ``like`` was."""
    pipeline = subject.pipeline_copy()
    if (folder / "model_index.json").is_file():
        pipeline = type(pipeline).from_pretrained(folder)
    for name in networks(pipeline):
        getattr(pipeline, name).to(getattr(like, name).dtype)
    _to_float32(pipeline)
    if subject.config.use_lora:
        pipeline.load_lora_weights(folder, weight_name=lora.WEIGHTS)
    else:
        name = denoiser_name(pipeline)
        setattr(pipeline, name, type(denoiser(pipeline)).from_pretrained(folder / name))
    if lacking := [name for name, value in denoiser(pipeline).named_parameters() if value.is_meta]:
        raise ValueError(f"the exported network lacks {len(lacking)} of its weights, e.g. {lacking[0]}")
    return pipeline.to(subject.pipeline.device)


def _to_float32(pipeline: Pipeline) -> None:
    """Halves would hide a difference of weights behind one of rounding; so would accelerate's autocast."""
    extract_model_from_parallel(denoiser(pipeline), keep_fp32_wrapper=False)
    for name in networks(pipeline):
        getattr(pipeline, name).to(torch.float32)


def _compare(first: Mapping[str, Tensor], second: Mapping[str, Tensor], what: str) -> Finding:
    if strange := set(first) ^ set(second):
        return Finding(
            False, f"{len(strange)} weights", "0", f"{what}: one side only has e.g. {min(strange)}"
        )
    worst = max((first[name] - second[name]).abs().max().item() for name in first)
    return Finding(worst == 0, f"{worst:.1e}", "0", f"{what}, {len(first)} tensors")
