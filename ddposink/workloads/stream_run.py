"""The `stream` workload at work, in the child: one model, one policy, one text, all lengths in one go.

The quality repetition feeds the text and stops at every length of the pass. There the cache is
inspected, and memory, latency, energy and work are measured by decoding a few tokens from that very
point, each in a repetition of its own; afterwards the stream is rewound and goes on. A cell is
emitted as soon as its length is reached: what happens further on cannot take it back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.track.clock import summarise, time_steps
from bench.track.memory import MemoryTracker
from bench.track.power import EnergyMeter
from bench.track.work import count_work
from bench.workload import Cell, Context, Missing, Samples, Scalar, Skip
from ddposink.caches import CacheShape
from ddposink.corpora import CorpusRef, TokenStream, load_stream
from ddposink.errors import Unavailable
from ddposink.models import LoadedModel, ModelRef, load_model
from ddposink.streaming import Choice, PolicyNotAppliedError, Stream, open_stream, stream_nll
from ddposink.workloads.stream import ITEMSIZE, RANDOM_TOKENS, StreamParams

Measured = dict[str, float | int | Missing | Samples | None]
WARM_UP = 4  # decode steps before any timed one


@dataclass
class Text:
    """What is fed: ids (N,) on the device, and how to turn NLL per token into per byte and per word."""

    ids: Tensor
    corpus: TokenStream | None
    turn_ends: Tensor | None


@dataclass
class Run:
    """Everything the repetitions at one length share."""

    params: StreamParams
    loaded: LoadedModel
    choice: Choice
    text: Text
    tracker: MemoryTracker
    nll: np.ndarray
    device: torch.device
    feed_seconds: float = 0.0
    facts: dict[str, Scalar] = field(default_factory=dict)


def run(cells: Sequence[tuple[Cell, StreamParams]], ctx: Context) -> None:
    """Measure ``cells``, which differ in length only and come shortest first."""
    longest = cells[-1][1]
    if longest.threads:
        torch.set_num_threads(longest.threads)
    device = _device(longest.device)
    try:
        state = _prepare(longest, device, cells[-1][0].seed)
    except Unavailable as error:
        raise Skip(str(error)) from error
    stream, total = state.choice.stream, longest.length
    at = {params.length: (cell, params) for cell, params in cells}
    begun = time.perf_counter()
    with stream.attached():
        for stop in stream_nll(stream, state.text.ids, state.nll, list(at)):
            state.feed_seconds += time.perf_counter() - begun
            ctx.progress(stop.fed, total, **_running(state.nll, stop.fed, state.loaded.random_weights))
            if stop.at_checkpoint and stop.fed in at:
                cell, params = at[stop.fed]
                _emit(cell, params, state, ctx)
            begun = time.perf_counter()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Skip(f"device '{name}': no CUDA device on this machine")
    return torch.device(name)


def _prepare(params: StreamParams, device: torch.device, seed: int) -> Run:
    tracker = MemoryTracker(device)  # before the model, so that the device figure counts all we take
    loaded = load_model(ModelRef.parse(params.model), params.dtype, str(device))
    text = _text(params, loaded, device, seed)
    choice = open_stream(
        loaded.model,
        params.parsed_policy,
        evaluator=params.evaluator,
        chunk=params.chunk,
        capacity=params.length + WARM_UP + params.decode_tokens,
        turn_ends=text.turn_ends,
    )
    nll = np.full(params.length - 1, np.nan, dtype=np.float32)
    facts = {
        "train_length": loaded.train_length,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **loaded.facts,
    }
    return Run(params, loaded, choice, text, tracker, nll, device, facts=facts)


def _text(params: StreamParams, loaded: LoadedModel, device: torch.device, seed: int) -> Text:
    if params.corpus == RANDOM_TOKENS:
        vocabulary = loaded.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(seed)
        return Text(
            torch.randint(0, vocabulary, (params.length,), generator=generator).to(device), None, None
        )
    corpus = load_stream(CorpusRef.parse(params.corpus), loaded.tokenizer, params.length, bos=params.bos)
    ids = torch.from_numpy(np.ascontiguousarray(corpus.ids[: params.length]))
    turn_ends = _turn_ends(ids, loaded.tokenizer) if params.parsed_policy.evict.per == "turn" else None
    return Text(ids.to(device), corpus, turn_ends)


def _turn_ends(ids: Tensor, tokenizer: Any) -> Tensor:
    """(N,) bool: tokens that end a paragraph, i.e. complete a blank line."""
    texts = {int(i): tokenizer.decode([int(i)]) for i in ids.unique()}
    blank = torch.tensor([texts[int(i)].replace(" ", "").endswith("\n\n") for i in ids])
    newline = torch.tensor([texts[int(i)].replace(" ", "").endswith("\n") for i in ids])
    blank[1:] |= newline[1:] & newline[:-1]
    return blank


def _running(nll: np.ndarray, fed: int, random_weights: bool) -> dict[str, float]:
    if random_weights or fed < 2:
        return {}
    recent = nll[max(0, fed - 1025) : fed - 1].astype(np.float64)
    return {"perplexity": float(np.exp(np.minimum(recent.mean(), 80.0)))}


def _emit(cell: Cell, params: StreamParams, state: Run, ctx: Context) -> None:
    """Everything that is known at this length goes into one record."""
    stream = state.choice.stream
    conformance = _conformance(params, state)
    metrics: Measured = {"kv_bytes": stream.nbytes(), "kv_bytes_allocated": stream.allocated_bytes()}
    metrics["kv_bytes_analytic"] = int(conformance["kv_bytes_predicted"])  # type: ignore[arg-type]
    metrics |= _quality(params, state)
    metrics |= _decode_repetitions(params, state)
    artifacts = (
        [] if state.loaded.random_weights else [_save(state.nll[: params.length - 1], params.length, ctx.out)]
    )
    finite = state.loaded.random_weights or np.isfinite(state.nll[: params.length - 1]).all()
    bad = int((~np.isfinite(state.nll[: params.length - 1])).sum())
    ctx.emit(
        cell,
        metrics,
        status="ok" if finite else "nan",
        reason=None if finite else f"{bad} of {params.length - 1} tokens have a NaN or infinite NLL",
        facts=state.facts
        | {"path": stream.path, "collapse_at": _collapse(params, state.nll[: params.length - 1])},
        conformance=conformance,
        artifacts=artifacts,
    )


def _conformance(params: StreamParams, state: Run) -> dict[str, Scalar]:
    """Proof that the policy was applied; raises PolicyNotAppliedError where it was not."""
    stream, policy = state.choice.stream, params.parsed_policy
    config = state.loaded.model.config.get_text_config().to_dict()
    predicted = policy.nbytes(CacheShape.from_config(config, ITEMSIZE[params.dtype]), stream.seen)
    scheduled = policy.bounded and policy.evict.per != "token"
    expected = stream.held if scheduled else policy.cached(stream.seen)
    if stream.held != expected or (not scheduled and stream.nbytes() != predicted):
        raise PolicyNotAppliedError(
            f"after {stream.seen} tokens the cache holds {stream.held} tokens in {stream.nbytes()} bytes; "
            f"'{policy}' promises {expected} tokens in {predicted} bytes"
        )
    corpus = state.text.corpus
    return {
        "path": stream.path,
        "path_reason": state.choice.reason,
        "attention_calls_per_layer": stream.calls_per_layer,
        "tokens_fed": stream.seen,
        "tokens_held": stream.held,
        "largest_position": stream.largest_position,
        "kv_bytes_predicted": predicted,
        "kv_bytes_measured": stream.nbytes(),
        "eviction_starts_at": policy.budget + 1 if policy.budget is not None else None,
        "corpus_convention": corpus.convention if corpus else "uniform random token ids, seeded",
        "books": len([b for b in corpus.books if b[1] < stream.seen]) if corpus else None,
    }


def _quality(params: StreamParams, state: Run) -> Measured:
    fed = params.length
    speed = fed / state.feed_seconds
    names = ("perplexity", "nll", "perplexity_post", "nll_post", "bits_per_byte", "word_perplexity")
    if state.loaded.random_weights:
        refused = Missing("random weights: their perplexity says nothing")
        return dict.fromkeys(names, refused) | {"scored_tokens": refused, "eval_tokens_per_s": speed}
    nll = state.nll[: fed - 1].astype(np.float64)
    metrics: Measured = {
        "nll": float(nll.mean()),
        "perplexity": _exp(float(nll.mean())),
        "scored_tokens": len(nll),
        "nonfinite_tokens": int((~np.isfinite(nll)).sum()),
        "eval_tokens_per_s": speed,
    }
    budget = params.parsed_policy.budget
    post = nll[budget + 1 :] if budget is not None else nll[:0]
    if len(post):
        metrics |= {"nll_post": float(post.mean()), "perplexity_post": _exp(float(post.mean()))}
    else:
        why = Missing("dense evicts nothing" if budget is None else f"nothing evicted within {fed} tokens")
        metrics |= {"nll_post": why, "perplexity_post": why}
    corpus = state.text.corpus
    assert corpus is not None
    total_bytes = int(corpus.byte_end[fed - 1] - corpus.byte_end[0])
    total_words = int(corpus.word_end[fed - 1] - corpus.word_end[0])
    few = Missing(f"only {total_words} words scored")
    metrics["bits_per_byte"] = float(nll.sum() / np.log(2) / total_bytes)
    metrics["word_perplexity"] = _exp(float(nll.sum() / total_words)) if total_words >= 100 else few
    return metrics


def _exp(mean: float) -> float | Missing:
    with np.errstate(over="ignore"):
        value = float(np.exp(mean))
    return value if np.isfinite(value) else Missing(f"exp({mean:.4g} nats) is not a finite number")


def _decode_repetitions(params: StreamParams, state: Run) -> Measured:
    """Memory, latency, energy and work of decoding on from here, one repetition each."""
    want, metrics = set(params.measure), Measured()
    if "memory" in want:
        with state.tracker as tracker, _decoding(state, WARM_UP) as step:
            for i in range(WARM_UP):
                step(i)
            tracker.snapshot()
        metrics |= tracker.peaks
    if "latency" in want:
        with _decoding(state, WARM_UP + params.decode_tokens) as step:
            times = time_steps(step, warmup=WARM_UP, steps=params.decode_tokens, device=str(state.device))
        metrics |= summarise(times)
    if "energy" in want:
        metrics["energy_per_token_j"] = _energy(params, state)
    if "work" in want:
        with _decoding(state, 1) as step:
            counts = count_work(lambda: step(0))
        metrics |= {
            "flops_per_token": counts.flops,
            "calls_per_token": counts.calls,
            "cats_per_token": counts.cat_calls,
            "allocated_per_token": counts.allocated_bytes,
        }
    return metrics


def _energy(params: StreamParams, state: Run) -> float | Missing:
    steps = WARM_UP + params.decode_tokens
    with _decoding(state, steps) as step:
        for i in range(WARM_UP):
            step(i)
        with EnergyMeter(str(state.device)) as meter:
            for i in range(params.decode_tokens):
                step(WARM_UP + i)
    return meter.joules if isinstance(meter.joules, Missing) else meter.joules / params.decode_tokens


class _decoding:  # noqa: N801 - reads as a verb: `with _decoding(state, 36) as step`
    """Decode from here for up to ``steps`` tokens, then put the stream back where it was."""

    def __init__(self, state: Run, steps: int) -> None:
        self.stream = state.choice.stream
        self.decoder: Stream = self.stream.decoder()
        self.ids = state.text.ids
        self.head = state.loaded.model.get_output_embeddings()
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
        self.head(hidden)

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        self.stream.rewind(self.mark)


def _collapse(params: StreamParams, nll: np.ndarray) -> int | None:
    """Where dense attention breaks: the first position after which 512 tokens cost 1 nat more than all before."""
    if params.parsed_policy.bounded:
        return None
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(nll.astype(np.float64), nan=80.0, posinf=80.0))])
    for start in range(1024, len(nll) - 512, 128):
        if (total[start + 512] - total[start]) / 512 > total[start] / start + 1.0:
            return start
    return None


def _save(nll: np.ndarray, length: int, folder: Path) -> Path:
    """Per-token NLL, float32, compressed; index 0 is the prediction of the second token."""
    path = folder / f"nll-{length}.npz"
    np.savez_compressed(path, nll=nll)
    return path
