"""The `ddpo` workload at work, in the child: one training, evaluated at every step count of the pass.

The base model is evaluated first, and every step count is compared with it picture by picture. A cell
is emitted as soon as its step count is reached: what happens further on cannot take it back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bench.track.power import EnergyMeter
from bench.workload import Cell, Context, Missing, Samples, Scalar, Skip
from ddposink.ddpo import DivergedError, StepLog, rules
from ddposink.ddpo.loss import ratio_limit
from ddposink.errors import Unavailable
from ddposink.evaluation.diversity import pairwise_distance, vendi_score
from ddposink.evaluation.drift import kl_per_step, weight_change
from ddposink.evaluation.scores import Pictures, prompt_means, prompt_spread, score
from ddposink.models.denoiser import denoiser
from ddposink.rewards import RewardError
from ddposink.rewards.weighted import HARDLY, in_words, shares
from ddposink.workloads.ddpo_artifacts import (
    save_arrays,
    save_denoising,
    save_logs,
    save_pictures,
    save_weights,
)
from ddposink.workloads.ddpo_memory import state_bytes, state_bytes_analytic
from ddposink.workloads.ddpo_params import reward_ref
from ddposink.workloads.ddpo_prepare import TrainingRun, prepare
from ddposink.workloads.ddpo_resume import Findings, save_points
from ddposink.workloads.ddpo_scores import (
    Measured,
    collapse,
    cost_per_effect,
    evaluate_step,
    kinds,
    over_optimised,
    parts_in_words,
    training,
)

DRIFT_PICTURES = 32  # of all evaluation pictures; the divergence varies little between them


def run(
    cells: Sequence[tuple[Cell, Any]], ctx: Context, pairs: str | None = None, stops: Sequence[int] = ()
) -> None:
    """Measure ``cells``, which differ in their step count only and come in ascending order.

    ``pairs``: sha256 of the pairs that were planned to be learnt from, if it is known. ``stops``: step counts
    of the whole pass, those answered earlier too.
    """
    longest = cells[-1][1]
    if longest.threads:
        torch.set_num_threads(longest.threads)
    try:
        state = prepare(longest, cells[-1][0].seed, ctx, pairs)
    except Unavailable as error:
        raise Skip(str(error)) from error
    left = list(cells)
    try:
        steps = [params.steps for _, params in cells]
        base, known = _begin(state, steps)
        for cell, params in cells:
            if params.steps and not state.taken_up:  # an untrained cell is told of an untrained engine
                _take_up(state, steps if known else {*steps, *stops})
            for stop in _unseen(state, {*stops} - {*steps}, params.steps):
                _look_again(state, stop, longest.steps, ctx)
            _train(state, params.steps, longest.steps, ctx)
            with state.engine.evaluated():
                pictures = base if base and not params.steps else _draw(state)
                _emit(cell, params, state, pictures, ctx, last=params.steps == longest.steps)
            left.pop(0)
    except (DivergedError, RewardError) as error:
        _give_up(left, error, ctx)


def _begin(state: TrainingRun, steps: Sequence[int]) -> tuple[Pictures | None, bool]:
    """Measure the base model, and what must hold before training. ``steps``: of the open cells.

    The base model's pictures, or None where its scores are known and no open cell needs them; and whether
    what earlier attempts have found is known.
    """
    prompts = len(dict.fromkeys(state.evaluator.prompts))
    known = state.scratch.recall(state.scorers, prompts, steps)
    state.found = known or Findings()
    base = None
    if known is None or 0 in steps:
        base = _draw(state)
        _remember_base(state, base)
    if steps[-1]:
        if state.config.algorithm != rules.DDPO:
            _check_invariant(state)
        elif state.found.ratio_deviation is None:
            _check_ratio(state)
        if state.params.save_freq:
            state.scratch.remember(state.found)
    return base, known is not None


def _take_up(state: TrainingRun, missing: Collection[int]) -> None:
    """Go on from a training that was cut off, if there is one.

    ``missing``: step counts of which nothing is known; a training beyond one of them is no use.
    """
    state.taken_up = True
    if progress := state.scratch.load(state.engine, min(n for n in missing if n)):
        state.progress, state.resumed_at = progress, state.engine.step


def _unseen(state: TrainingRun, answered: set[int], until: int) -> list[int]:
    """Of the step counts ``answered`` earlier those below ``until`` whose effects are not remembered."""
    seen = {step for step, *_ in state.found.seen}
    return sorted(n for n in answered - seen if n < until and (not n or n >= state.engine.step))


def _look_again(state: TrainingRun, steps: int, total: int, ctx: Context) -> None:
    """Remember the effects at a step count that is answered: over-optimisation is looked for among all.

    Without, a suite that gets a longer training would say of it that there is none.
    """
    scores = state.found.base
    if steps:
        _train(state, steps, total, ctx)
        with state.engine.evaluated():
            pictures = _draw(state)
        scores = _by_prompt(score(pictures, state.scorers), pictures)
    _see(state, steps, _effects(state, scores))


def _by_prompt(scores: Mapping[str, np.ndarray], pictures: Pictures) -> dict[str, np.ndarray]:
    return {name: prompt_means(values, pictures) for name, values in scores.items()}


def _effects(state: TrainingRun, scores: Mapping[str, np.ndarray]) -> Measured:
    """What ``scores``, means of every prompt by reward, are beside those of the base model."""
    parts = kinds(reward_ref(state.params.reward))
    return evaluate_step(scores, state.found.base, state.found.spread, state.trained, parts)


def _see(state: TrainingRun, steps: int, metrics: Measured) -> None:
    own, rest = metrics["effect"], metrics["others_effect"]
    if isinstance(own, Samples) and isinstance(rest, Samples):
        state.found.seen.append((steps, np.array(own.values), np.array(rest.values)))
        if state.params.save_freq:
            state.scratch.remember(state.found)  # before the answer: an answered cell is not measured again


def _draw(state: TrainingRun) -> Pictures:
    """The pictures of an evaluation. Raises DivergedError where training has ruined them."""
    pictures = state.evaluator.draw(state.config.sample_num_steps)
    odd = int((~pictures.images.isfinite().flatten(1).all(dim=1)).sum())
    if odd:
        what = f"{odd} of {len(pictures.prompts)} pictures drawn are not finite"
        if not state.engine.step:
            raise RuntimeError(f"{what} before any training; another precision may help")
        raise DivergedError(what, state.engine.step)
    return pictures


def _remember_base(state: TrainingRun, pictures: Pictures) -> None:
    scores = score(pictures, state.scorers)
    state.found.base = _by_prompt(scores, pictures)
    state.found.spread = {name: prompt_spread(values, pictures) for name, values in scores.items()}
    state.found.extremes = {name: (float(v.min()), float(v.max())) for name, v in scores.items()}
    state.found.vendi = vendi_score(state.features(pictures.images))
    if state.weighted is not None:
        parts = score(pictures, {part.name: part for _, part in state.weighted.parts})
        spreads = {name: prompt_spread(values, pictures) or 0.0 for name, values in parts.items()}
        factors = {part.name: factor for factor, part in state.weighted.parts}
        state.found.shares = shares({name: (factors[name] * sd) ** 2 for name, sd in spreads.items()})


def _check_ratio(state: TrainingRun) -> None:
    """An engine whose ratio is not one before it has learnt anything would learn from its own mistakes."""
    deviation = state.found.ratio_deviation = float(state.engine.ratio_deviation().max())
    exact = state.config.precision_on(state.device.type) == "no"
    limit = ratio_limit(state.config, state.engine.pipeline)
    if exact and not deviation <= limit:
        raise RuntimeError(
            f"importance ratios are {deviation:.2g} off one before any training (at most "
            f"{limit:g}): sampling and learning disagree; see python -m bench doctor --ddpo"
        )


def _check_invariant(state: TrainingRun) -> None:
    """The same for an algorithm without likelihoods: what must hold before it learns."""
    found = state.engine.invariant()  # type: ignore[attr-defined]
    if not found.holds:
        raise RuntimeError(f"before any training, {found}; see python -m bench doctor --ddpo")
    state.invariant = str(found)


def _train(state: TrainingRun, until: int, total: int, ctx: Context) -> None:
    """Train up to ``until`` steps; memory is watched and energy metered meanwhile.

    What a checkpoint takes counts neither as the training's time nor as its memory.
    """
    begin, every, done = state.engine.step, state.params.save_freq, state.progress
    if begin >= until:
        return
    before = done.joules
    with EnergyMeter(str(state.device)) as meter:
        for point in save_points(begin, until, every):
            state.tracker.restart()
            for log in state.engine.run(point):
                done.logs.append(log)
                state.tracker.sample()
                ctx.progress(log.step, total, **_shown(log), **_each(log))
            _raise_peaks(done.peaks, state.tracker.snapshot())
            if every and point % every == 0:
                done.joules = _sum(before, meter.so_far())
                state.scratch.save(state.engine, done)
    done.joules = _sum(before, meter.joules)


def _shown(log: StepLog) -> dict[str, float]:
    """What is shown while it trains."""
    values = {
        "reward": log.reward_mean,
        "loss": None if log.reward_mean is not None else log.loss,  # of a training that asks no reward
        **{f"part {name}": mean for name, mean in log.parts.items()},
        **{f"share {name}": share for name, share in log.shares.items()},
        "kl": log.approx_kl,
        "kl_base": log.kl_base,
        "ratio less one": None if log.ratio_mean is None else log.ratio_mean - 1,
        "deviation": log.ratio_std,
        "clipped": log.clip_fraction,
        "above": log.clipped_above,
        "below": log.clipped_below,
        "flat": log.flat_share,
        "gradient": log.gradient_norm,
        "sampling_s": log.sampling_s,
        "reward_s": log.reward_s,
        "learning_s": log.training_s,
    }
    return {name: value for name, value in values.items() if value is not None}


def _each(log: StepLog) -> dict[str, float]:
    """What is told of every denoising step, counted from 1; for trackers."""
    each = (
        (f"/{name}/{step}", value) for name, row in log.by_step.items() for step, value in enumerate(row, 1)
    )
    return {name: value for name, value in each if value is not None}


def _raise_peaks(peaks: dict[str, int | Missing], now: dict[str, int | Missing]) -> None:
    for name, value in now.items():
        known = peaks.get(name, 0)
        peaks[name] = value if isinstance(value, Missing) or isinstance(known, Missing) else max(known, value)


def _sum(a: float | Missing, b: float | Missing) -> float | Missing:
    if isinstance(a, Missing) or isinstance(b, Missing):
        return b if isinstance(b, Missing) else a
    return a + b


def _emit(
    cell: Cell, params: Any, state: TrainingRun, pictures: Pictures, ctx: Context, *, last: bool
) -> None:
    """Everything that is known at this step count goes into one record."""
    raw = score(pictures, state.scorers)
    metrics = _effects(state, _by_prompt(raw, pictures))
    for name, why in state.unavailable.items():
        metrics |= {f"{figure}_{name}": Missing(why) for figure in ("eval", "gain", "effect")}
    metrics |= _diversity(state, pictures) | _drift(state, params.steps)
    metrics |= training(state.progress.logs, state.progress.joules)
    metrics |= cost_per_effect(metrics)
    metrics |= {
        "state_bytes_analytic": state_bytes_analytic(state.engine, state.pairs),
        "state_bytes": state_bytes(state.engine),
    }
    metrics |= state.progress.peaks or dict.fromkeys(
        ("rss_peak_bytes", "alloc_peak_bytes"), Missing("nothing trained yet")
    )
    out, engine = state.out, state.engine
    artifacts = [
        save_arrays(out / f"scores-{params.steps}.npz", raw),
        save_pictures(out / f"pictures-{params.steps}.webp", pictures),
    ]
    if params.steps:
        progress = state.progress
        artifacts.append(save_logs(out / f"train-{params.steps}.npz", progress.logs))
        artifacts += save_weights(out / f"weights-{params.steps}", engine)
    if last and params.eval_denoising_steps and params.steps:
        counts = sorted({*params.eval_denoising_steps, state.config.sample_num_steps})
        file, trained = out / f"denoising-{params.steps}.npz", state.scorers[state.trained]
        artifacts.append(save_denoising(file, counts, engine, state.evaluator, trained))
    ctx.emit(
        cell,
        metrics,
        facts=_facts(state, metrics),
        conformance=_conformance(state, metrics, raw),
        artifacts=artifacts,
    )


def _diversity(state: TrainingRun, pictures: Pictures) -> Measured:
    features = state.features(pictures.images)
    alone = Missing("one picture per prompt: no pairs")
    return {
        "vendi": vendi_score(features),
        "distance": alone if state.evaluator.seeds < 2 else pairwise_distance(features, pictures.prompts),
    }


def _drift(state: TrainingRun, steps: int) -> Measured:
    if not steps:
        return {"kl_per_step": 0.0, "weight_change": 0.0}
    divergence = kl_per_step(state.engine, state.evaluator, state.config.sample_num_steps, DRIFT_PICTURES)
    return {"kl_per_step": divergence, "weight_change": weight_change(state.engine)}


def _facts(state: TrainingRun, metrics: Measured) -> dict[str, Scalar]:
    """Columns for tables and axes, and where over-optimisation has set in."""
    _see(state, state.engine.step, metrics)
    seen = sorted((one for one in state.found.seen if one[0] <= state.engine.step), key=lambda one: one[0])
    steps, trained, others = zip(*seen, strict=True) if seen else ((), (), ())
    return {
        "queries": metrics["reward_queries"],  # type: ignore[dict-item]
        "forwards": metrics["unet_forwards"],  # type: ignore[dict-item]
        "seconds": round(float(metrics["train_seconds"]), 3),  # type: ignore[arg-type]
        "over_optimised_at": over_optimised(steps, trained, others),
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else "cpu",
    }


def _conformance(
    state: TrainingRun, metrics: Measured, scores: Mapping[str, np.ndarray]
) -> dict[str, Scalar]:
    found, name = state.found, state.trained
    warnings = [
        *collapse(float(metrics["vendi"]), found.vendi, scores[name], found.extremes[name]),  # type: ignore[arg-type]
        *(
            f"'{part}' makes {100 * share:.2g} % of the variance of the reward, and has hardly a say"
            for part, share in found.shares.items()
            if share < HARDLY
        ),
        *state.alike,
    ]
    trainable = [p for p in denoiser(state.engine.pipeline).parameters() if p.requires_grad]
    return {
        "engine": type(state.engine).__name__,
        "steps_trained": state.engine.step,
        "trained_parameters": sum(p.numel() for p in trainable),
        "pictures_evaluated": len(state.evaluator.plan()),
        "ratio_deviation_before_training": state.found.ratio_deviation,
        "invariant_before_training": state.invariant,
        "pairs": str(state.pairs) if state.pairs else None,
        "pairs_sha256": state.pairs.sha256 if state.pairs else None,
        "resumed_at_step": state.resumed_at,
        "discarded": "; ".join(state.scratch.discarded) or None,
        "note": f"of the reward's variance {in_words(found.shares)}" if found.shares else None,
        "parts_while_training": parts_in_words(state.progress.logs),
        "warning": "; ".join(filter(None, warnings)) or None,
    }


def _give_up(left: list[tuple[Cell, Any]], error: Exception, ctx: Context) -> None:
    """Training cannot go on: the first cell not yet answered meets the failure, the others lie behind it."""
    diverged = isinstance(error, DivergedError) or getattr(error, "nan", False)
    status, reason = "nan" if diverged else "error", f"{type(error).__name__}: {error}"
    saved = error.save(ctx.out) if isinstance(error, RewardError) else []
    for number, (cell, _) in enumerate(left):
        ctx.emit(
            cell,
            {},
            status=status,
            reason=reason if not number else f"not reached: {reason}",
            artifacts=saved if not number else [],
        )
