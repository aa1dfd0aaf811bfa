"""A stream that does not give the model's own numbers does not open; the model decides its logits."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ddposink.caches import parse_policy
from ddposink.streaming import (
    ExactStream,
    NotProvenError,
    ReferenceStream,
    UnsupportedPolicyError,
    evaluate,
    examine,
    inspect,
    open_stream,
    rotation,
)
from ddposink.streaming.head import Head
from ddposink.streaming.positions import Rope
from ddposink.streaming.trunk import Trunk
from helpers.families import build

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 131, "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
ODD_LOGITS = {
    "soft cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=16, query_pre_attn_scalar=16, sliding_window=24,
                     final_logit_softcapping=3.0, attn_logit_softcapping=2.0)
    ),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625)),
}  # fmt: skip


def odd(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return ODD_LOGITS[kind]().eval()


def ids(count: int = 90) -> torch.Tensor:
    return torch.randint(0, 131, (count,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ODD_LOGITS)
@pytest.mark.parametrize("policy", ["dense", "sink 4+28", "window 9"])
def test_what_a_model_does_after_its_head_is_in_the_numbers(kind: str, policy: str) -> None:
    model, text = odd(kind), ids()
    found = evaluate(open_stream(model, parse_policy(policy), chunk=19).stream, text)
    if policy == "dense":
        with torch.no_grad():
            logits = model(text[None]).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], text[1:], reduction="none").numpy()
    else:
        expected = evaluate(ReferenceStream(model, parse_policy(policy), inspect(model).positions), text)
    assert abs(found - expected).max() < 1e-4


def test_only_a_plain_projection_is_taken_for_one() -> None:
    assert type(Head.of(Trunk.of(build("llama"))).logits) is torch.nn.Linear
    for kind in ODD_LOGITS:
        trunk = Trunk.of(model := odd(kind))
        hidden = trunk.hidden(ids(5)[None], torch.arange(5)[None])[0]
        head = Head.of(trunk)
        assert type(head.logits) is not torch.nn.Linear
        with torch.no_grad():
            torch.testing.assert_close(head.logits(hidden), model(ids(5)[None]).logits[0])


def test_logits_without_what_follows_the_head_are_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was published before: a projection where the model divides by eight."""
    model = odd("divided")
    monkeypatch.setattr(Head, "of", classmethod(lambda cls, trunk: cls(trunk.model.get_output_embeddings())))
    with torch.no_grad():
        logits = model(
            examined := torch.randint(3, 131, (17,), generator=torch.Generator().manual_seed(7))[None]
        )
    right = torch.nn.functional.cross_entropy(logits.logits[0, :-1], examined[0, 1:])
    for policy in ("dense", "sink 4+28"):
        with pytest.raises(NotProvenError, match="nothing evicted") as refused:
            open_stream(model, parse_policy(policy))
        numbers = [float(x) for x in re.findall(r"\d+\.\d{6}", str(refused.value))]
        assert numbers[1] == pytest.approx(float(right), abs=1e-4)
        assert abs(numbers[0] - numbers[1]) > 0.1


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("frequencies", lambda rope: Rope(rope.inv_freq * 1.02, rope.start, rope.interleaved)),
        ("pairs", lambda rope: Rope(rope.inv_freq, rope.start, not rope.interleaved)),
        ("none", lambda rope: Rope(torch.zeros(0))),
    ],
)
def test_a_wrong_rotation_is_refused_under_eviction(
    fault: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = rotation.find_rotation
    monkeypatch.setattr(examine, "find_rotation", lambda *arguments: wrong(find(*arguments)))  # type: ignore[operator]
    with pytest.raises(NotProvenError, match=r"the plain reference gives|plain forward of the model gives"):
        open_stream(build("llama"), parse_policy("sink 4+28"))


def test_positions_stuck_at_the_budget_are_refused() -> None:
    """The label `sink S+R` was once given to keys that are never re-based."""

    class Stuck(ExactStream):
        def _forward(self, hook, ids):  # type: ignore[no-untyped-def]
            forward = hook.forward
            hook.forward = lambda ids, positions: forward(ids, positions.clamp(max=4))
            try:
                return super()._forward(hook, ids)
            finally:
                hook.forward = forward

    from ddposink.streaming.proof import prove

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)).eval()
    layout, policy = inspect(model).positions, parse_policy("sink 4+28")
    prove(lambda p, found, chunk, _: ExactStream(model, p, found, chunk), policy, Trunk.of(model), layout)
    with pytest.raises(NotProvenError):
        prove(lambda p, found, chunk, _: Stuck(model, p, found, chunk), policy, Trunk.of(model), layout)


def test_half_precision_has_a_tolerance_of_its_own() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for family in ("llama", "gpt-neox", "mistral-sliding", "mpt", "gpt-oss"):
            model = build(family).to(dtype)
            for policy in ("dense", "sink 4+28"):
                open_stream(model, parse_policy(policy))


def test_text_positions_beyond_a_length_dependent_scaling_are_refused() -> None:
    model, policy = build("llama-dynamic"), parse_policy("sink 4+28 positions=absolute")
    open_stream(model, policy, length=512)
    with pytest.raises(UnsupportedPolicyError, match=r"513 tokens.*512 positions"):
        open_stream(model, policy, length=513)
