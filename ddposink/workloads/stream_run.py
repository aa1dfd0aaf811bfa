"""The `stream` workload at work, in the child: one model, one policy, one text, all lengths in one go.

The quality repetition feeds the text and stops at every length of the pass. There the cache is
inspected, and memory, latency, energy and work are measured by decoding a few tokens from that very
point, each in a repetition of its own; afterwards the stream is rewound and goes on. A cell is
emitted as soon as its length is reached: what happens further on cannot take it back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.track.memory import MemoryTracker
from bench.workload import Cell, Context, Missing, Scalar, Skip
from ddposink.caches import Policy
from ddposink.corpora import CorpusRef, load_stream, mentions
from ddposink.devices import chosen_device
from ddposink.errors import Unavailable
from ddposink.models.language import LoadedModel
from ddposink.streaming import (
    Choice,
    Divergence,
    UnsupportedPolicyError,
    length_limit,
    open_stream,
    stream_nll,
)
from ddposink.turns import end_words, turn_ends
from ddposink.workloads.common_params import RANDOM_TOKENS
from ddposink.workloads.policy_child import applied, facts_of, load_under
from ddposink.workloads.stream_beside import against_dense, divergence_of, key_tokens_of, on_key_tokens
from ddposink.workloads.stream_decoding import DecodeRun, Text, decode_repetitions
from ddposink.workloads.stream_params import WARM_UP, StreamParams
from ddposink.workloads.stream_quality import (
    Measured,
    collapse,
    quality,
    refusals,
    running,
)

Cells = Sequence[tuple[Cell, StreamParams]]


def run(cells: Sequence[tuple[Cell, StreamParams]], ctx: Context, stops: Sequence[int] = ()) -> None:
    """Measure ``cells``, which differ in length only and come shortest first.

    Forwards end at ``stops`` (lengths), too: those of a pass whose shorter cells were answered before.
    """
    longest = cells[-1][1]
    if longest.threads:
        torch.set_num_threads(longest.threads)
    try:
        state = _prepare(longest, chosen_device(longest.device), cells[-1][0].seed)
    except Unavailable as error:
        raise Skip(str(error)) from error
    limit = length_limit(state.loaded.model)
    for group in _readings(cells, limit):
        _read(group, state, ctx, () if _alone(group[-1][1], limit) else stops)


def _readings(cells: Cells, limit: int | None) -> list[Cells]:
    """Cells that one reading of the text answers.

    Where dense attention's rotary frequencies depend on the length of the text, nothing longer than ``limit``
    contains anything shorter: such a length is read on its own, in one forward.
    """
    if limit is None or cells[0][1].parsed_policy.bounded:
        return [cells]
    within = [pair for pair in cells if pair[1].length <= limit]
    return [one for one in (within, *([pair] for pair in cells if pair[1].length > limit)) if one]


def _alone(params: StreamParams, limit: int | None) -> bool:
    """Whether a length is read in one forward, because frequencies depend on it."""
    return limit is not None and not params.parsed_policy.bounded and params.length > limit


def _read(cells: Cells, state: DecodeRun, ctx: Context, stops: Sequence[int]) -> None:
    """Read the text once, up to the longest of ``cells``, and emit each as its length is reached."""
    longest = cells[-1][1]
    total, at = longest.length, {params.length: (cell, params) for cell, params in cells}
    state.choice, state.feed_seconds = _open(longest, state), 0.0
    state.saved, state.saved_to = [], 0
    state.keys = key_tokens_of(longest, state)
    stream = state.choice.stream
    state.divergence = divergence_of(longest, state)
    watch = state.divergence.watch if isinstance(state.divergence, Divergence) else None
    ahead = iter([*at, total])
    stream.reserve(_room(next(ahead), longest))
    begun = time.perf_counter()
    with stream.attached():
        for stop in stream_nll(stream, state.text.ids[:total], state.nll[: total - 1], [*at, *stops], watch):
            state.feed_seconds += time.perf_counter() - begun
            ctx.progress(stop.fed, total, **(running(state.nll, stop.fed) if state.text.corpus else {}))
            if stop.at_checkpoint and stop.fed in at:
                cell, params = at[stop.fed]
                _emit(cell, params, state, ctx)
                stream.reserve(_room(next(ahead), longest))
            begun = time.perf_counter()


def _room(length: int, params: StreamParams) -> int:
    """Tokens held at most until ``length`` has been looked at; room for more would count as its memory."""
    return length + WARM_UP + params.decode_tokens


def _open(params: StreamParams, state: DecodeRun) -> Choice:
    """The stream for a reading of ``params.length`` tokens, proven."""
    model, policy = state.loaded.model, params.parsed_policy
    limit = length_limit(model)
    alone = _alone(params, limit)
    choice = open_stream(
        model,
        policy,
        evaluator=params.evaluator,
        chunk=params.length if alone else params.chunk,
        turn_ends=state.text.turn_ends,
        decode=params.decode,
        length=params.length,
    )
    if not alone:
        return choice
    why = (
        f"one forward of all tokens: rotary frequencies depend on the length beyond {limit}; {choice.reason}"
    )
    return replace(choice, reason=why)


def _prepare(params: StreamParams, device: torch.device, seed: int) -> DecodeRun:
    tracker = MemoryTracker(device)  # before the model, so that the device figure counts all we take
    loaded = load_under(params.parsed_policy, params.model, params.dtype, device)
    text = _text(params, loaded, device, seed)
    nll = np.full(params.length - 1, np.nan, dtype=np.float32)
    return DecodeRun(params, loaded, text, tracker, nll, device, facts=facts_of(loaded, device))


def _text(params: StreamParams, loaded: LoadedModel, device: torch.device, seed: int) -> Text:
    if params.corpus == RANDOM_TOKENS:
        vocabulary = loaded.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(seed)
        return Text(
            torch.randint(0, vocabulary, (params.length,), generator=generator).to(device), None, None
        )
    policy = params.parsed_policy
    ref = CorpusRef.parse(params.corpus)
    corpus = load_stream(ref, loaded.tokenizer, params.length, bos=params.bos, spare=_ahead(policy))
    ends = _turn_ends(params, ref, corpus.ids, loaded) if policy.evict.by_turns else None
    ids = torch.from_numpy(np.ascontiguousarray(corpus.ids[: params.length]))
    return Text(ids.to(device), corpus, None if ends is None else torch.from_numpy(ends))


def _ahead(policy: Policy) -> int:
    """Tokens past the text: room is made for the turn that is coming, so its end must be known."""
    return policy.room if policy.evict.per == "turn" else 0


def _turn_ends(params: StreamParams, ref: CorpusRef, ids: np.ndarray, loaded: LoadedModel) -> np.ndarray:
    """(N,) bool. The whole corpus says what ends turns, so that no length depends on others of its pass."""
    ends = turn_ends(ids, loaded.tokenizer, mentions(ref, end_words(loaded.tokenizer)))
    if why := _endless(params, ends):
        raise UnsupportedPolicyError(why)
    return ends


def _endless(params: StreamParams, ends: np.ndarray) -> str | None:
    """Why a policy that goes by turns cannot be applied to a text whose turns have these ``ends`` (N,)."""
    policy, length = params.parsed_policy, params.length
    if ends[: length + _ahead(policy)].any() or length <= (policy.budget or length):
        return None
    return (
        f"'{policy}' goes by turns, and none ends in the first {length:,} tokens of '{params.corpus}': by an "
        "end-of-turn token or, where the text has none anywhere, by a blank line; all of it would be kept"
    )


def _emit(cell: Cell, params: StreamParams, state: DecodeRun, ctx: Context) -> None:
    """Everything that is known at this length goes into one record."""
    stream, ends = state.choice.stream, state.text.turn_ends
    if ends is not None and (why := _endless(params, ends.numpy())):  # as if it had been asked for alone
        ctx.emit(cell, {}, status="error", reason=f"{UnsupportedPolicyError.__name__}: {why}")
        return
    conformance = _conformance(params, state)
    metrics: Measured = {
        "state_bytes": stream.state_bytes() or Missing("this model carries keys and values only")
    }
    corpus, nll = state.text.corpus, state.nll[: params.length - 1]
    if corpus is not None:  # what is no target has no NLL, in the series as in the means
        nll = np.where(corpus.target[1 : params.length], nll, np.float32(np.nan))
    metrics |= (
        refusals() if corpus is None else quality(nll, stream.missing_from, params.parsed_policy, corpus)
    )
    metrics |= against_dense(params, state) | on_key_tokens(params, state)
    metrics["eval_tokens_per_s"] = params.length / state.feed_seconds
    metrics |= decode_repetitions(params, state)
    if corpus is not None:
        _save(nll, state, ctx.out)
    bad = 0 if corpus is None else int(metrics["nonfinite_tokens"])  # type: ignore[arg-type]
    collapsed = None if corpus is None else collapse(state.nll[: params.length - 1], params.parsed_policy)
    ctx.emit(
        cell,
        metrics,
        status="nan" if bad else "ok",
        reason=f"{bad} of {metrics['scored_tokens']} tokens have a NaN or infinite NLL" if bad else None,
        facts=state.facts | {"path": stream.path, "collapse_at": collapsed},
        conformance=conformance
        | {
            "decoded_as": state.decoded_as or getattr(stream.decoder(), "running", stream.decoder().path),
            "latency_cpu_share": state.latency_share,
        },
        artifacts=list(state.saved),
    )


def _conformance(params: StreamParams, state: DecodeRun) -> dict[str, Scalar]:
    """Proof that the policy was applied, and what it was applied to."""
    stream, corpus = state.choice.stream, state.text.corpus
    return applied(params.parsed_policy, stream, state.choice.reason, state.text.turn_ends) | {
        "tokens_fed": stream.seen,
        "corpus_convention": corpus.convention if corpus else "uniform random token ids, seeded",
        "books": len([b for b in corpus.books if b[1] < stream.seen]) if corpus else None,
    }


def _rounded(nats: np.ndarray) -> np.ndarray:
    """To the nearest 1/2048, float32: whoever checks a token's NLL wants a thousandth of a nat."""
    return (np.round(nats.astype(np.float64) * 2048) / 2048).astype(np.float32)


def _save(nll: np.ndarray, state: DecodeRun, folder: Path) -> None:
    """Keep the per-token NLLs (L-1,), and divergences, that are new since the last length in a file.

    To the nearest 1/2048 nat, which compresses well; KL, often tiny, in half precision. What records say is
    of the full values. Index 0 of the first file predicts the second token; NaN where a token is no target.
    """
    path = folder / f"nll-{len(nll) + 1}.npz"
    with np.errstate(over="ignore"):
        new = {"nll": _rounded(nll[state.saved_to :])}
        if isinstance(state.divergence, Divergence):
            kl, lost = (x[state.saved_to : len(nll)] for x in (state.divergence.kl, state.divergence.lost))
            new |= {"kl": kl.astype(np.float16), "lost": _rounded(lost)}
        np.savez_compressed(path, **new)  # type: ignore[arg-type]
    state.saved.append(path)
    state.saved_to = len(nll)
