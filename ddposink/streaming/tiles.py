"""The two triangles on a CPU: one sliding window over the text, tile by tile.

The fused CPU kernel spends as much on a causal triangle as on most of the square. But in text order,
with the previous block's keys turned one block back, the two triangles of a block are a band: query i
sees keys i … i + R. A tile of queries then needs R + `TILE` neighbouring keys, and the tiles of a block
are a batch whose keys are overlapping views of one buffer: one kernel call per block, nothing to flip,
copy or merge, and a mask that only cuts the corners.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ddposink.streaming.kernel import Part, padded
from ddposink.streaming.state import LayerState, StreamState

TILE = 32  # the kernel's smallest query blocking; fastest of 32 … 1020 where measured


def attend_tiles(
    state: StreamState,
    memory: LayerState,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    turn_back: Callable[[Tensor], Tensor],
) -> Part:
    """All keys but the sinks, for q (1,H,n,D) from ``state.local`` of a block after the first.

    n is a part of one block or several whole ones. ``k``, ``v`` (1,Hkv,n,D) are the queries' own;
    ``turn_back`` puts keys one block further away. The carried ``memory`` is not written.
    """
    s, window, local, count = state.sinks, state.window, state.local, q.shape[2]
    if k.shape[3] != v.shape[3]:
        return _of_one_size(state, memory, q, k, v, scale, turn_back)
    size = min(count, window)
    keys = k.new_empty(k.shape[1], window + size, k.shape[3])
    values = v.new_empty(v.shape[1], window + size, v.shape[3])
    older, newer = slice(s + local, s + window), slice(s, s + local)  # the ring in text order
    keys[:, : window - local] = turn_back(memory.k[:, :, older])[0]
    keys[:, window - local : window] = memory.k[0, :, newer]
    values[:, : window - local] = memory.v[0, :, older]
    values[:, window - local : window] = memory.v[0, :, newer]
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for done in range(0, count, size):
        if done:  # the block just finished becomes the previous one
            keys[:, :window] = turn_back(k[:, :, done - size : done])[0]
            values[:, :window] = v[0, :, done - size : done]
        keys[:, window:] = k[0, :, done : done + size]
        values[:, window:] = v[0, :, done : done + size]
        _slide(q[0, :, done : done + size], keys, values, scale, window, outs, lses)
    return Part(torch.cat(outs).transpose(0, 1)[None], torch.cat(lses).transpose(0, 1)[None])


def _of_one_size(
    state: StreamState,
    memory: LayerState,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    turn_back: Callable[[Tensor], Tensor],
) -> Part:
    """The same for keys and values of different sizes (latent attention): padded, and cut again."""
    size = k.shape[3]
    held = LayerState(*padded(memory.k, memory.k, memory.v)[1:])
    part = attend_tiles(
        state, held, *padded(q, k, v), scale, lambda x: padded(x, turn_back(x[..., :size]), v)[1]
    )
    return Part(part.out[..., : v.shape[3]], part.lse)


def _slide(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int, outs: list[Tensor], lses: list[Tensor]
) -> None:
    """q (H,n,D) over keys, values (Hkv,window+n,D): query i sees i … i + window. Appends (n',H,…) pieces."""
    count = q.shape[1]
    whole = count - count % TILE
    for start, stop, n in ((0, whole, TILE), (whole, count, count - whole)):
        if start == stop:
            continue
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, start:stop].unflatten(1, (-1, n)).transpose(0, 1),
            _views(keys[:, start : stop + window], window + n, n),
            _views(values[:, start : stop + window], window + n, n),
            0.0,
            False,
            attn_mask=_band(n, window, q.dtype),
            scale=scale,
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))
        lses.append(lse.transpose(1, 2).flatten(0, 1))


def _views(x: Tensor, size: int, step: int) -> Tensor:
    """(Hkv, N, D) -> (tiles, Hkv, size, D): overlapping windows, without a copy."""
    return x.unfold(1, size, step).permute(1, 0, 3, 2)


@lru_cache(maxsize=64)
def _band(n: int, window: int, dtype: torch.dtype) -> Tensor:
    """(n, window + n) additive mask that lets row i see columns i … i + window."""
    ones = torch.ones(n, window + n, dtype=torch.bool)
    return torch.zeros(n, window + n, dtype=dtype).masked_fill_(
        ~(ones.triu() & ones.tril(window)), -torch.inf
    )
