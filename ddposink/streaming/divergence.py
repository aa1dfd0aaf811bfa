"""How far a policy's predictions are from dense attention's, on the same tokens, beyond what the NLL sees.

Both streams read the text side by side; their hidden states meet in pieces, the head is applied to both, and
only three numbers of a position are kept. The logits of a whole text never exist.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddposink.streaming.dense import DenseStream

ROWS = 128  # positions whose logits exist at a time, twice


class Divergence:
    """Numbers (N-1,) float32 of N tokens ``ids``, NaN where not known yet. Index t is the query of token t.

    ``kl`` is KL(dense ‖ policy) over the vocabulary in nats; ``agree`` 1 where both rank the same token
    first, else 0; ``lost`` the NLL of the next token under the policy less that under ``dense``, in nats.
    """

    def __init__(self, dense: DenseStream, ids: Tensor) -> None:
        self.dense, self.ids = dense, ids
        self.kl, self.agree, self.lost = (np.full(len(ids) - 1, np.nan, np.float32) for _ in range(3))
        self._waiting: list[Tensor] = []  # hidden states of the policy that dense has not reached

    def watch(self, hidden: Tensor) -> None:
        """Take the policy's hidden states (n, d) of the next n tokens."""
        self._waiting.append(hidden)
        if sum(map(len, self._waiting)) >= self.dense.next_size(1 << 30):
            self.catch_up()

    def catch_up(self) -> None:
        """Let dense read as far as the policy has."""
        if not self._waiting:
            return
        theirs, self._waiting = torch.cat(self._waiting), []
        with self.dense.attached():
            while len(theirs):
                start = self.dense.seen
                size = self.dense.next_size(len(theirs))
                ours = self.dense.feed(self.ids[start : start + size])
                self._compare(start, ours, theirs[:size])
                theirs = theirs[size:]

    def _compare(self, start: int, dense: Tensor, policy: Tensor) -> None:
        scored = min(len(dense), len(self.ids) - 1 - start)  # the last token of all predicts nothing
        targets = self.ids[start + 1 : start + 1 + scored, None]
        pieces = (x[:scored].split(ROWS) for x in (dense, policy, targets))
        for i, (a, b, target) in enumerate(zip(*pieces, strict=True)):
            p, q = (self.dense.head.logits(x).float().log_softmax(-1) for x in (a, b))
            where = slice(start + i * ROWS, start + i * ROWS + len(a))
            self.agree[where] = (p.argmax(-1) == q.argmax(-1)).float().cpu().numpy()
            self.lost[where] = (p.gather(1, target) - q.gather(1, target))[:, 0].cpu().numpy()
            self.kl[where] = (p.exp() * (p - q)).sum(-1).cpu().numpy()
