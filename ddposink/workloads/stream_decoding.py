"""Memory, latency, energy and work of decoding from a point of the text, each in its own repetition."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.track.clock import summarise, time_steps
from bench.track.contention import Contention
from bench.track.memory import MemoryTracker
from bench.track.power import EnergyMeter
from bench.track.work import count_work
from bench.workload import Missing, Samples, Scalar
from ddposink.corpora import TokenStream
from ddposink.models.language import LoadedModel
from ddposink.streaming import Choice, Divergence, Stream
from ddposink.workloads.stream_params import WARM_UP, StreamParams
from ddposink.workloads.stream_quality import Measured

PROMPTS = 3  # readings of a prompt, each by a stream of its own


@dataclass
class Text:
    """What is fed: ids (N,) on the device, and how to turn NLL per token into per byte and per word."""

    ids: Tensor
    corpus: TokenStream | None
    turn_ends: Tensor | None


@dataclass
class DecodeRun:
    """Everything the repetitions at one length share."""

    params: StreamParams
    loaded: LoadedModel
    text: Text
    tracker: MemoryTracker
    nll: np.ndarray
    device: torch.device
    choice: Choice = field(init=False)  # of the reading that is going on
    feed_seconds: float = 0.0
    saved: list[Path] = field(
        default_factory=list
    )  # NLLs of this reading, a file from one length to the next
    saved_to: int = 0  # how many of them are in those files
    divergence: Divergence | Missing | None = None  # from dense; None if nobody asked
    latency_share: float | None = None  # of the CPU asked for while latency was timed
    facts: dict[str, Scalar] = field(default_factory=dict)


def decode_repetitions(params: StreamParams, state: DecodeRun) -> Measured:
    """Memory, latency, energy and work of decoding on from here, one repetition each."""
    want, metrics = set(params.measure), Measured()
    if "memory" in want:
        # What reading the text has left in the allocator is not of this length.
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
        with state.tracker as tracker, Decoding(state, WARM_UP) as step:
            for i in range(WARM_UP):
                step(i)
            tracker.snapshot()
        metrics |= tracker.peaks
    if "latency" in want:
        with Decoding(state, WARM_UP + params.decode_tokens) as step:
            contention = Contention()
            times = time_steps(step, warmup=WARM_UP, steps=params.decode_tokens, device=str(state.device))
            state.latency_share = contention.share()
        metrics |= summarise(times)
    if "prefill" in want:
        metrics |= _prefill(params, state)
    if "energy" in want:
        metrics["energy_per_token_j"] = _energy(params, state)
    if "work" in want:
        with Decoding(state, 1, eager=True) as step:  # what a recording replays cannot be counted
            counts = count_work(lambda: step(0))
        metrics |= {
            "flops_per_token": counts.flops,
            "calls_per_token": counts.calls,
            "cats_per_token": counts.cat_calls,
            "allocated_per_token": counts.allocated_bytes,
        }
    return metrics


def _prefill(params: StreamParams, state: DecodeRun) -> Measured:
    """The text up to here read as a prompt by a new stream, nothing scored, until the next token is known."""
    seconds = []
    for _ in range(PROMPTS):
        stream = state.choice.renew(state.text.turn_ends)
        stream.reserve(params.length)
        begun = time.perf_counter()
        with stream.attached():
            while stream.seen < params.length:
                size = stream.next_size(params.length - stream.seen)
                hidden = stream.feed(state.text.ids[stream.seen : stream.seen + size])
            token = stream.head.logits(hidden[-1:]).argmax(-1)
        token.item()  # the device has finished
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds)
    first = Samples(1e3 * median, tuple(1e3 * one for one in seconds))
    return {"ttft_ms": first, "prefill_tokens_per_s": params.length / median}


def _energy(params: StreamParams, state: DecodeRun) -> float | Missing:
    steps = WARM_UP + params.decode_tokens
    with Decoding(state, steps) as step:
        for i in range(WARM_UP):
            step(i)
        with EnergyMeter(str(state.device)) as meter:
            for i in range(params.decode_tokens):
                step(WARM_UP + i)
    return meter.joules if isinstance(meter.joules, Missing) else meter.joules / params.decode_tokens


class Decoding:
    """Decode from here for up to ``steps`` tokens, then put the stream back where it was."""

    def __init__(self, state: DecodeRun, steps: int, *, eager: bool = False) -> None:
        self.stream = state.choice.stream
        self.decoder: Stream = self.stream.decoder(eager=eager)
        self.ids = state.text.ids
        self.steps = steps

    def __enter__(self) -> Any:
        self.mark = self.stream.mark(self.steps)
        self.start = self.stream.seen
        self.inner = self.decoder.attached()
        self.inner.__enter__()
        return self.step

    def step(self, i: int) -> None:
        """Feed one token and compute its logits, as a chat would."""
        token = (self.start + i) % len(self.ids)  # at the end of the text go on from its beginning
        hidden = self.decoder.feed(self.ids[token : token + 1])
        self.stream.head.logits(hidden)

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        self.stream.rewind(self.mark)
