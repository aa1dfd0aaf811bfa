"""The `generate` workload at work, in the child: one model, one policy, one conversation, all lengths.

The model writes up to a length. There it stops, the text is scored and looked at, the cell is emitted, and it
writes on from where it was: what happens further on cannot take the cell back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bench.track.memory import MemoryTracker
from bench.workload import Cell, Context, Missing, Scalar, Skip
from ddposink.devices import chosen_device
from ddposink.errors import Unavailable
from ddposink.models.language import LoadedModel
from ddposink.streaming import (
    Choice,
    PolicyNotAppliedError,
    UnsupportedPolicyError,
    length_limit,
    open_stream,
)
from ddposink.streaming.examine import check_text_positions
from ddposink.workloads import generate_text as text
from ddposink.workloads.generate_artifact import answers, conversation
from ddposink.workloads.generate_chat import Chat
from ddposink.workloads.generate_fresh import FreshScores
from ddposink.workloads.generate_params import GenerateParams
from ddposink.workloads.generate_rule import SPAN
from ddposink.workloads.generate_turns import TurnSource
from ddposink.workloads.generate_writing import NotFiniteError, Sampler, Writer
from ddposink.workloads.policy_child import applied, facts_of, load_under
from ddposink.workloads.stream_quality import Measured, exp


@dataclass
class State:
    """Everything the cells of a pass share."""

    loaded: LoadedModel
    choice: Choice
    chat: Chat
    writer: Writer
    fresh: FreshScores
    tracker: MemoryTracker
    facts: dict[str, Scalar]
    saved: list[Path] = field(default_factory=list)  # NLLs, a file from one length to the next
    saved_to: int = 0  # how many of them are in those files


def run(cells: Sequence[tuple[Cell, GenerateParams]], ctx: Context) -> None:
    """Measure ``cells``, which differ in length only and come shortest first."""
    longest = cells[-1][1]
    if longest.threads:
        torch.set_num_threads(longest.threads)
    try:
        state = _prepare(longest, cells[-1][0].seed)
    except Unavailable as error:
        raise Skip(str(error)) from error
    for place, (cell, params) in enumerate(cells):
        try:
            measured = _write(params.length, longest, state, ctx)
        except NotFiniteError as error:
            for lost, _ in cells[place:]:
                _emit_broken(lost, str(error), state, ctx)
            return
        _emit(cell, params, measured, state, ctx)


def _prepare(params: GenerateParams, seed: int) -> State:
    device = chosen_device(params.device)
    tracker = MemoryTracker(device)  # before the model, so that the device figure counts all we take
    loaded = load_under(params.parsed_policy, params.model, params.dtype, device)
    policy, limit = params.parsed_policy, length_limit(loaded.model)
    if loaded.train_length is not None and params.fresh_window > loaded.train_length:
        raise UnsupportedPolicyError(
            f"fresh_window {params.fresh_window} is beyond the {loaded.train_length} positions that this "
            f"model was trained for: choose {loaded.train_length // 2 * 2} or fewer"
        )
    if limit is not None and params.fresh_window > limit:
        raise UnsupportedPolicyError(
            f"fresh_window {params.fresh_window} is beyond the {limit} positions up to which this model's "
            f"rotary frequencies are the same: choose {limit // 2 * 2} or fewer"
        )
    choice = open_stream(loaded.model, policy, decode=params.decode, length=params.length)
    if limit is not None and not policy.bounded and params.length > limit:
        raise UnsupportedPolicyError(
            f"dense attention of this model depends on the length of the text beyond {limit} tokens: it "
            f"cannot write on from what it wrote before"
        )
    chat = Chat(loaded.tokenizer)
    turns = TurnSource.parse(params.turns).turns(seed)
    sampler = Sampler(params.temperature, params.top_p, seed)
    facts = facts_of(loaded, device) | {"prompts": chat.kind}
    writer = Writer(choice.stream, chat, turns, sampler, params.turn_tokens)
    return State(loaded, choice, chat, writer, FreshScores(loaded.model, params.fresh_window), tracker, facts)


def _write(length: int, longest: GenerateParams, state: State, ctx: Context) -> Measured:
    """Write on up to ``length`` tokens; speed and memory on the way, from the length before."""
    writer, before = state.writer, len(state.writer.ids)
    state.tracker.restart()
    begun = time.perf_counter()
    writer.write(length, lambda done: ctx.progress(done, longest.length, turn=len(writer.turns)))
    seconds = time.perf_counter() - begun
    peaks = state.tracker.snapshot()
    return {"tokens_per_s": (len(writer.ids) - before) / seconds, **peaks}


def _emit(cell: Cell, params: GenerateParams, measured: Measured, state: State, ctx: Context) -> None:
    """Everything that is known at this length goes into one record."""
    writer, stream = state.writer, state.choice.stream
    conformance = _conformance(params, state)
    written = np.array(writer.written)
    nll = state.fresh.extend(writer.ids)[written]
    ids = np.array(writer.ids)[written]
    collapsed = text.collapse(ids, nll)
    metrics: Measured = measured | quality(ids, nll) | {"collapse_at": _collapse_at(len(ids), collapsed)}
    metrics |= _of_the_answers(state)
    metrics |= {"kv_bytes": stream.nbytes(), "kv_bytes_allocated": stream.allocated_bytes()}
    metrics["kv_bytes_analytic"] = stream.predicted_bytes()
    metrics["state_bytes"] = stream.state_bytes() or Missing("this model carries keys and values only")
    bad = int((~np.isfinite(nll)).sum())
    _save(nll, state, ctx.out)
    ctx.emit(
        cell,
        metrics,
        status="nan" if bad else "ok",
        reason=f"{bad} of {len(nll)} written tokens have a NaN or infinite NLL" if bad else None,
        facts=state.facts | {"path": stream.path},
        conformance=conformance,
        artifacts=[*state.saved, _save_text(collapsed, state, ctx.out)],
    )


def _emit_broken(cell: Cell, why: str, state: State, ctx: Context) -> None:
    """A cell whose length was not reached, because no token could be chosen any more."""
    count = len(state.writer.written)
    kept = [_save_text(None, state, ctx.out)] if state.writer.turns else []
    reason = f"after {count:,} written tokens {why}"
    ctx.emit(cell, {}, status="nan", reason=reason, facts=state.facts, artifacts=kept)


def quality(ids: np.ndarray, nll: np.ndarray) -> Measured:
    """Figures of written tokens ``ids`` (N,) and their NLLs (N,) in fresh windows, in nats."""
    mean = float(nll.mean(dtype=np.float64))
    metrics: Measured = {"nll": mean, "fresh_perplexity": exp(mean)}
    short = Missing(f"fewer than {SPAN} tokens were written")
    last = float(nll[-SPAN:].mean(dtype=np.float64))
    metrics["last_perplexity"] = exp(last) if len(nll) >= SPAN else short
    for n in (1, 2, 3):
        share = text.distinct(ids, n)
        metrics[f"distinct_{n}"] = Missing(f"fewer than {n} tokens") if share is None else share
    metrics["longest_repeat"] = text.longest_repeat(ids)
    return metrics


def _collapse_at(count: int, collapsed: tuple[int, str] | None) -> int | Missing:
    if collapsed is not None:
        return collapsed[0]
    if count < SPAN:
        return Missing(f"fewer than {SPAN} tokens were written")
    return Missing(f"no collapse within {count} tokens")


def _of_the_answers(state: State) -> Measured:
    turns, decode = state.writer.turns, state.loaded.tokenizer.decode
    ratio = text.compression(answers(turns, decode))
    return {
        "compression": Missing("no text was written") if ratio is None else ratio,
        "answers": len(turns),
        "answers_ended": sum(turn.ended is not None for turn in turns) / len(turns),
        "prompt_tokens": len(state.writer.ids) - len(state.writer.written),
    }


def _conformance(params: GenerateParams, state: State) -> dict[str, Scalar]:
    """Proof that the policy was applied, to everything that was written; PolicyNotAppliedError if not."""
    stream, decoder, count = state.choice.stream, state.writer.decoder, len(state.writer.ids)
    check_text_positions(state.loaded.model, params.parsed_policy, count)
    limit = length_limit(state.loaded.model)
    if limit is not None and not params.parsed_policy.bounded and count > limit:
        raise UnsupportedPolicyError(
            f"with its prompts the conversation has {count:,} tokens, and dense attention of this model "
            f"depends on the length of the text beyond {limit}"
        )
    if stream.seen != count:
        raise PolicyNotAppliedError(f"after {count} tokens the cache has seen {stream.seen}")
    return applied(params.parsed_policy, stream, state.choice.reason) | {
        "decoded_as": getattr(decoder, "running", decoder.path),
        "tokens_fed": stream.seen,
    }


def _save(nll: np.ndarray, state: State, folder: Path) -> None:
    """Keep the NLLs (N,) that are new since the last length, in half precision: 0.002 nats at 4 nats."""
    path = folder / f"nll-{len(nll)}.npz"
    with np.errstate(over="ignore"):
        np.savez_compressed(path, nll=nll[state.saved_to :].astype(np.float16))
    state.saved.append(path)
    state.saved_to = len(nll)


def _save_text(collapsed: tuple[int, str] | None, state: State, folder: Path) -> Path:
    """The conversation so far, as UTF-8 text."""
    path = folder / f"text-{len(state.writer.written)}.txt"
    shown = conversation(state.writer.turns, state.loaded.tokenizer.decode, collapsed)
    path.write_text(shown, encoding="utf-8", errors="replace", newline="\n")
    return path
