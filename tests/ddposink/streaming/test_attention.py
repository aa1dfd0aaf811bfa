"""Attention recomputed: the library's own weights, sums, learned sink logits, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from ddposink.streaming import NotProvenError, UnsupportedModelError
from ddposink.streaming import attention as module
from ddposink.streaming.attention import Attention, weights
from helpers.families import FAMILIES, LEARNED, VOCAB, build

LENGTH = 53  # past every window of these families, and divided by no chunk


def ids(seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def eager(model: nn.Module, text: Tensor) -> Tensor:
    """(layers, H, L, L) as the library returns them."""
    plain = type(model)._from_config(model.config, attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        return torch.cat(plain(input_ids=text[None], output_attentions=True).attentions)


@pytest.mark.parametrize("name", [*FAMILIES, *LEARNED])
def test_shares_are_those_of_the_librarys_own_weights(name: str) -> None:
    model, text = build(name), ids()
    found, expected = Attention(model, chunk=16).read(text), eager(model, text)
    layers, heads = expected.shape[:2]
    assert found.layer.tolist() == [layer for layer in range(layers) for _ in range(heads)]
    assert found.head.tolist() == list(range(heads)) * layers
    rows = expected.flatten(0, 1)
    torch.testing.assert_close(found.first, rows[..., 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.few, rows[..., :4].sum(-1), atol=2e-5, rtol=0)
    if found.learned is not None:
        torch.testing.assert_close(found.learned, 1 - rows.sum(-1), atol=2e-5, rtol=0)
    assert (found.learned is not None) == (name == "gpt-oss")


def test_a_soft_cap_is_part_of_the_weights() -> None:
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
            num_key_value_heads=2, vocab_size=VOCAB, initializer_range=0.4, sliding_window=20,
            attn_logit_softcapping=2.0, query_pre_attn_scalar=4, bos_token_id=None, eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()  # fmt: skip
    found, rows = Attention(model, chunk=16).read(ids()), eager(model, ids()).flatten(0, 1)
    torch.testing.assert_close(found.first, rows[..., 0], atol=2e-5, rtol=0)


def test_a_learned_logit_that_grows_takes_the_attention() -> None:
    model, before = build("gpt-oss"), None
    for logit in (-20.0, 0.0, 20.0):
        for block in model.model.layers:
            nn.init.constant_(block.self_attn.sinks, logit)
        found = Attention(model).read(ids())
        assert found.learned is not None
        share = float(found.learned.mean())
        assert before is None or share > before
        before = share
    assert before == pytest.approx(1, abs=1e-3)
    assert float(found.few.max()) < 1e-3


@given(
    heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    length=st.integers(1, 30),
    start=st.integers(0, 5),
    window=st.none() | st.integers(1, 12),
    alibi=st.booleans(),
    softcap=st.none() | st.just(5.0),
    learned=st.booleans(),
    size=st.sampled_from([0.1, 10.0, 1e4]),
)
@settings(deadline=None, max_examples=60)
def test_all_attention_is_spent_and_none_of_it_on_what_is_not_seen(
    heads: int, groups: int, length: int, start: int, window: int | None, alibi: bool,
    softcap: float | None, learned: bool, size: float,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(length)
    q = size * torch.randn(1, heads * groups, length, 4, generator=generator)
    k = torch.randn(1, heads, start + length, 4, generator=generator)
    slopes = torch.rand(heads * groups, generator=generator) if alibi else None
    logit = torch.randn(heads * groups, generator=generator) if learned else None
    found = weights(q, k, 0.5, start=start, window=window, slopes=slopes, softcap=softcap, learned=logit)
    assert found.shape == (1, heads * groups, length, start + length + 1)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    torch.testing.assert_close(found.sum(-1), torch.ones(1, heads * groups, length), atol=1e-5, rtol=0)
    distance = torch.arange(start, start + length)[:, None] - torch.arange(start + length)
    unseen = (distance < 0) | (distance >= (window or 10**6))
    assert float(found[..., :-1].masked_select(unseen).abs().sum()) == 0
    assert learned or float(found[..., -1].abs().sum()) == 0


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt-oss"])
def test_the_chunk_does_not_matter(name: str) -> None:
    model = build(name)
    one, all_ = (Attention(model, chunk=chunk).read(ids()) for chunk in (1, 4096))
    torch.testing.assert_close(one.first, all_.first, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.few, all_.few, atol=1e-5, rtol=0)
    assert max(one.worst_sum, all_.worst_sum) < 1e-5


def test_the_model_is_left_as_it_was() -> None:
    model, text = build("llama"), ids()
    before = model(input_ids=text[None]).logits
    Attention(model).read(text)
    assert torch.equal(model(input_ids=text[None]).logits, before)


def test_weights_that_are_not_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = weights

    def wrong(q: Tensor, k: Tensor, scale: float, **more: object) -> Tensor:
        return right(q, k, 2 * scale, **more)

    monkeypatch.setattr(module, "weights", wrong)
    with pytest.raises(NotProvenError, match="with its attention recomputed"):
        Attention(build("llama"))


def test_a_window_of_the_models_own_is_part_of_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    right = weights
    monkeypatch.setattr(module, "weights", lambda *q, **more: right(*q, **more | {"window": None}))
    with pytest.raises(NotProvenError):
        Attention(build("mistral-sliding"))
    Attention(build("mistral"))


def test_a_text_longer_than_learned_positions_is_refused_in_one_sentence() -> None:
    attention = Attention(build("gpt2"))
    with pytest.raises(
        UnsupportedModelError, match=r"^this model does not run as a stream: IndexError"
    ) as told:
        attention.read(ids(length=65))
    assert "\n" not in str(told.value)
