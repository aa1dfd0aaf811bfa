"""Exact parallel evaluation and ring decode beside their peers: SmolLM2-135M on a novel."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bench.track.work import count_work
from benchmarks.plain import ConcatenatingStream
from ddposink.caches import parse_policy
from ddposink.corpora import CorpusRef, load_stream
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import DecodeStream, ExactStream, evaluate, inspect, stream_nll

POLICY = parse_policy("sink 4+1020")
CHUNK = 1024
pytestmark = pytest.mark.timeout(3600)  # minutes each where other work shares the machine


@pytest.fixture(scope="module")
def smollm() -> tuple[nn.Module, Tensor]:
    loaded = load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")
    stream = load_stream(CorpusRef.parse("novel:emma"), loaded.tokenizer, 70_000)
    return loaded.model, torch.from_numpy(stream.ids)


def exact(model: nn.Module, chunk: int = CHUNK) -> ExactStream:
    return ExactStream(model, POLICY, inspect(model).positions, chunk)


def test_exact_against_token_by_token_reference(duel: Any, smollm: Any) -> None:
    """1,100 tokens at 4+1020, the last 75 with eviction running; the NLLs must be equal."""
    model, ids = smollm[0], smollm[1][:1100]
    ours, peer = [], []
    duel(
        lambda: ours.append(evaluate(exact(model), ids)),
        lambda: peer.append(evaluate(ConcatenatingStream(model, POLICY, inspect(model).positions), ids)),
        against="the token-by-token peer",
        work=1100,
        unit="tok/s",
        rounds=1,
        warm_up=0,  # a minute and more of reference is enough of it
    )
    assert np.abs(ours[0] - peer[0]).max() < 1e-3


@torch.no_grad()
def prefill(model: nn.Module, ids: Tensor) -> None:
    """The physical limit: every chunk on its own, no cache, logits and their cross entropy."""
    for start in range(0, len(ids) - 1, CHUNK):
        piece = ids[start : start + CHUNK + 1]
        logits = model(piece[None, :-1], use_cache=False).logits[0]
        nn.functional.cross_entropy(logits.float(), piece[1:], reduction="none")


@torch.no_grad()
def prefill_with_cache(model: nn.Module, ids: Tensor) -> None:
    """What dense evaluation of a long text is: chunks on the library's growing cache."""
    cache = DynamicCache(config=model.config)
    for start in range(0, len(ids) - 1, CHUNK):
        piece = ids[start : start + CHUNK + 1]
        logits = model(piece[None, :-1], past_key_values=cache).logits[0]
        nn.functional.cross_entropy(logits.float(), piece[1:], reduction="none")


@pytest.mark.parametrize("peer", [prefill, prefill_with_cache], ids=["no-cache", "growing-cache"])
def test_exact_against_dense_prefill(duel: Any, smollm: Any, peer: Any) -> None:
    """4 chunks of 1,024 tokens."""
    model, ids = smollm[0], smollm[1][: 4 * CHUNK + 1]
    duel(
        lambda: evaluate(exact(model), ids),
        lambda: peer(model, ids),
        against=f"dense prefill in chunks of {CHUNK}, {peer.__name__.replace('_', ' ')}",
        work=len(ids),
        unit="tok/s",
        rounds=3,
    )


@pytest.mark.parametrize("name", ["bundled:sink-llama/vanilla", "smollm2-135m"])
def test_cost_per_token_does_not_grow_with_the_text(benchmark: Any, name: str) -> None:
    """One pass over 65,536 tokens: CPU seconds per token by block, and the exact work of a block."""
    loaded = load_model(ModelRef.parse(name), "float32", "cpu")
    model, text = loaded.model, load_stream(CorpusRef.parse("novel:emma"), loaded.tokenizer, 65_537)
    ids = torch.from_numpy(text.ids[:65_537]).long()
    seconds: list[float] = []

    def run() -> None:
        stream, nll = exact(model), np.empty(len(ids) - 1, dtype=np.float32)
        with stream.attached():
            begun, seen = time.process_time(), 0
            for stop in stream_nll(stream, ids, nll):
                now = time.process_time()
                if stop.fed - seen == POLICY.window:  # whole blocks only
                    seconds.append((now - begun) / POLICY.window)
                begun, seen = now, stop.fed

    benchmark.pedantic(run, rounds=1)
    early, late = statistics.median(seconds[:8]), statistics.median(seconds[-8:])
    works = []
    for start in (1024, 1024 + 60 * POLICY.window):
        stream = exact(model)
        with stream.attached():
            stream.feed(ids[:1024])
            stream.state.seen = start
            works.append(count_work(lambda s=stream: s.feed(ids[1024 : 1024 + POLICY.window])))
    assert works[0] == works[1], "the work of a block must not depend on where it is"
    benchmark.extra_info |= {
        "ms_per_token_8k": early * 1e3,
        "ms_per_token_64k": late * 1e3,
        "ratio": late / early,
    }
    print(f"\n8k: {early * 1e3:.3f} ms/token, 64k: {late * 1e3:.3f} ms/token, ratio {late / early:.3f}")


def _filled(model: nn.Module, ids: Tensor) -> ExactStream:
    stream = exact(model)
    with stream.attached():
        while stream.seen < 1024:
            stream.feed(ids[stream.seen : stream.seen + stream.next_size(1024 - stream.seen)])
    return stream


def _peer_from(filled: ExactStream) -> ConcatenatingStream:
    """The plain peer after the same 1,024 tokens, without a minute of feeding them one by one."""
    reference = ConcatenatingStream(filled.model, POLICY, filled.layout)
    for i, layer in filled.state.layers.items():
        rope = filled.layout[i].positions
        back = rope.table(-torch.arange(POLICY.sinks + POLICY.window), torch.float32)
        reference.layers[i] = (rope.turn(layer.k[:, :, :-1], back), layer.v[:, :, :-1].clone())
    reference.seen = reference.held = filled.seen
    reference.text_positions = torch.arange(filled.seen)
    return reference


def _steps(stream: Any, ids: Tensor, model: nn.Module, steps: int) -> None:
    with stream.attached():
        for t in range(steps):
            model.get_output_embeddings()(stream.feed(ids[1024 + t : 1025 + t]))


STEPS = 16


@pytest.mark.parametrize("peer", ["reference", "library-dense"])
def test_ring_decode_at_window_1024(duel: Any, smollm: Any, peer: str) -> None:
    """Some tokens from a full cache of 1,024; the peers start from the same 1,024 tokens."""
    model, ids = smollm
    filled = _filled(model, ids)
    mark = filled.mark(STEPS)

    def ours() -> None:
        filled.rewind(mark)
        _steps(filled.decoder(), ids, model, STEPS)

    if peer == "reference":
        reference = _peer_from(filled)
        start = reference.mark(STEPS)
        decoder = filled.decoder()
        with reference.attached():
            expected = reference.feed(ids[1024:1025])
        with decoder.attached():
            torch.testing.assert_close(decoder.feed(ids[1024:1025]), expected, atol=1e-3, rtol=1e-3)

        def theirs() -> None:
            reference.rewind(start)
            _steps(reference, ids, model, STEPS)
    else:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[None, :1024], past_key_values=cache)

        @torch.no_grad()
        def theirs() -> None:
            if (extra := cache.get_seq_length() - 1024) > 0:
                cache.crop(-extra)
            for t in range(STEPS):
                model(ids[None, 1024 + t : 1025 + t], past_key_values=cache)

    duel(ours, theirs, against=f"{peer} decode", work=STEPS, unit="tok/s", rounds=5)
    assert isinstance(filled.decoder(), DecodeStream)
