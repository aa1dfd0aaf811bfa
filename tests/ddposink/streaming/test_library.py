"""The library's own cache: hybrid and latent models, what is counted, and coming back to a point."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from ddposink.caches import parse_policy
from ddposink.streaming import LibraryStream, UnsupportedPolicyError, evaluate, open_stream
from helpers.families import build

VOCAB = 131
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "qwen3-next": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(**SMALL, head_dim=16, linear_key_head_dim=16, linear_value_head_dim=16,
                        linear_num_key_heads=2, linear_num_value_heads=4, moe_intermediate_size=32,
                        shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    ),
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"] * 2)),
    "deepseek-v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**SMALL | {"num_key_value_heads": 4}, moe_intermediate_size=32, n_routed_experts=4,
                         n_group=1, topk_group=1, num_experts_per_tok=2, kv_lora_rank=16, q_lora_rank=24,
                         qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, first_k_dense_replace=2)
    ),
}  # fmt: skip


def model_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model


def ids(count: int = 90) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(1))


def one_forward(model: torch.nn.Module, text: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        logits = model(text[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], text[1:], reduction="none").numpy()


@pytest.mark.parametrize("name", MODELS)
def test_dense_in_chunks_is_one_forward(name: str) -> None:
    model, text = model_of(name), ids()
    for chunk in (1, 7, 90):
        stream = open_stream(model, parse_policy("dense"), chunk=chunk).stream
        assert stream.path == "library"
        assert abs(evaluate(stream, text) - one_forward(model, text)).max() < 1e-4, chunk


@pytest.mark.parametrize("name", MODELS)
def test_bytes_count_what_is_held(name: str) -> None:
    """Keys and values, or latents, per token; recurrent and convolution states beside them."""
    model, text = model_of(name), ids()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(text[None], past_key_values=cache)
    tokens = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    states = [
        state
        for layer in cache.layers
        for part in ("conv_states", "recurrent_states")
        for state in getattr(layer, part, {}).values()
    ]
    stream = open_stream(model, parse_policy("dense"), chunk=16).stream
    evaluate(stream, text)
    assert stream.nbytes() == stream.predicted_bytes() == sum(x.nbytes for x in tokens if x is not None)
    assert stream.state_bytes() == sum(x.nbytes for x in states if x is not None)
    assert (stream.state_bytes() > 0) == (name != "deepseek-v3")
    if name == "deepseek-v3":  # a latent of 16 and a rotary key of 8 numbers, not 4 heads of keys and values
        assert stream.nbytes() == len(text) * 4 * (16 + 8) * 4


@pytest.mark.parametrize("name", MODELS)
def test_rewinding_restores_recurrent_state(name: str) -> None:
    model, text = model_of(name), ids()
    expected = one_forward(model, text)
    stream = LibraryStream(model, parse_policy("dense"), 16)
    with stream.attached():
        stream.feed(text[:40])
        mark = stream.mark(9)
        before = copy.deepcopy([vars(layer) for layer in stream.cache.layers])
        for _ in range(2):  # a mark may be come back to more than once
            for token in range(9):
                stream.feed(text[token : token + 1])
            stream.rewind(mark)
        _assert_same(before, [vars(layer) for layer in stream.cache.layers])
        assert (stream.seen, stream.held, stream.calls_per_layer) == (
            40,
            40,
            1 if stream.calls_per_layer else None,
        )
        hidden = stream.feed(text[40:])
        logits = stream.head.logits(hidden[:-1])
    found = torch.nn.functional.cross_entropy(logits, text[41:], reduction="none").numpy()
    assert abs(found - expected[40:]).max() < 1e-4


def _assert_same(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):  # type: ignore[call-overload]
            _assert_same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("name", ["qwen3-next", "lfm2"])
def test_bounded_policies_on_recurrent_models_are_refused(name: str) -> None:
    for policy in ("sink 4+28", "window 32"):
        with pytest.raises(UnsupportedPolicyError, match="recurrent or convolutional") as refused:
            open_stream(model_of(name), parse_policy(policy))
        assert "positions=library" not in str(refused.value)  # no way out is offered that is none
        with pytest.raises(UnsupportedPolicyError, match="no plain keys and values"):
            open_stream(model_of(name), parse_policy(f"{policy} positions=library"))


def test_attention_calls_are_counted_not_assumed() -> None:
    """Ten forwards of a chunk, whatever was decoded and taken back meanwhile."""
    model, text = build("mistral-sliding"), ids(80)
    stream = open_stream(model, parse_policy("dense"), chunk=8).stream
    assert stream.path == "library"
    with stream.attached():
        for start in range(0, 80, 8):
            stream.feed(text[start : start + 8])
            mark = stream.mark(3)
            with stream.decoder().attached():
                for token in range(3):
                    stream.decoder().feed(text[token : token + 1])
            stream.rewind(mark)
    assert stream.calls_per_layer == 10
    attention = model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    stream = LibraryStream(model, parse_policy("dense"), 8)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with stream.attached():
        stream.feed(text[:8])
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
