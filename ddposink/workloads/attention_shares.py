"""From each query's shares to the figures of a cell. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.workload import Missing, Samples

Figures = dict[str, float | int | Missing | Samples | None]
FIRST_EDGE = 64  # tokens: the first bin along a text is what the sink metric looks at
NOT_LEARNED = Missing("this model has no learned sink logits")


@dataclass(frozen=True)
class Reading:
    """Shares of attention in one reading of L tokens by N heads, (N, L) float64, parts of 1.

    ``learned`` is None for a model without learned sink logits; ``sink`` is what counts as a sink.
    """

    first: np.ndarray
    few: np.ndarray
    learned: np.ndarray | None

    @property
    def sink(self) -> np.ndarray:
        """Attention on the first token, and on a learned sink logit where there is one."""
        return self.first if self.learned is None else self.first + self.learned

    def parts(self) -> dict[str, np.ndarray]:
        """All shares by name; zeros for logits that the model does not have."""
        learned = np.zeros_like(self.first) if self.learned is None else self.learned
        return {"first": self.first, "few": self.few, "learned": learned, "sink": self.sink}


def of_pieces(pieces: Sequence[Reading], threshold: float) -> Figures:
    """Figures of pieces of equal length, each a text of its own.

    A head's attention on the first token is the mean over *all* queries of a piece, as in Gu et al. (2025),
    the first query, which sees nothing else, included. A head counts piece by piece, as there.
    """
    learned = [piece.learned for piece in pieces if piece.learned is not None]
    return {
        "sink_share": _samples([float((p.sink.mean(1) > threshold).mean()) for p in pieces]),
        "attention_first": _samples([float(p.first.mean()) for p in pieces]),
        "attention_first_four": _samples([float(p.few.mean()) for p in pieces]),
        "attention_learned": _samples([float(a.mean()) for a in learned]) if learned else NOT_LEARNED,
        "attention_strongest": float(by_head(pieces)["sink"].max()),
        "heads": len(pieces[0].first),
    }


def by_head(pieces: Sequence[Reading]) -> dict[str, np.ndarray]:
    """Means (N,) over queries and pieces, by name of the share."""
    each = [piece.parts() for piece in pieces]
    return {name: np.mean([parts[name].mean(1) for parts in each], axis=0) for name in each[0]}


def along(text: Reading, threshold: float) -> dict[str, np.ndarray]:
    """Means over heads in bins along one long text, and the part of the heads above ``threshold`` in each.

    ``position`` (bins,) is how many tokens have been read at the end of a bin.
    """
    edges = bin_edges(text.first.shape[1])
    found: dict[str, np.ndarray] = {"position": np.array(edges[1:], dtype=np.int64)}
    for name, values in text.parts().items():
        found[name] = np.array([values[:, a:b].mean() for a, b in pairwise(edges)])
    shares = [(text.sink[:, a:b].mean(1) > threshold).mean() for a, b in pairwise(edges)]
    return found | {"sink_share": np.array(shares)}


def bin_edges(length: int) -> list[int]:
    """0, 64, 96, 128, 192, …: two bins a doubling; what is left at the end is a bin if it is half a one."""
    edges = [0, min(FIRST_EDGE, length)]
    while edges[-1] < length:
        power = 1 << (edges[-1].bit_length() - 1)
        step = power // 2
        rest = length - edges[-1]
        if rest < step // 2:
            edges[-1] = length
        else:
            edges.append(edges[-1] + min(step, rest))
    return edges


def _samples(values: Sequence[float]) -> Samples:
    return Samples(float(np.mean(values)), tuple(values))
