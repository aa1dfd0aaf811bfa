"""Three tasks as token ids: what is read, what is asked where, what is right, and how far back it stands.

A task is one text or several, each with questions at several distances. Which distances are asked about
changes no text: the questions of one are the same whatever the others are. They are the same under every
policy too, so that differences between cells are differences of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ddposink.workloads.recall_facts import APART, ENTRY, SENTENCE, Fact, facts
from ddposink.workloads.recall_params import RecallParams
from ddposink.workloads.recall_text import Filler, Pieces

BREAK = "\n\n"  # between the facts and the text that goes on


@dataclass(frozen=True)
class Question:
    """``asked`` and ``answer`` (not empty): token ids; ``wanted``: the distance of the cell that it is for.

    ``distance``: tokens between the last one of the fact and the first one of the question.
    """

    wanted: int
    asked: list[int]
    answer: list[int]
    distance: int

    @property
    def tokens(self) -> int:
        """Tokens fed for it: of the answer all but the last."""
        return len(self.asked) + len(self.answer) - 1


@dataclass(frozen=True)
class Step:
    """``more`` (token ids) is read, then each of ``questions`` is asked from there, and forgotten."""

    more: list[int]
    questions: list[Question]


class TooFarError(ValueError):
    """No question can be asked over this distance."""


def texts(
    params: RecallParams, distances: Sequence[int], seed: int, pieces: Pieces, filler: Filler | None
) -> Iterator[Iterator[Step]]:
    """Each text as steps, with a question for each of the ascending ``distances``; ``params`` says the rest.

    ``filler`` is for the tasks that have one. The task stream is one endless text. Raises TooFarError.
    """
    if params.task == "stream":
        yield _lines(params, distances, np.random.default_rng(seed), pieces)
        return
    assert filler is not None
    for i in range(params.questions):
        yield _haystack(params, distances, np.random.default_rng([seed, i]), pieces, filler)


def _haystack(
    params: RecallParams, distances: Sequence[int], rng: np.random.Generator, pieces: Pieces, filler: Filler
) -> Iterator[Step]:
    """Facts one after another, the one asked about anywhere among them; then text, asked where sentences end.

    The facts behind it count as part of the distance: it is never shorter than they are.
    """
    several, wording = (params.needles, ENTRY) if params.task == "needles" else (1, SENTENCE)
    source = facts(rng, params.digits, wording)
    told = [next(source) for _ in range(several)]
    asked = int(rng.integers(several))
    stated = [pieces.ids(fact.statement) for fact in told]
    behind = sum(map(len, stated[asked + 1 :]))
    parts = [[], *filler.from_anywhere(rng, distances[-1] - behind, first=pieces.ids(BREAK))]
    stands = [behind + read for read in accumulate(map(len, parts))]  # the distance after each part
    more, done = [token for one in stated for token in one], 0
    for distance in distances:
        at = int(np.abs(np.array(stands) - distance).argmin())
        more += [token for part in parts[done + 1 : at + 1] for token in part]
        yield Step(more, [_question(told[asked], pieces, distance, stands[at])])
        more, done = [], at


def _lines(
    params: RecallParams, distances: Sequence[int], rng: np.random.Generator, pieces: Pieces
) -> Iterator[Step]:
    """An endless text of facts, one a paragraph, asked every few of them about one that stands back.

    Of all lines the one is asked about that stands nearest to the distance; the first time when one stands
    so far back. Raises TooFarError where its name may have been given again since.
    """
    source, told, ends = facts(rng, params.digits), list[Fact](), list[int]()
    left = dict.fromkeys(distances, params.questions)
    while any(left.values()):
        more: list[int] = []
        for _ in range(params.interval):
            told.append(next(source))
            stated = pieces.ids(told[-1].statement)
            more += stated
            ends.append((ends[-1] if ends else 0) + len(stated))
        back = ends[-1] - np.array(ends)  # tokens behind each line
        step = Step(more, [])
        for distance in (d for d in distances if left[d]):
            if back[0] < distance and len(told) <= APART:
                continue  # no line stands so far back yet
            asked = int(np.abs(back - distance).argmin())
            if len(told) - asked > APART:
                raise TooFarError(f"{distance} tokens are more than {APART} lines: names have come again")
            step.questions.append(_question(told[asked], pieces, distance, int(back[asked])))
            left[distance] -= 1
        yield step


def _question(fact: Fact, pieces: Pieces, wanted: int, distance: int) -> Question:
    return Question(wanted, pieces.ids(fact.question), pieces.ids(fact.answer), distance)
