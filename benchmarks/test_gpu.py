"""On a GPU: how near ring decode comes to the memory's speed, and what exact parallel evaluation saves.

Run with ``python -m pytest benchmarks/test_gpu.py -o addopts= --benchmark-only``. Models of true shape with
random weights in bfloat16; nothing is downloaded. DDPO on a GPU is in test_ddpo.py (``-m gpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from gpu_measures import copy_rate, fill, library_step, per_step, ring_step, seconds, traffic
from torch import Tensor, nn

from ddposink.caches import parse_policy
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import DecodeStream, ExactStream, evaluate, inspect

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(530),
]
POLICY = parse_policy("sink 4+1020")
CONTEXT = 2048
STEPS = 64
MODELS = ["random:llama-2-7b", "random:llama-3-8b", "random:smollm2-135m"]
OF_THE_BOUND, OF_THE_LIBRARY, OF_STEPWISE = 0.6, 3.0, 100.0  # what we aim at, for a 7B model


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, Tensor]]:
    model = load_model(ModelRef.parse(request.param), "bfloat16", "cuda").model
    ids = torch.randint(0, model.config.vocab_size, (32_769,), generator=torch.Generator().manual_seed(0))
    yield request.param, model, ids.cuda()
    del model
    torch.cuda.empty_cache()


def exact(model: nn.Module, decode: str = "auto") -> ExactStream:
    return ExactStream(model, POLICY, inspect(model).positions, 8 * POLICY.window, decode=decode)


@contextmanager
def decoding(stream: ExactStream, ids: Tensor) -> Iterator[Callable[[], Tensor]]:
    """A decode step after the context has been read and one step, which is recorded or compiled, was made."""
    with stream.attached():
        fill(stream, ids, CONTEXT)
        with stream.decoder().attached() as decoder:
            step = ring_step(decoder, ids)
            step()
            yield step


def note(benchmark: Any, name: str, value: float, aim: float | None, **more: object) -> None:
    benchmark.extra_info |= {name: value, "aim": aim, **more, "device": torch.cuda.get_device_name()}
    print(f"\n{name}: {value:.3f}" + (f" (aim {aim:g})" if aim else ""), more)


@pytest.mark.parametrize("decode", ["eager", "graph", "compile"])
def test_ring_decode_against_the_memory_bandwidth(benchmark: Any, loaded: Any, decode: str) -> None:
    """(weights + KV bytes) / copy rate is the shortest time a token can take at batch 1."""
    name, model, ids = loaded
    stream = exact(model, decode)
    with decoding(stream, ids) as step:
        taken = benchmark.pedantic(
            lambda: per_step(step, "cuda", STEPS), rounds=1, iterations=1, warmup_rounds=0
        )
    rate = copy_rate("cuda")
    shortest = traffic(model, stream.nbytes()) / rate
    aim = OF_THE_BOUND if "7b" in name and decode != "eager" else None
    note(benchmark, "fraction_of_bound", shortest / taken, aim, ms=taken * 1e3, copy_gb_per_s=rate / 1e9)


@pytest.mark.parametrize("decode", ["graph", "compile"])
def test_ring_decode_against_the_library(benchmark: Any, loaded: Any, decode: str) -> None:
    """The library's eager dense decode at the ring's budget, the least context it could be asked for."""
    name, model, ids = loaded
    theirs = per_step(library_step(model, ids, POLICY.sinks + POLICY.window), "cuda", STEPS)
    with decoding(exact(model, decode), ids) as step:
        ours = benchmark.pedantic(lambda: per_step(step, "cuda", STEPS), rounds=1)
    aim = OF_THE_LIBRARY if "7b" in name else None
    note(benchmark, "times_the_library", theirs / ours, aim, ours_ms=ours * 1e3, library_ms=theirs * 1e3)


def test_exact_perplexity_against_token_by_token(benchmark: Any, loaded: Any) -> None:
    """32,768 tokens in parallel; eagerly one at a time for 256 of them, with eviction running."""
    name, model, ids = loaded
    positions = inspect(model).positions
    taken = benchmark.pedantic(
        lambda: seconds(lambda: evaluate(exact(model), ids), "cuda", rounds=2, warm_up=1), rounds=1
    )
    with decoding(exact(model, "eager"), ids) as step:
        one = per_step(step, "cuda", 128, rounds=2)
    check = ids[: POLICY.sinks + POLICY.window + 200]
    near = evaluate(exact(model), check) - evaluate(DecodeStream(model, POLICY, positions), check)
    ratio = one * len(ids) / taken
    note(
        benchmark,
        "times_token_by_token",
        ratio,
        OF_STEPWISE if "7b" in name else None,
        exact_tokens_per_s=len(ids) / taken,
        stepwise_tokens_per_s=1 / one,
        mean_nll_difference=float(np.abs(near.mean())),
    )
    assert abs(near.mean()) < 0.05  # bfloat16: single tokens differ more, their mean does not
