"""The `recall` workload at work, in the child: one model, one policy, one task, all distances in one go.

The stream is opened and proven once. A text is read up to the nearest distance, a question is asked there and
forgotten, then it is read on to the next: the answers are those of a new stream for every question. A cell
is emitted as soon as its last question has been answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.workload import Cell, Context, Scalar, Skip
from ddposink.corpora import CorpusRef
from ddposink.devices import chosen_device
from ddposink.errors import Unavailable
from ddposink.models.language import LoadedModel
from ddposink.streaming import length_limit, open_stream
from ddposink.workloads.policy_child import applied, facts_of, load_under
from ddposink.workloads.recall_facts import NAMES
from ddposink.workloads.recall_params import RecallParams
from ddposink.workloads.recall_reader import Answer, Forking, Reader, Whole
from ddposink.workloads.recall_score import figures
from ddposink.workloads.recall_tasks import Step, TooFarError, texts
from ddposink.workloads.recall_text import Filler, Pieces

_LEAD = 1 << 32  # seeds what is read before all facts; the texts have their own numbers there

Cells = Sequence[tuple[Cell, RecallParams]]


def run(cells: Cells, ctx: Context) -> None:
    """Measure ``cells``, which differ in distance only and come nearest first.

    Where the furthest do not fit into memory the nearer ones are answered without them before it is said so.
    """
    furthest = cells[-1][1]
    if furthest.threads:
        torch.set_num_threads(furthest.threads)
    try:
        device = chosen_device(furthest.device)
        loaded = load_under(furthest.parsed_policy, furthest.model, furthest.dtype, device)
        source = _Source(furthest, loaded, cells[0][0].seed)
    except Unavailable as error:
        raise Skip(str(error)) from error
    cells = _measurable(cells, loaded, source, ctx)
    if not cells:
        return
    reader = _reader(furthest, loaded, source.lead)
    memory: Exception | None = None
    while cells:
        asking = _Asking(cells, reader, ctx, facts_of(loaded, device))
        try:
            asking.all(source)
        except (torch.OutOfMemoryError, MemoryError) as error:
            memory = error.with_traceback(None)  # whose frames would keep what did not fit
            cells = [] if asking.emitted else cells[:-1]
        else:
            cells = []
    if memory:
        raise memory


class _Source:
    """Where texts come from: one tokenizer, one book, one seed."""

    def __init__(self, params: RecallParams, loaded: LoadedModel, seed: int) -> None:
        _check_digits(loaded.tokenizer)
        self.pieces, self.seed = Pieces(loaded.tokenizer), seed
        self.filler: Filler | None = None
        self.lead = [_bos(loaded)] if params.bos else []
        if params.task != "stream":
            self.filler = Filler.of(CorpusRef.parse(params.corpus), self.pieces)
            rng = np.random.default_rng([seed, _LEAD])
            self.lead += [t for sentence in self.filler.from_anywhere(rng, params.lead) for t in sentence]

    def texts(self, cells: Cells) -> Iterator[Iterator[Step]]:
        """The texts in which the questions of ``cells`` are asked."""
        distances = [params.distance for _, params in cells]
        return texts(cells[-1][1], distances, self.seed, self.pieces, self.filler)


class _Asking:
    """The questions of several cells, answer by answer."""

    def __init__(self, cells: Cells, reader: Reader, ctx: Context, facts: dict[str, Scalar]) -> None:
        self._cells = {params.distance: (cell, params) for cell, params in cells}
        self._answers: dict[int, list[Answer]] = {distance: [] for distance in self._cells}
        self._all, self._reader, self._ctx, self._facts = cells, reader, ctx, facts
        self._total = sum(params.questions for _, params in cells)
        self.emitted = 0

    def all(self, source: _Source) -> None:
        """Read every text, ask every question, emit every cell."""
        longest = 2 * self._all[-1][1].longest  # twice an estimate
        with self._reader.reading():
            for text in source.texts(self._all):
                with self._reader.text(longest):
                    for step in text:
                        self._take(step)

    def _take(self, step: Step) -> None:
        self._reader.read(step.more)
        for question in step.questions:
            answers = self._answers[question.wanted]
            answers.append(self._reader.ask(question))
            right = sum(answer.right for answer in answers) / len(answers)
            self._ctx.progress(sum(map(len, self._answers.values())), self._total, accuracy=right)
            cell, params = self._cells[question.wanted]
            if len(answers) == params.questions:
                self._emit(cell, params, answers)

    def _emit(self, cell: Cell, params: RecallParams, answers: Sequence[Answer]) -> None:
        stream = self._reader.stream
        known = {
            "path": stream.path,
            "cache_limit": params.parsed_policy.budget,
            "chance": 10.0**-params.digits,
            "lead_tokens": len(self._reader.lead),
        }
        self._ctx.emit(
            cell, figures(answers), facts=self._facts | known, conformance=_conformance(params, self._reader)
        )
        self.emitted += 1


def _measurable(cells: Cells, loaded: LoadedModel, source: _Source, ctx: Context) -> Cells:
    """The cells that can be measured on this model; the others are answered with the reason."""
    kept = []
    for cell, params in cells:
        if reason := _refusal(params, loaded) or _too_far(cell, params, source):
            ctx.emit(cell, {}, status="skipped", reason=reason)
        else:
            kept.append((cell, params))
    return kept


def _reader(params: RecallParams, loaded: LoadedModel, lead: Sequence[int]) -> Reader:
    """The stream for all cells of a pass, proven, and how it is asked."""
    policy = params.parsed_policy
    nothing_known = torch.zeros(0, dtype=torch.bool) if policy.evict.by_turns else None
    choice = open_stream(
        loaded.model,
        policy,
        evaluator=params.evaluator,
        chunk=params.chunk,
        turn_ends=nothing_known,
        length=params.longest,
    )
    kind = Whole if policy.evict.by_turns else Forking
    return kind(choice, loaded, lead)


def _refusal(params: RecallParams, loaded: LoadedModel) -> str | None:
    """Why a cell cannot be measured on this model, if so."""
    limit = length_limit(loaded.model)
    if limit is not None and not params.parsed_policy.bounded and params.longest > limit:
        return (
            f"dense attention of this model has other rotary frequencies beyond {limit} tokens: nothing read "
            f"in pieces reaches that far"
        )
    return None


def _too_far(cell: Cell, params: RecallParams, source: _Source) -> str | None:
    """Why no question of the task stream can be asked over this distance, if so."""
    if params.task != "stream":
        return None
    try:
        for text in source.texts([(cell, params)]):
            deque(text, maxlen=0)
    except TooFarError as error:
        return str(error)
    return None


def _conformance(params: RecallParams, reader: Reader) -> dict[str, Scalar]:
    """Proof that the policy was applied, at the last question (bytes were compared at every one)."""
    stream = reader.stream
    return applied(params.parsed_policy, stream, reader.reason) | {"tokens_seen": stream.seen}


def _check_digits(tokenizer: Any) -> None:
    """Refuse a tokenizer that loses numbers or the names they go by: whatever was answered would be right."""
    for text in ("0123456789", *NAMES):
        ids = tokenizer(f" {text}", add_special_tokens=False, verbose=False)["input_ids"]
        said = "".join(tokenizer.decode(ids).lower().split())  # some put a space between tokens
        if text not in said:
            raise ValueError(f"this tokenizer does not know all of '{text}', which is to be remembered")


def _bos(loaded: LoadedModel) -> int:
    if loaded.tokenizer.bos_token_id is None:
        raise ValueError("this tokenizer has no BOS token: leave bos out")
    return int(loaded.tokenizer.bos_token_id)
