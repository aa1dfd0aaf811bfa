"""From hidden states to per-token NLL without ever holding length x vocabulary logits.

The model makes its logits (see `trunk`): only where its own forward turns out to do nothing but project,
bit for bit, is the projection done here, for speed. Logits of a thousand positions are hundreds of megabytes
that are written, read three times and thrown away. On a CPU that costs a third of the projection itself, so
there the vocabulary is tiled: a tile of logits is made in one small buffer, reduced to its log-sum-exp while
it is in cache, and overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ddposink.streaming.trunk import Trunk

ROWS, WORDS = 1024, 512  # positions and words of a tile: fastest of 128 … 1024 by 512 … 4096 where measured
FEW = 64  # below so many positions all logits are small, and one projection has less overhead


class Head:
    """Logits, and the NLL of given targets, of a model's hidden states."""

    def __init__(self, logits: Callable[[Tensor], Tensor], rows: int = 256) -> None:
        """``logits``: (n, d) -> (n, vocabulary). A plain `nn.Linear` is tiled where that pays."""
        self.logits = logits
        self.rows = rows

    @classmethod
    def of(cls, trunk: Trunk) -> Head:
        """The head of a model, found once while no attention is replaced.

        It is the output projection if that is all the model's own forward does, else that forward.
        """
        if trunk not in _found:
            project = trunk.model.get_output_embeddings()
            plain = project is not None and _only_projects(trunk, project)
            _found[trunk] = cls(project if plain else trunk.logits)
        return _found[trunk]

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) in nats, float32 (n,): ``hidden`` (n, d), ``targets`` (n,) token ids."""
        tiled = (
            type(self.logits) is nn.Linear
            and hidden.device.type == "cpu"
            and hidden.dtype is torch.float32
            and len(hidden) > FEW
        )
        if tiled:
            pieces = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
            return torch.cat([self._tiled(h, t) for h, t in pieces])
        return torch.cat(
            [
                nn.functional.cross_entropy(self.logits(h).float(), t, reduction="none")
                for h, t in zip(hidden.split(self.rows), targets.split(self.rows), strict=True)
            ]
        )

    def _tiled(self, hidden: Tensor, targets: Tensor) -> Tensor:
        assert isinstance(self.logits, nn.Linear)
        weight, bias = self.logits.weight, self.logits.bias
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


_found: WeakKeyDictionary[Trunk, Head] = WeakKeyDictionary()


@torch.no_grad()
def _only_projects(trunk: Trunk, project: nn.Module) -> bool:
    """Whether the model's logits are its projection, bit for bit; large inputs let a soft cap show."""
    if trunk.device.type == "meta":
        return False  # nothing has a value there
    vocabulary, device = project.weight.shape[0], trunk.device
    ids = torch.linspace(0, vocabulary - 1, 8, device=device).long()
    hidden = trunk.hidden(ids[None], torch.arange(8, device=device)[None])[0] * 8
    # One more dimension, as in the model: kernels may add up in another order without it.
    return torch.equal(trunk.logits(hidden).float(), project(hidden[None])[0].float())
