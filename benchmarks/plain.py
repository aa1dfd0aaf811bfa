"""StreamingLLM's decode as everybody writes it: `torch.cat`, evict, rotate the whole cache again.

The peer that ring decode and exact evaluation are timed against, and a second opinion on rotary models: it
rotates with the model's own rotary module. Slow and plain on purpose; token by token only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddposink.caches import Policy
from ddposink.streaming.base import CountedStream
from ddposink.streaming.hook import Hook
from ddposink.streaming.positions import Alibi, Layout, Positions


class ConcatenatingStream(CountedStream):
    """Dense, or a policy that evicts after every token: one stream, or B in step, a token per forward."""

    path = "concatenating"

    def __init__(self, model: nn.Module, policy: Policy, layout: Layout) -> None:
        super().__init__(model, layout)
        self.policy = policy
        self.text_positions = torch.zeros(0, dtype=torch.long)

    def next_size(self, left: int) -> int:
        """One token."""
        return 1

    def _forward(self, hook: Hook, ids: Tensor) -> Tensor:
        hook.attend = self._attend
        # Rotary position 0 is the identity: the hook receives q and k before rotation.
        hidden = hook.forward(torch.atleast_2d(ids), torch.zeros(1, 1, dtype=torch.long, device=ids.device))
        self.text_positions = torch.cat([self.text_positions, torch.tensor([self.seen])])
        self.seen += 1
        self._evict()
        self.held = len(self.text_positions)
        return hidden

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, extra: dict[str, Any]
    ) -> Tensor:
        if layer in self.layers:
            k = torch.cat([self.layers[layer][0], k], 2)
            v = torch.cat([self.layers[layer][1], v], 2)
        self.layers[layer] = (k, v)
        n = k.shape[2]
        place = torch.arange(n)
        if not self.policy.bounded:
            place = torch.cat([self.text_positions, torch.tensor([self.seen])])
        distance = n - 1 - place if self.policy.bounded else self.seen - place
        self.largest_position = max(self.largest_position, n - 1 if self.policy.bounded else self.seen)
        if self.policy.positions == "absolute":
            text = torch.cat([self.text_positions, torch.tensor([self.seen])])
            distance = self.seen - text
            self.largest_position = self.seen
        positions = self.layout[layer].positions
        scores = self._scores(q, k, distance, positions) * scale
        if isinstance(positions, Alibi):
            scores = scores - positions.slopes.view(1, -1, 1, 1) * distance
        own = self.layout[layer].window
        if own is not None:
            scores = scores.masked_fill(distance >= own, -torch.inf)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        if (logit := extra.get("s_aux")) is not None:
            scores = torch.cat([scores, logit.float().view(1, -1, 1, 1).expand(len(scores), -1, -1, -1)], -1)
            return scores.softmax(-1)[..., :-1].to(v.dtype) @ v
        return scores.softmax(-1).to(v.dtype) @ v

    def _scores(self, q: Tensor, k: Tensor, distance: Tensor, positions: Positions) -> Tensor:
        """q·k with each key ``distance`` behind the query: (1, H, 1, n), float32."""
        groups = q.shape[1] // k.shape[1]
        if not isinstance(positions, Alibi):
            stand = int(distance.max())
            q = self._rotate(q, torch.tensor([stand], device=q.device))
            k = self._rotate(k, (stand - distance).to(k.device))
        return (q @ k.repeat_interleave(groups, 1).transpose(-1, -2)).float()

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        rotary = self.model.base_model.rotary_emb
        cos, sin = rotary(x, positions[None])
        if cos.shape[-1] == rotary.inv_freq.shape[-1]:  # GPT-OSS gives half the dimensions
            cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        scaling = rotary.attention_scaling  # already in x, from the rotation at position 0
        cos, sin, width = cos / scaling, sin / scaling, cos.shape[-1]
        turning, rest = x[..., :width], x[..., width:]
        half = torch.cat([-turning[..., width // 2 :], turning[..., : width // 2]], -1)
        return torch.cat([turning * cos + half * sin, rest], -1)

    def _evict(self) -> None:
        policy, n = self.policy, len(self.text_positions)
        if not policy.bounded or n <= policy.sinks + policy.window:
            return
        keep = torch.cat([torch.arange(policy.sinks), torch.arange(n - policy.window, n)])
        self.text_positions = self.text_positions[keep]
        self.layers = {
            i: (torch.cat([k[:, :, : policy.sinks], k[:, :, n - policy.window :]], 2),
                torch.cat([v[:, :, : policy.sinks], v[:, :, n - policy.window :]], 2))
            for i, (k, v) in self.layers.items()
        }  # fmt: skip

    def mark(self, steps: int) -> tuple[Any, ...]:
        """References suffice: tensors are replaced, never written to."""
        return self.seen, self.held, self.largest_position, dict(self.layers), self.text_positions

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Undo the tokens fed since ``mark``."""
        self.seen, self.held, self.largest_position, self.layers, self.text_positions = mark
