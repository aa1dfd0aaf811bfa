"""From the scores of pictures to the figures of a cell. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from bench.intervals import t_interval
from bench.workload import Missing, Samples
from ddposink.ddpo.protocol import StepLog
from ddposink.rewards import RewardRef
from ddposink.rewards.weighted import weighted

Measured = dict[str, float | int | Missing | Samples | None]
Scores = Mapping[str, np.ndarray]  # reward → (prompts,) mean scores, prompts in order
TRAINED = "trained"
COLLAPSED = 0.1  # part of the base model's diversity (effective pictures beyond one) that is left
RECENT = 5  # training steps; few enough to be of the model as it is, enough to be no accident
NOT_ASKED = "it learns from a file of pairs: no reward is asked while it trains"
NOT_DRAWN = "it learns from a file of pairs: no sample is drawn"
_UNTOLD = "this engine or algorithm does not tell it"
# Metrics of the last training steps: the field of their logs, and why there may be none.
TOLD = {
    "ratio_mean": ("ratio_mean", _UNTOLD),
    "ratio_std": ("ratio_std", _UNTOLD),
    "clipped_above": ("clipped_above", _UNTOLD),
    "clipped_below": ("clipped_below", _UNTOLD),
    "gradient_norm": ("gradient_norm", _UNTOLD),
    "train_kl_base": ("kl_base", "kl_beta and measure_kl are 0: the base model is not asked while training"),
}
# What rewards the contrary of another says nothing new about side effects.
OPPOSITE = {
    "jpeg_compressibility": "jpeg_incompressibility",
    "jpeg_incompressibility": "jpeg_compressibility",
}


def kinds(ref: RewardRef) -> frozenset[str]:
    """Registered names of what a reward is made of: the parts of a weighted sum, else itself."""
    if ref.kind != "weighted":
        return frozenset({ref.kind})
    return frozenset(part.kind for _, part in weighted.parts(ref.argument))


def evaluate_step(
    scores: Scores,
    base: Scores,
    spread: Mapping[str, float | None],
    trained: str,
    parts: Collection[str] = (),
) -> Measured:
    """Scores, paired gains and effects of one step count on every reward.

    ``spread``: standard deviation of the base pictures of one prompt under each reward; ``trained``: the key
    of the reward trained on, `TRAINED` if it is none of those every cell is scored on; ``parts``: its
    `kinds`, which are no side effects either. Rewards whose base pictures do not differ have no effect size.
    """
    found: Measured = {}
    for name, values in scores.items():
        gains = values - base[name]
        figures: Measured = {
            "eval": float(values.mean()),
            "gain": _samples(gains),
            "effect": effect(gains, spread[name]),
        }
        if name != TRAINED:
            found |= {f"{figure}_{name}": value for figure, value in figures.items()}
        if name == trained:
            found |= {"trained_reward": figures["eval"], "gain": figures["gain"], "effect": figures["effect"]}
    found["others_effect"] = others(scores, base, spread, trained, parts)
    return found


def effect(gains: np.ndarray, spread: float | None) -> Samples | Missing:
    """Gains in standard deviations of the base model's pictures of one prompt."""
    if spread is None:
        return Missing("one picture per prompt: no spread to measure the effect by")
    if spread <= 0:
        return Missing("the base model's pictures of a prompt do not differ under this reward")
    return _samples(gains / spread)


def others(
    scores: Scores,
    base: Scores,
    spread: Mapping[str, float | None],
    trained: str,
    parts: Collection[str] = (),
) -> Samples | Missing:
    """Mean effect on the rewards that were not trained on.

    Neither the trained one counts, nor the ``parts`` it is made of, nor the contrary of any of these.
    """
    own = {trained, *parts}
    own |= {OPPOSITE[name] for name in own & OPPOSITE.keys()}
    effects = [
        (scores[name] - base[name]) / known for name in scores if name not in own and (known := spread[name])
    ]
    return _samples(np.mean(effects, axis=0)) if effects else Missing("no other reward has an effect size")


def over_optimised(
    steps: Sequence[int], trained: Sequence[np.ndarray], rest: Sequence[np.ndarray]
) -> int | None:
    """The step count beyond which the trained reward still rises while the other rewards fall.

    trained, rest: per step count (prompts,) effects. It is where the others were best, if from there to the
    last step count the trained reward rose and the others fell: paired t-intervals over prompts, both
    clear of zero. The best of several counts is chosen by the same numbers that are then tested, so the
    intervals hold for all counts it was chosen from together (95 %, Bonferroni). None if that has not
    been seen, or if there are too few prompts for an interval.
    """
    if len(steps) < 2 or len(trained[0]) < 3:
        return None
    best = int(np.argmax([values.mean() for values in rest]))
    if best == len(steps) - 1:
        return None
    level = 1 - 0.05 / (len(steps) - 1)
    rose = t_interval(trained[-1] - trained[best], level)
    fell = t_interval(rest[-1] - rest[best], level)
    return steps[best] if rose.low > 0 and fell.high < 0 else None


