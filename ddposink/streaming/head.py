"""From hidden states to per-token NLL without ever holding length x vocabulary logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head:
    """The model's output embedding and the NLL of given targets, ``rows`` positions at a time."""

    def __init__(self, model: nn.Module, rows: int = 256) -> None:
        self.project = model.get_output_embeddings()
        self.rows = rows

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) in nats, float32 (n,): ``hidden`` (n, d), ``targets`` (n,) token ids."""
        return torch.cat(
            [
                nn.functional.cross_entropy(self.project(h).float(), t, reduction="none")
                for h, t in zip(hidden.split(self.rows), targets.split(self.rows), strict=True)
            ]
        )
