"""The two triangles on a CPU: the ring, tile by tile.

The fused CPU kernel spends as much on a causal triangle as on most of the square. But the two
triangles of a block tile a square: a query tile sees, outside its own columns, exactly what the ring
holds at that moment (the current block before it, the previous block after it). So each tile of
queries makes one unmasked-but-for-a-corner call over ring and self, then overwrites its slots: the
ring of `decode`, `TILE` tokens at a time. Work is (R + TILE) keys per token at full matmul speed, and
there is nothing to flip or to merge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ddposink.streaming.kernel import Part
from ddposink.streaming.state import LayerState, StreamState

TILE = 192  # the kernel's query blocking changes at 192 rows; fastest of 64 … 1020 where measured


def attend_tiles(
    state: StreamState,
    memory: LayerState,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    turn_back: Callable[[Tensor], Tensor],
) -> Part:
    """All keys but the sinks, for q (1,H,n,D) at local positions from ``state.local`` on.

    ``k``, ``v`` (1,Hkv,n,D) are the queries' own; ``turn_back`` puts keys one block further away. The
    carried ``memory`` is not written.
    """
    s, window, count = state.sinks, state.window, q.shape[2]
    local, previous = state.local, state.block > 0
    room = (1, k.shape[1], window + min(TILE, count), k.shape[3])
    keys, values = k.new_empty(room), v.new_empty(*room[:-1], v.shape[3])
    keys[:, :, :local] = memory.k[:, :, s : s + local]
    values[:, :, :window] = memory.v[:, :, s : s + window]
    if previous:
        keys[:, :, local:window] = turn_back(memory.k[:, :, s + local : s + window])
    outs, lses, done = [], [], 0
    while done < count:
        if local == window:  # the block is full: it becomes the previous one
            keys[:, :, :window] = turn_back(keys[:, :, :window])
            local, previous = 0, True
        n = min(TILE, count - done, window - local)
        visible = window if previous else local  # ring slots to look at
        fresh_k, fresh_v = k[:, :, done : done + n], v[:, :, done : done + n]
        keys[:, :, visible : visible + n] = fresh_k
        values[:, :, visible : visible + n] = fresh_v
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, done : done + n],
            keys[:, :, : visible + n],
            values[:, :, : visible + n],
            0.0,
            False,
            attn_mask=_corner(n, local, visible, previous, q.dtype),
            scale=scale,
        )
        outs.append(out)
        lses.append(lse)
        keys[:, :, local : local + n] = fresh_k
        values[:, :, local : local + n] = fresh_v
        local, done = local + n, done + n
    return Part(torch.cat(outs, 2), torch.cat(lses, 2))


@lru_cache(maxsize=256)
def _corner(n: int, local: int, visible: int, previous: bool, dtype: torch.dtype) -> Tensor:
    """(n, visible + n) additive mask: own keys up to oneself, the previous block's from oneself on."""
    mask = torch.zeros(n, visible + n, dtype=dtype)
    row = torch.arange(n)
    mask[:, visible:].masked_fill_(row[None, :] > row[:, None], -torch.inf)
    if previous:
        mask[:, local : local + n].masked_fill_(row[None, :] < row[:, None], -torch.inf)
    return mask
