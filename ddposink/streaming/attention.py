"""Where attention falls: every layer's weights, recomputed plainly, and what of them the first tokens get.

Fused kernels keep no weights, and a model that returns them holds layers x heads x length² of them at once.
Here a text goes through the model in one forward; each layer's weights are made for a chunk of queries,
summed up and forgotten, so that memory is O(chunk x length). A learned sink logit (GPT-OSS) takes attention
that goes to no key: it is one more column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddposink.streaming.examine import lookback
from ddposink.streaming.hook import attention_hook
from ddposink.streaming.kernel import for_heads, masked_scores
from ddposink.streaming.proof import TOKENS, compare_logits
from ddposink.streaming.refusals import refusing_what_does_not_run
from ddposink.streaming.trunk import Trunk

FIRST, FEW = 1, 4  # how many tokens at the beginning of a text are asked about
_LONGEST_PROOF = 512  # tokens; a longer window of the model's own is not left while proving


@dataclass(frozen=True)
class Shares:
    """What N heads (all heads of all attention layers) do with the attention of L queries, parts of 1.

    ``layer`` and ``head`` (N,) int64 say which they are; ``first``, ``few`` and ``learned`` (N, L) float32:
    the attention on the first token, on the first four, on a learned sink logit (None if no layer has one).
    """

    layer: Tensor
    head: Tensor
    first: Tensor
    few: Tensor
    learned: Tensor | None
    worst_sum: float  # largest distance of a query's attention, over all keys and the logit, from 1


class Attention:
    """The attention of one model over whole texts, each read from its beginning, with nothing evicted."""

    def __init__(self, model: nn.Module, chunk: int = 256) -> None:
        """``chunk``: queries whose weights are held at once.

        Raises UnsupportedModelError if the model's attention cannot be had, NotProvenError if the recomputed
        weights do not give the model's own logits.
        """
        self.chunk = chunk
        with refusing_what_does_not_run():
            self.trunk = Trunk.of(model)
            self.windows, self.slopes = lookback(model)
            self._prove()

    @torch.no_grad()
    def read(self, ids: Tensor) -> Shares:
        """Shares of the queries ``ids`` (L,); raises UnsupportedModelError for more than the model takes."""
        with refusing_what_does_not_run():
            return self._forward(ids)[1]

    def _prove(self) -> None:
        """A few tokens, past the model's own windows where these are short, against the untouched model."""
        own = [window for window in self.windows.values() if window is not None]
        count = max(TOKENS, *(window + 3 for window in own if window < _LONGEST_PROOF), 0)
        vocabulary = self.trunk.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(7)
        ids = torch.randint(3, vocabulary, (count,), generator=generator).to(self.trunk.device)
        with torch.no_grad():
            found = self.trunk.logits(self._forward(ids)[0])
            expected = self.trunk.plain_logits(ids)
        compare_logits(
            found, expected, ids, "with its attention recomputed", "one plain forward of the model"
        )

    def _forward(self, ids: Tensor) -> tuple[Tensor, Shares]:
        """Hidden states (L, d) and shares."""
        found: dict[int, tuple[Tensor, float]] = {}
        learned = False

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
        ) -> Tensor:
            nonlocal learned
            learned |= extra.get("s_aux") is not None
            out, shares, worst = self._layer(layer, q, k, v, scale, extra)
            found[layer] = shares, worst
            return out

        positions = torch.arange(len(ids), device=ids.device)
        with attention_hook(self.trunk, attend, self.windows) as hook:
            hidden = hook.forward(ids[None], positions[None])
        layers = sorted(found)
        counts = torch.tensor([found[layer][0].shape[1] for layer in layers])
        shares = torch.cat([found[layer][0] for layer in layers], 1)
        return hidden, Shares(
            torch.tensor(layers).repeat_interleave(counts),
            torch.cat([torch.arange(int(count)) for count in counts]),
            shares[0],
            shares[1],
            shares[2] if learned else None,
            max(worst for _, worst in found.values()),
        )

    def _layer(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> tuple[Tensor, Tensor, float]:
        """Output (1,H,L,Dv) of one layer; its shares (3,H,L) on the CPU; how far a sum is from 1."""
        outs, shares, worst = [], [], 0.0
        values = for_heads(v, q)
        for start in range(0, q.shape[2], self.chunk):
            part = weights(
                q[:, :, start : start + self.chunk],
                k,
                scale,
                start=start,
                window=self.windows[layer],
                slopes=self.slopes,
                softcap=extra.get("softcap"),
                learned=extra.get("s_aux"),
            )
            keys = part[..., :-1]
            outs.append(keys.to(v.dtype) @ values)
            columns = keys[..., :FIRST].sum(-1), keys[..., :FEW].sum(-1), part[..., -1]
            shares.append(torch.stack(columns)[:, 0].cpu())
            worst = max(worst, float((part.sum(-1) - 1).abs().max()))
        return torch.cat(outs, 2), torch.cat(shares, -1), worst


def weights(
    q: Tensor,
    k: Tensor,
    scale: float,
    *,
    start: int = 0,
    window: int | None = None,
    slopes: Tensor | None = None,
    softcap: float | None = None,
    learned: Tensor | None = None,
) -> Tensor:
    """(B,H,n,M+1) float32: the attention of queries ``start`` … ``start+n-1`` of a text, ``q`` (B,H,n,D).

    On each of the M keys ``k`` (B,Hkv,M,D), zero on later ones and on those ``window`` tokens back or
    further; last on the ``learned`` sink logit (H,), zero without one. ``slopes`` (H,) are ALiBi's,
    ``softcap`` is Gemma 2's.
    """
    keys = torch.arange(k.shape[2], device=q.device)
    distance = torch.arange(start, start + q.shape[2], device=q.device)[:, None] - keys
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    # A constant per query, which a softmax does not see, is left out of ALiBi's distance.
    bias = None if slopes is None else slopes.view(-1, 1, 1) * keys
    scores = masked_scores(q, k, scale, seen, bias, softcap)
    nowhere = scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    beside = nowhere if learned is None else learned.float().view(1, -1, 1, 1).expand_as(nowhere)
    return torch.cat([scores, beside], -1).softmax(-1)
