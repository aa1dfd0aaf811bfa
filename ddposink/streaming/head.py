"""From hidden states to per-token NLL without ever holding length x vocabulary logits.

Logits of a thousand positions are hundreds of megabytes that are written, read three times and thrown
away. On a CPU that costs a third of the projection itself, so there the vocabulary is tiled: a tile of
logits is made in one small buffer, reduced to its log-sum-exp while it is in cache, and overwritten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS, WORDS = 1024, 512  # positions and words of a tile: fastest of 128 … 1024 by 512 … 4096 where measured
FEW = 64  # below so many positions all logits are small, and one projection has less overhead


class Head:
    """The model's output embedding and the NLL of given targets."""

    def __init__(self, model: nn.Module, rows: int = 256) -> None:
        self.project = model.get_output_embeddings()
        self.rows = rows

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) in nats, float32 (n,): ``hidden`` (n, d), ``targets`` (n,) token ids."""
        tiled = (
            type(self.project) is nn.Linear
            and hidden.device.type == "cpu"
            and hidden.dtype is torch.float32
            and len(hidden) > FEW
        )
        if tiled:
            pieces = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
            return torch.cat([self._tiled(h, t) for h, t in pieces])
        return torch.cat(
            [
                nn.functional.cross_entropy(self.project(h).float(), t, reduction="none")
                for h, t in zip(hidden.split(self.rows), targets.split(self.rows), strict=True)
            ]
        )

    def _tiled(self, hidden: Tensor, targets: Tensor) -> Tensor:
        weight, bias = self.project.weight, self.project.bias
        buffer = hidden.new_empty(len(hidden) * WORDS)
        first = torch.zeros(len(hidden), dtype=torch.long)
        totals = []
        for start in range(0, len(weight), WORDS):
            words = weight[start : start + WORDS]
            logits = buffer[: len(hidden) * len(words)].view(len(hidden), -1)
            torch.mm(hidden, words.t(), out=logits)
            if bias is not None:
                logits += bias[start : start + WORDS]
            # The fused cross entropy of word 0 is the tile's log-sum-exp less that word's logit.
            total = nn.functional.cross_entropy(logits, first, reduction="none")
            totals.append(total + logits[:, 0])
        chosen = (hidden * weight[targets]).sum(-1)
        if bias is not None:
            chosen += bias[targets]
        return torch.stack(totals).logsumexp(0) - chosen
