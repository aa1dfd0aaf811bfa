"""Does this very model give the same numbers whichever way it is evaluated?

`verify` reads a text the way benchmarks of this model will (exactly in parallel, where that is possible), by
decode, and by a yardstick that shares no code with either: for dense one plain forward of the untouched
model, for a bounded policy the plain reference, whose keys the model itself rotates. Every token's NLL is
compared. Where there is no yardstick, nothing is certified.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from ddposink.caches import Policy, parse_policy
from ddposink.corpora import CorpusRef, load_stream
from ddposink.errors import Unavailable
from ddposink.models.language import LoadedModel, ModelRef, load_model
from ddposink.streaming import (
    NotProvenError,
    PolicyNotAppliedError,
    ReferenceStream,
    UnsupportedModelError,
    UnsupportedPolicyError,
    open_stream,
    stream_nll,
)
from ddposink.streaming.trunk import Trunk

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}  # nats, on the worst token
TURN = 12  # tokens of a turn, for policies that evict by turns


@dataclass(frozen=True)
class Evaluation:
    """One way of evaluating the text; ``nll`` is None if it is not possible, ``note`` says why."""

    name: str
    nll: np.ndarray | None
    seconds: float
    note: str


def main(model: str, *, policy: str, tokens: int, corpus: str | None, dtype: str = "float32") -> int:
    """Print the check; 0 if all agree, 3 if they do not or cannot be compared, 2 for bad input."""
    console = Console()
    try:
        loaded = load_model(ModelRef.parse(model), dtype, "cpu")
        parsed, ids = parse_policy(policy), _tokens(loaded, corpus, tokens)
    except (ValueError, Unavailable) as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False)
        return 2
    try:
        evaluations = compare(loaded.model, parsed, ids, console)
    except (UnsupportedModelError, UnsupportedPolicyError, NotProvenError, PolicyNotAppliedError) as error:
        console.print(f"[bold red]not verified:[/] {error}", highlight=False)
        return 3
    return _report(console, model, parsed, evaluations, TOLERANCE[dtype])


def compare(
    model: nn.Module, policy: Policy, ids: Tensor, console: Console | None = None
) -> list[Evaluation]:
    """Evaluate ``ids`` (N,) in every way this model allows; the path that benchmarks take comes first.

    The last one is the yardstick; its ``nll`` is None where there is none. Raises what `open_stream` raises
    if benchmarks of this model would be refused.
    """
    ways = ["auto", "yardstick"]
    if policy.bounded and policy.evict.per == "token" and policy.positions != "library":
        ways.insert(1, "decode")
    with Progress(console=console, transient=True) as progress:
        return [_evaluated(way, model, policy, ids, progress) for way in ways]


def _evaluated(way: str, model: nn.Module, policy: Policy, ids: Tensor, progress: Progress) -> Evaluation:
    """One way of evaluating ``ids``; raises UnsupportedPolicyError only for the way that benchmarks take."""
    if way == "yardstick" and policy.bits is not None:
        return Evaluation(way, None, 0.0, "rounded keys and values are not the model's own numbers")
    if way == "yardstick" and not policy.bounded:
        return _plain(model, ids)
    task, begun = progress.add_task(way, total=len(ids)), time.perf_counter()
    evaluator = "reference" if way == "yardstick" else way
    ends = torch.arange(1, len(ids) + 1) % TURN == 0
    try:
        choice = open_stream(model, policy, evaluator=evaluator, turn_ends=ends, length=len(ids))
    except UnsupportedPolicyError as error:
        if way == "auto":
            raise
        return Evaluation(way, None, 0.0, str(error))
    if way == "yardstick" and not isinstance(choice.stream, ReferenceStream):
        return Evaluation(way, None, 0.0, "nothing independent of it evaluates this policy")
    nll = np.full(len(ids) - 1, np.nan, dtype=np.float32)
    with choice.stream.attached():
        for stop in stream_nll(choice.stream, ids, nll):
            progress.update(task, completed=stop.fed)
    name = way if way == "decode" else choice.stream.path
    return Evaluation(name, nll, time.perf_counter() - begun, choice.reason)


@torch.no_grad()
def _plain(model: nn.Module, ids: Tensor) -> Evaluation:
    """Everything in one forward of the model as it is."""
    begun = time.perf_counter()
    logits = Trunk.of(model).plain_logits(ids).float()
    nll = nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none").numpy()
    return Evaluation("plain", nll, time.perf_counter() - begun, "one forward of the untouched model")


def _tokens(loaded: LoadedModel, corpus: str | None, count: int) -> Tensor:
    if corpus is None:
        vocabulary = loaded.model.config.get_text_config().vocab_size
        return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(0))
    if loaded.tokenizer is None:
        raise ValueError("random weights have no tokenizer: leave --corpus out")
    return torch.from_numpy(load_stream(CorpusRef.parse(corpus), loaded.tokenizer, count).ids[:count])


def _report(
    console: Console, model: str, policy: Policy, evaluations: list[Evaluation], tolerance: float
) -> int:
    first, yardstick = evaluations[0], evaluations[-1]
    assert first.nll is not None
    table = Table(title=f"{model} · {policy} · {len(first.nll) + 1} tokens")
    for column in ("evaluation", "mean NLL", "worst token off by", "tokens/s", "note"):
        table.add_column(column, justify="left" if column in ("evaluation", "note") else "right")
    agree = True
    for one in evaluations:
        if one.nll is None:
            table.add_row(one.name, "–", "–", "–", one.note)
            continue
        worst = float(np.abs(one.nll - first.nll).max())
        agree &= worst <= tolerance  # a NaN does not pass
        speed = (len(one.nll) + 1) / one.seconds
        table.add_row(one.name, f"{one.nll.mean():.6f}", f"{worst:.1e}", f"{speed:,.0f}", one.note)
    console.print(table)
    if not agree:
        console.print(
            f"[bold red]DISAGREE[/]: a token is off by more than {tolerance} nats; do not trust this model"
        )
        return 3
    if yardstick.nll is None:
        console.print(f"[bold red]not verified:[/] no yardstick for this policy: {yardstick.note}")
        return 3
    console.print(
        f"[bold green]ok[/]: benchmarks will use the '{first.name}' path, which agrees with the "
        f"'{yardstick.name}' evaluation within {tolerance} nats: {first.note}"
    )
    return 0
