"""Attention that also returns its log-sum-exp, and the merge of several such parts.

A softmax over the union of key sets is the average of the softmaxes over each set, weighted by
softmax of their log-sum-exps. That is what lets a window be cut into triangles that ordinary causal
kernels compute. The fused kernels that return the log-sum-exp have private names; they are touched
only here, with a plain fallback.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Part:
    """Attention over one set of keys: ``out`` (B,H,L,D) and ``lse`` (B,H,L) in float32 or wider."""

    out: Tensor
    lse: Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    causal: bool = False,
    slopes: Tensor | None = None,
    key_positions: Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """Softmax attention of ``q`` (B,H,L,D) over ``k`` (B,Hkv,M,D), ``v`` (B,Hkv,M,Dv), with its log-sum-exp.

    ``causal`` needs L == M. ``softcap`` bounds scores as Gemma 2 does (see `attend_masked`). With ``slopes``
    (H,) the ALiBi term ``slopes[h] * key_positions[m]`` is added to every score (Press et al. 2022); it
    rides in one extra head dimension, so the kernel stays an ordinary one. Scores
    are softmaxed in float32 by every kernel.
    """
    if softcap is not None:
        return attend_masked(q, k, v, scale, _triangle(q, k) if causal else None, softcap=softcap)
    if slopes is None:
        return _fused(*padded(q, k, v), scale, causal, v.shape[-1])
    assert key_positions is not None
    pad = 1 if q.device.type == "cpu" else 8  # CUDA kernels want head dimensions in multiples of 8
    extra_q = q.new_zeros(*q.shape[:-1], pad)
    extra_q[..., 0] = (slopes / scale).view(1, -1, 1)
    extra_k = k.new_zeros(*k.shape[:-1], pad)
    extra_k[..., 0] = key_positions
    wide_q, wide_k = torch.cat([q, extra_q], -1), torch.cat([k, extra_k], -1)
    return _fused(*padded(wide_q, wide_k, v), scale, causal, v.shape[-1])


def padded(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with heads of one size, as kernels want them: zeros change neither scores nor values."""
    size = max(k.shape[-1], v.shape[-1])
    q, k, v = (x if x.shape[-1] == size else nn.functional.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
    return q, k, v


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, size: int | None = None) -> Part:
    """Attention by one kernel; of every output only the first ``size`` dimensions."""
    part = _kernel(q, k, v, scale, causal)
    return part if size in (None, v.shape[-1]) else Part(part.out[..., :size], part.lse)


def _triangle(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()


def _kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Part:
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return Part(out, lse)
    if q.device.type == "cuda" and q.shape[-1] <= 256 and q.dtype is not torch.float64:  # they have no double
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if q.dtype is torch.float32:
            out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
                q, k, v, None, True, 0.0, causal, scale=scale
            )
            return Part(out, lse.narrow(-1, 0, q.shape[2]))  # the kernel pads rows to a multiple of 32
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return Part(out, lse)
    return attend_masked(q, k, v, scale, _triangle(q, k) if causal else None)


def attend_masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Part:
    """The plain form, O(L*M) memory: ``visible`` (…,L,M) bool, ``bias`` (…,H,L,M) added to scores.

    ``softcap`` c first turns a score x into c·tanh(x/c) (Gemma 2). A row that sees nothing has a
    log-sum-exp of -inf and a zero output.
    """
    scores = masked_scores(q, k, scale, visible, bias, softcap)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return Part(weights.to(v.dtype) @ for_heads(v, q), lse)


def masked_scores(
    q: Tensor,
    k: Tensor,
    scale: float,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """(B,H,L,M) scores as they go into a softmax, in float32 at least; see `attend_masked`."""
    scores = q @ for_heads(k, q).transpose(-1, -2)
    scores = capped(scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale, softcap)
    if bias is not None:
        scores = scores + bias
    return scores if visible is None else scores.masked_fill(~visible, -torch.inf)


def for_heads(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B,Hkv,M,D) for every head of ``q`` (B,H,L,D): (B,H,M,D)."""
    groups = q.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores bounded by ``softcap``, where there is one."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def merge(parts: list[Part], sink_logit: Tensor | None = None) -> Tensor:
    """One softmax over the union of the parts' keys: (B,H,L,D). Overwrites ``parts[0].out``.

    ``sink_logit`` (H,) is a learned logit without a value (GPT-OSS): it enters the denominator only.
    """
    if len(parts) == 1 and sink_logit is None:
        return parts[0].out
    total = parts[0].lse
    for part in parts[1:]:
        total = torch.logaddexp(total, part.lse)
    if sink_logit is not None:
        total = torch.logaddexp(total, sink_logit.float().view(1, -1, 1))
    out = parts[0].out
    out.mul_(torch.exp(parts[0].lse - total)[..., None].to(out.dtype))
    for part in parts[1:]:
        out.addcmul_(part.out, torch.exp(part.lse - total)[..., None].to(out.dtype))
    return out
