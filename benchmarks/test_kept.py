"""The general stream of policies that choose by content beside the exact window: SmolLM2-135M on a novel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddposink.caches import parse_policy
from ddposink.corpora import CorpusRef, load_stream
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import evaluate, open_stream

LENGTH = 1664
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def smollm() -> tuple[nn.Module, Tensor]:
    loaded = load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")
    stream = load_stream(CorpusRef.parse("novel:emma"), loaded.tokenizer, 8192)
    return loaded.model, torch.from_numpy(stream.ids)


def read(model: nn.Module, text: str, ids: Tensor) -> Any:
    """The stream, after it has read ``ids``."""
    stream = open_stream(model, parse_policy(text)).stream
    evaluate(stream, ids)
    return stream


@pytest.mark.parametrize("kind", ["snapkv", "h2o", "tova", "knorm", "expected-attention"])
def test_a_kept_set_costs_little_more_than_the_exact_window(duel: Any, smollm: Any, kind: str) -> None:
    """Budget 512, evicting every 64 tokens; wanted: at most 1.5 times the window's time a token."""
    model, ids = smollm[0], smollm[1][:LENGTH]
    duel(
        lambda: read(model, f"{kind} 512 evict=chunk:64", ids),
        lambda: read(model, "window 512", ids),
        against="the exact window of 512",
        work=LENGTH,
        unit="tok/s",
    )


def test_memory_does_not_grow_with_the_text(smollm: Any) -> None:
    """Bytes of keys, values and everything a policy remembers, at 1,024 and at 8,192 tokens."""
    for kind in ("snapkv", "h2o", "expected-attention", "random"):
        short, long = (read(smollm[0], f"{kind} 512 evict=chunk:64", smollm[1][:n]) for n in (1024, 8192))
        assert short.nbytes() == long.nbytes() == short.predicted_bytes()
        assert short.state_bytes() == long.state_bytes()


def test_four_bits_hold_at_most_three_tenths_of_half_precision(smollm: Any) -> None:
    """Measured, of real tensors: scales and offsets included."""
    dense, packed = (read(smollm[0], text, smollm[1][:1024]) for text in ("dense", "quantized 4"))
    share = packed.nbytes() / (dense.nbytes() / 2)  # dense is float32 here
    print(f"\n4 bits hold {share:.3f} of half precision")
    assert share <= 0.3
