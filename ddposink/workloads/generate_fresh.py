"""How likely a written text is to the model itself: dense attention in fresh windows.

The conversation (prompts and answers) is cut into windows of W tokens that begin every W/2 tokens. Each goes
through the untouched model on its own, and the second half of it is scored: every token is predicted from the
W/2 to W-1 tokens before it, near the beginning from all there are. Whatever cache wrote the text, all texts
are scored alike, and far inside the model's training length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ddposink.streaming.head import Head
from ddposink.streaming.trunk import Trunk


class FreshScores:
    """NLLs of a growing conversation; what has been scored is not scored again."""

    def __init__(self, model: nn.Module, window: int) -> None:
        self.trunk = Trunk.of(model)
        self.head = Head.of(self.trunk)
        self.half = window // 2
        self.nll = np.zeros(0, dtype=np.float32)  # of every token; NaN of the first, which nothing predicts

    def extend(self, ids: Sequence[int]) -> np.ndarray:
        """NLL (N,) float32 in nats of every token of ``ids``, of which a beginning may be known already.

        No attention may be replaced meanwhile.
        """
        every = torch.tensor(ids, dtype=torch.long, device=self.trunk.device)
        found = [self.nll]
        known = len(self.nll)
        while known < len(ids):
            end = min(len(ids), (known // self.half + 1) * self.half)
            found.append(self._scored(every, known, end))
            known = end
        self.nll = np.concatenate(found)
        return self.nll

    @torch.no_grad()
    def _scored(self, ids: torch.Tensor, begin: int, end: int) -> np.ndarray:
        """NLL of the tokens begin … end-1, which lie in one half window."""
        start = max(0, (begin // self.half - 1) * self.half)
        hidden = self.trunk.hidden(ids[None, start:end], None)[0]
        first = max(begin, 1)  # nothing predicts the first token of all
        nll = self.head.nll(hidden[first - 1 - start : end - 1 - start], ids[first:end])
        return np.concatenate([np.full(first - begin, np.nan, np.float32), nll.float().cpu().numpy()])