def collapse(vendi: float, base_vendi: float, trained: np.ndarray, base: tuple[float, float]) -> list[str]:
    """Sentences if the pictures have become nearly one, and if their score is none the base ever got.

    ``vendi``, ``base_vendi``: effective numbers of different pictures now and of the base model. ``trained``:
    (pictures,) scores under the reward trained on; ``base``: lowest and highest of the base's pictures.
    """
    found = []
    if vendi - 1 <= COLLAPSED * (base_vendi - 1):
        found.append(
            f"collapse: the pictures are nearly one ({vendi:.3g} different ones, {base_vendi:.3g} before)"
        )
    if not base[0] <= (mean := float(trained.mean())) <= base[1]:
        found.append(
            f"beyond the base model: the mean score of {mean:.4g} is none that a picture of the base model "
            f"got ({base[0]:.4g} to {base[1]:.4g})"
        )
    return found


def training(logs: Sequence[StepLog], energy: float | Missing) -> Measured:
    """Figures of the training so far; those of the updates are means of the last `RECENT` steps."""
    names = (
        "train_reward", "approx_kl", "clip_fraction", "flat_share", "train_loss", "step_s", "sampling_share",
        "reward_share", "learning_share", *TOLD,
    )  # fmt: skip
    if not logs:
        why = Missing("nothing has been trained yet")
        return {
            **dict.fromkeys((*names, "samples_per_s", "energy_per_sample_j"), why),
            "reward_queries": 0,
            "unet_forwards": 0,
            "train_seconds": 0.0,
        }
    recent = logs[-RECENT:]
    times = [log.sampling_s + log.training_s for log in logs]
    seconds, samples = sum(times), logs[-1].samples
    return {
        "train_reward": _told(logs[-1].reward_mean, NOT_ASKED),
        "approx_kl": _recent([log.approx_kl for log in recent], "the algorithm has no likelihoods"),
        "clip_fraction": _recent([log.clip_fraction for log in recent], "the algorithm has no ratio to clip"),
        "flat_share": _recent([log.flat_share for log in recent], "the algorithm compares no samples"),
        "train_loss": float(np.mean([log.loss for log in recent])),
        "step_s": Samples(float(np.median(times)), tuple(times)),
        "sampling_share": sum(log.sampling_s for log in logs) / seconds,
        "reward_share": _share_of_reward(logs, seconds),
        "learning_share": sum(log.training_s for log in logs) / seconds,
        **{name: _recent([getattr(log, own) for log in recent], why) for name, (own, why) in TOLD.items()},
        "samples_per_s": samples / seconds if samples else Missing(NOT_DRAWN),
        "reward_queries": samples,
        "unet_forwards": logs[-1].unet_forwards,
        "train_seconds": seconds,
        "energy_per_sample_j": _per_sample(energy, samples),
    }


def _told(value: float | None, why: str) -> float | Missing:
    return Missing(why) if value is None else value


def _per_sample(energy: float | Missing, samples: int) -> float | Missing:
    if isinstance(energy, Missing):
        return energy
    return energy / samples if samples else Missing(NOT_DRAWN)


def parts_in_words(logs: Sequence[StepLog]) -> str | None:
    """The parts of a weighted reward in the last `RECENT` training steps: their means, and what they decide.

    The parts are not known beforehand, so these are words and no metrics; curves are in ``train-N.npz``.
    """
    recent = [log for log in logs[-RECENT:] if log.parts]
    found = []
    for name in recent[0].parts if recent else ():
        shares = [log.shares[name] for log in recent if name in log.shares]
        share = f"{100 * float(np.mean(shares)):.3g} % of the variance" if shares else "no variance"
        found.append(f"{name} {float(np.mean([log.parts[name] for log in recent])):.4g} ({share})")
    return "; ".join(found) or None


def _share_of_reward(logs: Sequence[StepLog], seconds: float) -> float | Missing:
    if not logs[-1].samples:
        return Missing(NOT_ASKED)
    known = [log.reward_s for log in logs if log.reward_s is not None]
    return sum(known) / seconds if len(known) == len(logs) else Missing("the engine does not time its reward")


def _recent(values: Sequence[float | None], absent: str) -> float | Missing:
    """The mean, or that there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else Missing(absent)


def cost_per_effect(found: Measured) -> Measured:
    """What one standard deviation of trained reward has cost; only where the gain is certain."""
    effect_ = found["effect"]
    if isinstance(effect_, Samples) and len(effect_.values) > 1 and t_interval(effect_.values).low > 0:
        return {
            "seconds_per_effect": float(found["train_seconds"]) / effect_.value,  # type: ignore[arg-type]
            "queries_per_effect": float(found["reward_queries"]) / effect_.value,  # type: ignore[arg-type]
        }
    why = Missing("no gain in the trained reward that its interval tells from zero")
    return {"seconds_per_effect": why, "queries_per_effect": why}


def _samples(values: np.ndarray) -> Samples:
    return Samples(float(values.mean()), tuple(float(v) for v in values))
