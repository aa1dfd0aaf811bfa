"""The paths for a GPU without a GPU: tensors that know shape and device, but hold no values.

Caught here, long before a GPU is seen: a tensor left on the host, shapes that do not fit, and whatever
would stop a decode step from being recorded as a CUDA graph. What is *computed* is `tests/gpu`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionMaskInterface

from ddposink.caches import parse_policy
from ddposink.streaming import DenseStream, ExactStream, inspect
from ddposink.streaming.decode import DecodeStream
from ddposink.streaming.kernel import _fused
from helpers.families import FAMILIES, build

ELSEWHERE = torch.device("meta")
# The number of tokens routed to an expert is data.
UNRECORDABLE = {"gpt-oss", "llama-dynamic"}


class HostNeededError(RuntimeError):
    """An operator that a recording of kernels forbids."""


class Recording(TorchDispatchMode):
    """Refuses what CUDA refuses while a graph is being captured."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero"):
            raise HostNeededError(f"{name} asks the device for a value")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        out = func(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for one in tensors + results:
            if one.device.type == "cpu" and name != "detach":
                raise HostNeededError(f"{name} touches a tensor of shape {tuple(one.shape)} on the host")
        return out


def elsewhere(family: str, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, Any]:
    """A model that has lost its values, and its layout: read off while it had them."""
    model = build(family)
    layout = inspect(model).positions
    assert layout is not None
    for module in model.modules():  # not Module.to: frequencies stay float32, as in a loaded model
        for name, old in module._parameters.items():
            if old is not None:
                new = old.to(ELSEWHERE, dtype)
                module._parameters[name] = nn.Parameter(new, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(ELSEWHERE)
    return model, layout.to(ELSEWHERE)


def tokens(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.long, device=ELSEWHERE)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - UNRECORDABLE))
@pytest.mark.parametrize("policy", ["window 12", "sink 3+9", "sink 2+7 positions=absolute"])
def test_a_decode_step_can_be_recorded(family: str, policy: str) -> None:
    model, positions = elsewhere(family)
    stream = DecodeStream(model, parse_policy(policy), positions, mode="eager")
    with stream.attached():
        stream.feed(tokens(1))  # allocates the ring
        seen = torch.full((), 40, device=ELSEWHERE)
        with Recording():
            hidden = stream._advance(stream._hook, tokens(1)[None], seen)
    assert hidden.device == ELSEWHERE
    assert hidden.shape == (1, 64)


@pytest.mark.parametrize("family", ["bloom", "falcon-7b-like", "falcon-40b-like", "mpt"])
def test_a_mask_filled_from_the_host_is_never_built(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Recording` cannot see: a scalar that is made on the host and copied."""

    def refused(**_: Any) -> None:
        raise HostNeededError("the mask for eager attention is filled from the host")

    model = build(family)
    layout, before = inspect(model).positions, model.config._attn_implementation
    assert layout is not None
    stream = DecodeStream(model, parse_policy("sink 3+9"), layout, mode="eager")
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "eager", refused)
    with stream.attached():
        stream.feed(torch.tensor([1]))
    assert model.config._attn_implementation == before


def test_what_cannot_be_recorded_is_noticed_here() -> None:
    model, positions = elsewhere("llama")
    stream = DecodeStream(model, parse_policy("sink 3+9"), positions, mode="eager")
    with stream.attached():
        stream.feed(tokens(1))
        with Recording(), pytest.raises(HostNeededError, match="on the host"):
            stream._advance(stream._hook, tokens(1)[None], torch.tensor(40).to(ELSEWHERE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gpt-neox", "bloom"])
def test_parallel_evaluation_stays_on_the_device(family: str, dtype: torch.dtype) -> None:
    model, positions = elsewhere(family, dtype)
    streams = [
        ExactStream(model, parse_policy("sink 3+16"), positions, 48),
        ExactStream(model, parse_policy("window 40"), positions, 16),
        ExactStream(model, parse_policy("sink 2+9 positions=absolute"), positions, 32),
    ]
    if "sliding" not in family:
        streams.append(DenseStream(model, positions, 32))
    for stream in streams:
        with stream.attached():
            while stream.seen < 90:
                size = stream.next_size(90 - stream.seen)
                hidden = stream.feed(tokens(size))
                assert (hidden.shape, hidden.device, hidden.dtype) == ((size, 64), ELSEWHERE, dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_kernels_of_cuda_take_and_give_what_we_think(dtype: torch.dtype, causal: bool) -> None:
    """Names, arguments and result shapes of private operators, asked of torch's own registry."""
    with FakeTensorMode():
        q = torch.empty(2, 8, 33, 64, device="cuda", dtype=dtype)
        k = torch.empty(2, 2, 33 if causal else 70, 64, device="cuda", dtype=dtype)
        part = _fused(q, k, k, 0.125, causal)
    assert (part.out.shape, part.out.dtype) == (q.shape, dtype)
    assert (part.lse.shape, part.lse.dtype) == (q.shape[:3], torch.float32)
