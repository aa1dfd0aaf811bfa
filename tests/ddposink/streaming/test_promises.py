"""A policy's name is a promise: what a model cannot do of it is refused, however far the text goes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM

from ddposink.caches import parse_policy
from ddposink.streaming import (
    ExactStream,
    UnsupportedModelError,
    UnsupportedPolicyError,
    evaluate,
    open_stream,
)
from helpers.families import VOCAB, build

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "initializer_range": 0.2,
}  # fmt: skip


def dynamic(limit: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return LlamaForCausalLM(LlamaConfig(**SMALL, max_position_embeddings=limit, rope_parameters=rope)).eval()


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("llama", "window 32 bits=2 positions=library"),
        ("llama", "sink 4+28 bits=4 positions=library"),
        ("gpt2", "quantized 2"),
        ("gpt2", "window 32 bits=8 positions=library"),
    ],
)
def test_bits_that_the_librarys_cache_does_not_have_are_refused(family: str, policy: str) -> None:
    """It would hold full precision under a label that promises a few bits."""
    with pytest.raises(UnsupportedPolicyError, match="not with fewer bits"):
        open_stream(build(family), parse_policy(policy), length=60)


@pytest.mark.parametrize(
    "policy",
    [
        "quantized 8",
        "h2o 32 evict=once:150",
        "sink 4+28 evict=chunk:150",
        "sink 4+28 evict=after-turn",
        "sink 4+28 positions=absolute",
    ],
)
def test_positions_beyond_those_of_one_rotation_are_refused(policy: str) -> None:
    """A scaling that follows the length: keys that are put in at a place have the rotation of another."""
    for length in (60, 200):
        ends = torch.zeros(length, dtype=torch.bool)
        ends[::50] = True
        if length == 60:
            open_stream(dynamic(), parse_policy(policy), length=length, turn_ends=ends)
            continue
        with pytest.raises(UnsupportedPolicyError, match="beyond 64"):
            open_stream(dynamic(), parse_policy(policy), length=length, turn_ends=ends)


@pytest.mark.parametrize("policy", ["sink 4+28 positions=absolute", "h2o 32 evict=once:1400", "quantized 8"])
def test_a_model_that_scales_queries_by_position_is_known_by_then(policy: str) -> None:
    torch.manual_seed(0)
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1000,
        "llama_4_scaling_beta": 3.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0,
        "beta_slow": 1.0,
    }  # fmt: skip
    config = Ministral3Config(**SMALL, head_dim=8, max_position_embeddings=8192, rope_parameters=rope)
    model = Ministral3ForCausalLM(config).eval()
    for positions in ("sink 4+28", "sink 4+28 positions=absolute"):  # nearer than that it is a rotation
        choice = open_stream(model, parse_policy(positions), length=900)
        ids = torch.randint(0, VOCAB, (60,), generator=torch.Generator().manual_seed(1))
        assert evaluate(choice.stream, ids).shape == (59,)
    with pytest.raises((UnsupportedPolicyError, UnsupportedModelError)):
        open_stream(model, parse_policy(policy), length=1500)


def test_how_far_a_schedule_by_turns_goes_is_told_by_the_turns() -> None:
    """Short turns are cut back before the rotation changes, however long the text is."""
    ends = torch.zeros(300, dtype=torch.bool)
    ends[::9] = True
    policy = parse_policy("sink 4+28 evict=after-turn")
    ids = torch.randint(0, VOCAB, (300,), generator=torch.Generator().manual_seed(1))
    found = [
        evaluate(open_stream(dynamic(), policy, evaluator=way, length=300, turn_ends=ends).stream, ids)
        for way in ("auto", "reference")
    ]
    assert abs(found[0] - found[1]).max() < 1e-3


def test_a_stream_of_millions_of_tokens_is_open_to_absolute_positions() -> None:
    choice = open_stream(build("llama"), parse_policy("sink 4+28 positions=absolute"), length=4_000_000)
    assert isinstance(choice.stream, ExactStream)


@pytest.mark.parametrize("text", ["window 10 24", "sink 4+10 24", "h2o 5 12 recent=4"])
def test_two_sizes_are_not_glued_together(text: str) -> None:
    with pytest.raises(ValueError, match="is followed by one size"):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("expected-attention 32 future=0", "future must lie between 1 and 1,000,000"),
        ("expected-attention 32 future=-1", "future must lie between 1 and 1,000,000"),
        (f"random 32 seed={10**23}", "no text and no seed is so large"),
        (f"window {10**20}", "no text and no seed is so large"),
    ],
)
def test_numbers_that_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_policy(text)


def test_a_size_may_have_spaces_and_an_option_comes_once() -> None:
    assert str(parse_policy("sink 4 + 28")) == "sink 4+28"
    with pytest.raises(ValueError, match="has the option 'evict' twice"):
        parse_policy("sink 4+28 evict=token evict=chunk:4")
