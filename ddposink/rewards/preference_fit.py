"""A reward model from pairwise choices: Bradley–Terry on frozen features.

The chance that picture a is preferred is σ(r(a) − r(b)) (Bradley and Terry 1952; the reward model stage of
Christiano et al. 2017). r is linear in features that are not trained: those of the image–text encoder, how
well picture and prompt agree under it, and a few plain statistics. So few choices are enough, and the fit
is convex: the same choices give the same reward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddposink.errors import Unavailable
from ddposink.models.contrastive import Encoder, fit

STATISTICS = ("red", "green", "blue", "contrast", "saturation", "coverage", "centre", "edges")
FEW_PROMPTS = 5  # a bootstrap over fewer pretends to know more than it does
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHTS, CARD = "head.safetensors", "preference.json"


def features(encoder: Encoder, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """(B, 3, H, W) in [0, 1] and B prompts → (B, D) float32: encoder, agreement, `statistics`."""
    small = fit(images.to(encoder.device, torch.float32), encoder.shape.size)
    seen = encoder.features(small)
    agreement = (encoder.project(seen) * encoder.text(prompts)).sum(-1, keepdim=True)
    return torch.cat([seen, agreement, statistics(small)], dim=1)


def statistics(images: Tensor) -> Tensor:
    """(B, 8): `STATISTICS`; coverage is the part of the picture that is not nearly white."""
    size = images.shape[-1]
    inner = slice(size // 4, size - size // 4)
    grey = images.mean(1)
    high, low = images.amax(1), images.amin(1)
    covered = (low < 0.9).float()
    edges = (grey[:, :, 1:] - grey[:, :, :-1]).abs().mean((1, 2)) + (grey[:, 1:] - grey[:, :-1]).abs().mean(
        (1, 2)
    )
    columns = [
        grey.std((1, 2)),
        ((high - low) / high.clamp_min(0.05)).mean((1, 2)),
        covered.mean((1, 2)),
        covered[:, inner, inner].mean((1, 2)),
        edges,
    ]
    return torch.cat([images.mean((2, 3)), torch.stack(columns, dim=1)], dim=1)


@dataclass(frozen=True)
class PreferenceHead:
    """r(x) = weights · (x − mean) / scale, in units of Bradley–Terry logits."""

    weights: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → (N,)."""
        return ((x - self.mean) / self.scale) @ self.weights


@dataclass
class Card:
    """What a trained head is, and how good it was on choices it had not seen."""

    source: str
    sha256: str
    judges: list[str]
    comparisons: int
    prompts: int
    held_out: dict[str, float]
    encoder_sha256: str
    penalty: float
    seed: int
    statistics: list[str] = field(default_factory=lambda: list(STATISTICS))


def fit_head(a: np.ndarray, b: np.ndarray, choices: np.ndarray, penalty: float) -> PreferenceHead:
    """Maximum likelihood with a ridge. a, b: (N, D) features; choices: (N,), 1 for a, 0 for b, 0.5 a tie."""
    from scipy.optimize import minimize

    both = np.concatenate([a, b])
    mean, scale = both.mean(0), np.maximum(both.std(0), 1e-6)
    difference = (a - b) / scale

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = difference @ weights
        value = np.mean(np.logaddexp(0, margin) - choices * margin) + penalty / 2 * weights @ weights
        chance = 0.5 * (1 + np.tanh(margin / 2))
        return value, difference.T @ (chance - choices) / len(choices) + penalty * weights

    found = minimize(loss, np.zeros(a.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return PreferenceHead(found.x, mean, scale)


def choose_penalty(
    a: np.ndarray, b: np.ndarray, choices: np.ndarray, prompts: np.ndarray, seed: int, folds: int = 5
) -> float:
    """The ridge with the least held-out loss; no prompt lies on both sides of a fold."""
    part = _folds(prompts, folds, seed)
    losses = []
    for penalty in PENALTIES:
        held = []
        for fold in range(folds):
            out = part == fold
            if not out.any() or out.all():
                continue
            head = fit_head(a[~out], b[~out], choices[~out], penalty)
            margin = head(a[out]) - head(b[out])
            held.append(np.logaddexp(0, margin) - choices[out] * margin)
        losses.append(np.concatenate(held).mean() if held else np.inf)
    return PENALTIES[int(np.argmin(losses))]


def _folds(prompts: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) fold of every comparison; all comparisons of a prompt share one."""
    names, index = np.unique(prompts, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % folds)[index]


def split_by_prompt(prompts: Sequence[str], part: float, seed: int) -> np.ndarray:
    """(N,) which comparisons are held out: all of about ``part`` of the prompts, at least one prompt."""
    names, index = np.unique(np.array(prompts), return_inverse=True)
    if len(names) < 2:
        raise ValueError("all comparisons are about one prompt; a held-out accuracy needs at least two")
    count = min(len(names) - 1, max(1, round(part * len(names))))
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return np.isin(index, chosen)


def accuracy(margins: np.ndarray, choices: np.ndarray, prompts: Sequence[str], seed: int) -> dict[str, float]:
    """Part of the decided comparisons that the margins get right, with two 95 % intervals.

    Wilson's takes comparisons for independent; the bootstrap draws whole prompts and is the honest one
    where a prompt has many comparisons. Fewer than `FEW_PROMPTS` are too few to draw from (of one prompt
    every draw is the same): then both are Wilson's. A margin of exactly zero is half right.
    """
    from scipy.stats import binomtest

    decided = choices != 0.5
    if not decided.any():
        raise ValueError("no held-out comparison is decided; there are only ties")
    right = np.where(margins[decided] == 0, 0.5, (margins[decided] > 0) == (choices[decided] > 0.5)).astype(
        float
    )
    wilson = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    names, index = np.unique(np.array(prompts)[decided], return_inverse=True)
    sums, counts = np.bincount(index, right), np.bincount(index)
    if len(names) < FEW_PROMPTS:
        low, high = wilson.low, wilson.high
    else:
        drawn = np.random.default_rng(seed).integers(len(names), size=(2000, len(names)))
        low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return {
        "accuracy": float(right.mean()), "comparisons": int(decided.sum()), "prompts": len(names),
        "wilson_low": float(wilson.low), "wilson_high": float(wilson.high),
        "bootstrap_low": float(low), "bootstrap_high": float(high),
    }  # fmt: skip


def save_head(head: PreferenceHead, card: Card, folder: Path) -> None:
    """Write head.safetensors and preference.json."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in vars(head).items()}
    save_file(arrays, folder / WEIGHTS)
    (folder / CARD).write_text(
        json.dumps(asdict(card), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def load_head(folder: Path) -> tuple[PreferenceHead, Card]:
    """What `save_head` wrote. Raises Unavailable in one line."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = {name: value.astype(np.float64) for name, value in load_file(folder / WEIGHTS).items()}
        return PreferenceHead(**arrays), Card(**json.loads((folder / CARD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise Unavailable(f"the preference model in '{folder}' cannot be loaded: {error}") from error
