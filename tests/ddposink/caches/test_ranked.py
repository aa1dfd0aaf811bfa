"""Policies that choose by content: their text form, budgets in tokens, bytes and shares, and refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddposink.caches import POLICIES, CacheShape, Ranked, in_tokens, parse_policy
from ddposink.caches.refused import refusal
from ddposink.models.shapes import SHAPES
from helpers.pages import ROOT

SMOLLM = CacheShape.from_config(SHAPES["smollm2-135m"], 4)  # 30 layers of 3 heads of 64: 46,080 bytes a token
RANKED = [kind for kind, policy in POLICIES.items() if issubclass(policy, Ranked)]


@pytest.mark.parametrize(
    "text",
    [
        "h2o 512",
        "h2o 512 recent=0 average=true",
        "snapkv 512 recent=32 kernel=7 positions=absolute evict=once:2048",
        "pyramidkv 256 beta=5 evict=chunk:64",
        "expected-attention 512 sinks=0 future=64",
        "random 512 sinks=4 recent=64 seed=3 evict=chunk:64 bits=8",
        "quantized fp8",
        "sink 4+508 bits=4",
        "recompute 512 stride=64",
        "static 4096",
        "offloaded",
    ],
)
def test_labels_read_back(text: str) -> None:
    assert parse_policy(text).label == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h2o", "written with a budget, 'h2o 512'"),
        ("h20 512", "did you mean 'h2o'"),
        ("h2o 512 recent=600", "below the 0 sinks and 600 recent tokens"),
        ("knorm 3 sinks=4", "must be at least 4"),
        ("knorm 0", "must be at least 1"),
        ("snapkv 512 kernal=3", "did you mean 'kernel'"),
        ("snapkv 512 kernel=4", "kernel must be odd"),
        ("h2o 512 average=yes", "average is true or false"),
        ("random 512 seed=x", r"seed is a number \(int\)"),
        ("h2o 50%", "needs evict=once:N"),
        ("h2o 512 positions=library", "has no positions=library"),
        ("h2o 512 recent=512 evict=turn", "evict=turn needs room"),
        ("quantized 3", "one of 2, 4, 8, fp8"),
        ("sink 4+8 bits=5", "bits must be one of"),
        ("recompute 8 stride=9", "stride must be between 1 and the window of 8"),
        ("static", "written 'static 4096'"),
        ("offloaded 5", "takes no size"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_policy(text)


def test_a_share_is_of_what_is_read_at_once() -> None:
    policy = parse_policy("snapkv 25% evict=once:2048")
    assert policy.label == "snapkv 512 evict=once:2048"
    assert (policy.cached(2047), policy.cached(2048), policy.cached(2050)) == (2047, 512, 514)
    assert (policy.evicts_from, parse_policy("h2o 100% evict=once:64").evicts_from) == (2048, None)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("h2o 22.5MiB", "h2o 512"),
        ("h2o 23592959B evict=chunk:64", "h2o 511 evict=chunk:64"),
        ("sink 4+22.5MiB", "sink 4+508"),
        ("window 1.5GB", "window 32552"),
        ("snapkv 22.5furlongs", "snapkv 22.5furlongs"),  # refused by the policy itself
        ("snapkv 22.5MiB bits=4", "snapkv 3640 bits=4"),
        ("snapkv 512", "snapkv 512"),
        ("dense", "dense"),
    ],
)
def test_bytes_become_the_tokens_that_they_buy(text: str, tokens: str) -> None:
    assert in_tokens(text, SMOLLM) == tokens


def test_less_than_one_token_buys_nothing() -> None:
    with pytest.raises(ValueError, match=r"46079B is too small: one token takes 46,080 bytes in 30 layers"):
        in_tokens("h2o 46079B", SMOLLM)
    with pytest.raises(ValueError, match="4 sinks and one token take 230,400 bytes"):
        in_tokens("sink 4+200kB", SMOLLM)


@given(
    kind=st.sampled_from(["h2o", "sink 4+", "window"]),
    mib=st.floats(0.5, 500),
    bits=st.sampled_from([None, "2", "4", "8", "fp8"]),
)
def test_a_budget_in_bytes_is_used_and_not_exceeded(kind: str, mib: float, bits: str | None) -> None:
    text = f"{kind}{'' if kind.endswith('+') else ' '}{mib:.3f}MiB" + (f" bits={bits}" if bits else "")
    policy = parse_policy(in_tokens(text, SMOLLM))
    held, asked = policy.nbytes(SMOLLM, 1 << 24), float(f"{mib:.3f}") * 2**20
    assert held <= asked < held + SMOLLM.layers * SMOLLM.token_bytes(bits)


@given(
    kind=st.sampled_from(RANKED),
    size=st.integers(8, 600),
    evict=st.sampled_from(["token", "chunk:7", "chunk:64", "once:100"]),
    length=st.integers(0, 2000),
    layers=st.integers(1, 40),
)
def test_layers_share_the_budget(kind: str, size: int, evict: str, length: int, layers: int) -> None:
    policy = parse_policy(f"{kind} {size} evict={evict}")
    assert isinstance(policy, Ranked)
    budgets = policy.layer_budgets(layers)
    assert sum(one or 0 for one in budgets) == size * layers
    assert min(one or 0 for one in budgets) >= policy.sinks + policy.window
    start, held = policy.evicts_from, policy.slots(length, layers)
    assert all(0 <= one <= length for one in held)
    if start is None or length < start:
        assert held == [length] * layers
    tiny = policy.resized(5)
    assert tiny.budget == 5


def test_policies_of_one_family_differ_in_size_alone() -> None:
    assert parse_policy("h2o 512 evict=chunk:64").family == parse_policy("h2o 64 evict=chunk:64").family
    assert (
        parse_policy("sink 4+60").family
        == parse_policy("sink 4+28").family
        != parse_policy("sink 2+28").family
    )
    assert parse_policy("quantized 4").family == "quantized 4"
    assert parse_policy("dense").family == "dense"
    assert parse_policy("sink 4+60 bits=4").family == "sink 4+… bits=4"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "caches latents"),
        ({"model_type": "mamba2"}, "is recurrent"),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            "linear_attention",
        ),
        ({"model_type": "gemma3", "text_config": {"layer_types": ["sliding_attention"]}}, "sliding layers"),
    ],
)
def test_a_model_that_a_policy_cannot_be_defined_on_is_refused_by_its_configuration(
    config: dict[str, object], message: str
) -> None:
    for text in ("h2o 512", "quantized 4", "sink 4+8 evict=once:64"):
        assert message in str(refusal(parse_policy(text), config))
    assert refusal(parse_policy("sink 4+508"), config) is None
    assert refusal(parse_policy("h2o 512"), dict(SHAPES["llama-2-7b"])) is None


def test_the_reference_page_has_every_policy() -> None:
    page = (ROOT / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
    assert [kind for kind in POLICIES if f"| `{kind}" not in page] == []
