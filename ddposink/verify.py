"""Does this very model give the same numbers whichever way it is evaluated?

Families are supported by a table; a model is trusted by a measurement. `verify` reads a text exactly in
parallel, by decode and by the plain reference, compares every token's NLL, and says which path
benchmarks of this model will take and why.
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
from ddposink.models import LoadedModel, ModelRef, load_model
from ddposink.streaming import UnsupportedPolicyError, open_stream, stream_nll

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}  # nats, on the worst token


@dataclass(frozen=True)
class Evaluation:
    """One way of evaluating the text; ``nll`` is None if it is not possible, ``note`` says why."""

    name: str
    nll: np.ndarray | None
    seconds: float
    note: str


def main(model: str, *, policy: str, tokens: int, corpus: str | None, dtype: str = "float32") -> int:
    """Print the check; 0 if all evaluations agree, 3 if they do not, 2 if the model cannot be had."""
    console = Console()
    try:
        loaded = load_model(ModelRef.parse(model), dtype, "cpu")
        parsed, ids = parse_policy(policy), _tokens(loaded, corpus, tokens)
        evaluations = compare(loaded.model, parsed, ids, console)
    except (ValueError, Unavailable) as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False)
        return 2
    return _report(console, model, parsed, evaluations, TOLERANCE[dtype])


def compare(
    model: nn.Module, policy: Policy, ids: Tensor, console: Console | None = None
) -> list[Evaluation]:
    """Evaluate ``ids`` (N,) in every way this model allows; the path benchmarks take comes first."""
    ways = (
        ["auto", "reference"]
        if not policy.bounded or policy.evict.per != "token"
        else ["auto", "decode", "reference"]
    )
    found = []
    with Progress(console=console, transient=True) as progress:
        for way in ways:
            task = progress.add_task(way, total=len(ids))
            try:
                choice = open_stream(model, policy, evaluator=way)
            except UnsupportedPolicyError as error:
                found.append(Evaluation(way, None, 0.0, str(error)))
                continue
            nll = np.full(len(ids) - 1, np.nan, dtype=np.float32)
            begun = time.perf_counter()
            with choice.stream.attached():
                for stop in stream_nll(choice.stream, ids, nll):
                    progress.update(task, completed=stop.fed)
            name = choice.stream.path if way == "auto" else way
            found.append(Evaluation(name, nll, time.perf_counter() - begun, choice.reason))
    return found


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
    first = evaluations[0]
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
    compared = sum(one.nll is not None for one in evaluations)
    if not agree:
        console.print(
            f"[bold red]DISAGREE[/]: a token is off by more than {tolerance} nats; do not trust this model"
        )
        return 3
    alone = " (nothing to compare it with on this model)" if compared == 1 else f" within {tolerance} nats"
    console.print(f"[bold green]ok[/]: benchmarks will use the '{first.name}' path{alone}: {first.note}")
    return 0
