"""What a training step tells of itself, denoising step by denoising step.

Sums over all (sample, denoising step) pairs, so that means are those of all pairs, however the work was cut
into forwards, updates and processes. They stay on the device: nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ddposink.ddpo.loss import LossTerms
from ddposink.ddpo.protocol import Row

_COUNT, _OFF, _SQUARE, _ABOVE, _BELOW, _KL, _KNOWN = range(7)


@dataclass(frozen=True)
class Told:
    """``by_step``: rows called ratio_mean, ratio_std, clipped_above, clipped_below and, where the base
    model was asked, kl_base; the others are means over all pairs, kl_base over those whose sample was asked
    of. KL in nats per denoising step, over all dimensions.
    """

    ratio_mean: float
    ratio_std: float
    clipped_above: float
    clipped_below: float
    kl_base: float | None
    by_step: Mapping[str, Row] = field(default_factory=dict)


class Tally:
    """Sums of one training step, float64, by denoising step."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.sums = torch.zeros((7, steps), dtype=torch.float64, device=device)

    def add(self, step: Tensor, terms: LossTerms, known: Tensor | None = None) -> None:
        """Pairs of denoising steps ``step`` (M,); ``known`` (M,): whose divergence is one."""
        off = terms.off.double()  # not the ratio: its square less one would be lost to rounding
        kl = asked = torch.zeros_like(off)
        if terms.divergence is not None and known is not None:
            kl, asked = torch.where(known, terms.divergence.double(), kl), known.double()
        values = torch.stack([torch.ones_like(off), off, off.square(), terms.above, terms.below, kl, asked])
        # A product and not a scattered sum, whose order differs from run to run on a GPU.
        self.sums += values @ F.one_hot(step, self.sums.shape[1]).double()

    def take(self) -> Tensor:
        """(7, T) sums since last asked."""
        found, self.sums = self.sums, torch.zeros_like(self.sums)
        return found


def told(sums: Tensor, with_kl: bool) -> Told:
    """From the ``sums`` (7, T) of a `Tally`, of several processes added or averaged."""
    sums = sums.cpu()
    everything = sums.sum(1, keepdim=True)
    by_step = {
        name: _listed(row, sums[_KNOWN if name == "kl_base" else _COUNT])
        for name, row in _means(sums, with_kl).items()
    }
    whole = {name: float(row[0]) for name, row in _means(everything, with_kl).items()}
    kl = whole.pop("kl_base", None)
    return Told(**whole, kl_base=kl, by_step=by_step)


def _means(sums: Tensor, with_kl: bool) -> dict[str, Tensor]:
    mean = sums / sums[_COUNT]
    variance = (mean[_SQUARE] - mean[_OFF].square()).clamp(min=0)
    found = {
        "ratio_mean": 1 + mean[_OFF],
        "ratio_std": variance.sqrt(),
        "clipped_above": mean[_ABOVE],
        "clipped_below": mean[_BELOW],
    }
    return found | ({"kl_base": sums[_KL] / sums[_KNOWN]} if with_kl else {})


def _listed(row: Tensor, count: Tensor) -> Row:
    pairs = zip(row.tolist(), count.tolist(), strict=True)
    return [value if seen else None for value, seen in pairs]
