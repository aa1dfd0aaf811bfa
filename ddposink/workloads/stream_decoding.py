"""Memory, latency, energy and work of decoding from a point of the text, each in its own repetition."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack, nullcontext
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
from ddposink.streaming import Choice, DenseStream, Divergence, Stream
from ddposink.workloads.stream_params import WARM_UP, StreamParams
from ddposink.workloads.stream_quality import Measured

APART = 101  # tokens of the text between what neighbouring streams of a batch are fed
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
    keys: np.ndarray | Missing | None = None  # which tokens of the text are key tokens (L-1,); likewise
    decoded_as: str | None = None  # while latency was timed; None if it was not
    latency_share: float | None = None  # of the CPU asked for while latency was timed
    facts: dict[str, Scalar] = field(default_factory=dict)

    @property
    def reference(self) -> DenseStream | None:
        """Dense attention that reads the same text beside the stream that is measured."""
        return self.divergence.dense if isinstance(self.divergence, Divergence) else None


def decode_repetitions(params: StreamParams, state: DecodeRun) -> Measured:
    """Memory, latency, energy and work of decoding on from here, one repetition each."""
    want, metrics = set(params.measure), Measured()
    with Decoding(state, 0) as held:
        metrics |= held.nbytes()
    if "memory" in want:
        # What reading the text has left in the allocator is not of this length.
        with state.reference.aside() if state.reference else nullcontext():
            if state.device.type == "cuda":
                torch.cuda.empty_cache()
            with state.tracker as tracker, Decoding(state, WARM_UP) as decoding:
                for i in range(WARM_UP):
                    decoding.step(i)
                tracker.snapshot()
        metrics |= tracker.peaks
        if state.reference:
            why = "dense attention reads the same text beside, and the host holds its cache too"
            metrics["rss_peak_bytes"] = Missing(why)
    if "latency" in want:
        with Decoding(state, WARM_UP + params.decode_tokens) as decoding:
            contention = Contention()
            times = time_steps(
                decoding.step, warmup=WARM_UP, steps=params.decode_tokens, device=str(state.device)
            )
            state.latency_share = contention.share()
            state.decoded_as = decoding.running
        metrics |= summarise(times, tokens_per_step=params.batch)
    if "prefill" in want:
        metrics |= _prefill(params, state)
    if "energy" in want:
        metrics["energy_per_token_j"] = _energy(params, state)
    if "work" in want:
        with Decoding(state, 1, eager=True) as decoding:  # what a recording replays cannot be counted
            counts = count_work(lambda: decoding.step(0))
        of_a_step = {
            "flops_per_token": counts.flops,
            "calls_per_token": counts.calls,
            "cats_per_token": counts.cat_calls,
            "allocated_per_token": counts.allocated_bytes,
        }
        metrics |= {name: _share(value, params.batch) for name, value in of_a_step.items()}
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
    with Decoding(state, steps) as decoding:
        for i in range(WARM_UP):
            decoding.step(i)
        with EnergyMeter(str(state.device)) as meter:
            for i in range(params.decode_tokens):
                decoding.step(WARM_UP + i)
    tokens = params.decode_tokens * params.batch
    return meter.joules if isinstance(meter.joules, Missing) else meter.joules / tokens


def _share(counted: int, tokens: int) -> float | int:
    """What one of ``tokens`` takes of a step's count: a whole number where it is one."""
    return counted // tokens if counted % tokens == 0 else counted / tokens


class Decoding:
    """Decode from here for up to ``steps`` tokens, then put the stream back where it was.

    A batch is that many streams which hold the same and are fed different tokens.
    """

    def __init__(self, state: DecodeRun, steps: int, *, eager: bool = False) -> None:
        self.stream, self.batch = state.choice.stream, state.params.batch
        self.decoder: Stream = self.stream.decoder(eager=eager)
        self.ids = state.text.ids
        self.steps = steps

    def __enter__(self) -> Decoding:
        self.start, self.mark = self.stream.seen, self.stream.mark(self.steps)
        self.inner = ExitStack()
        if self.batch > 1:
            self.inner.enter_context(self.decoder.widened(self.batch))
        self.inner.enter_context(self.decoder.attached())
        return self

    @property
    def running(self) -> str:
        """How it decodes, once it has."""
        return getattr(self.decoder, "running", self.decoder.path)

    def nbytes(self) -> Measured:
        """Bytes of the keys and values of all streams: measured, of all slots, and as predicted."""
        return {
            "kv_bytes": self.decoder.nbytes(),
            "kv_bytes_allocated": self.decoder.allocated_bytes(),
            "kv_bytes_analytic": self.batch * self.stream.predicted_bytes(),
        }

    def step(self, i: int) -> None:
        """Feed one token of each stream and compute its logits, as chats would."""
        first = self.start + i  # at the end of the text go on from its beginning
        if self.batch == 1:
            token = first % len(self.ids)
            hidden = self.decoder.feed(self.ids[token : token + 1])
        else:
            chosen = (first + APART * torch.arange(self.batch, device=self.ids.device)) % len(self.ids)
            hidden = self.decoder.feed(self.ids[chosen, None])
        self.stream.head.logits(hidden)

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        self.stream.rewind(self.mark)
