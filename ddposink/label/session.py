"""Which pair comes next: every pair of pictures of a prompt once, sides by lot, prompts taking turns."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ddposink.label.choices import ANSWERS, Choices
from ddposink.label.pictures import Picture


@dataclass(frozen=True)
class PicturePair:
    """Pictures by their place in the session's list; a is shown on the left."""

    a: int
    b: int


class LabelSession:
    """One person at one folder. Safe to use from several threads."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        choices: Choices,
        seed: int = 0,
        judge: str = "",
        per_prompt: int | None = None,
    ) -> None:
        self.pictures, self.choices, self.judge = list(pictures), choices, judge
        self.lock = threading.RLock()
        self.pairs = plan(self.pictures, seed, per_prompt)
        done = {(row["prompt"], frozenset((row["image_a"], row["image_b"]))) for row in choices.rows}
        self.queue = [number for number, pair in enumerate(self.pairs) if self._names(pair) not in done]

    @property
    def total(self) -> int:
        """Pairs in all."""
        return len(self.pairs)

    @property
    def left(self) -> int:
        """Pairs not judged yet."""
        return len(self.queue)

    def state(self) -> dict[str, object]:
        """What the page shows: the next pair, if any, and how far it is."""
        with self.lock:
            shown: dict[str, object] = {"done": self.total - self.left, "total": self.total}
            shown["can_undo"] = self.choices.can_undo
            if self.queue:
                pair = self.pairs[self.queue[0]]
                shown |= {"pair": self.queue[0], "a": pair.a, "b": pair.b}
                shown["prompt"] = self.pictures[pair.a].prompt
            return shown

    def answer(self, number: int, choice: str) -> bool:
        """Record a choice about pair ``number``; False if another pair is shown (a key pressed twice)."""
        with self.lock:
            if not self.queue or self.queue[0] != number or choice not in ANSWERS:
                return False
            pair = self.pairs[number]
            a, b = self.pictures[pair.a], self.pictures[pair.b]
            self.choices.add(a.prompt, a.file, b.file, choice, self.judge)
            self.queue.pop(0)
            return True

    def undo(self) -> bool:
        """Take the last choice of this session back and show its pair again."""
        with self.lock:
            if (row := self.choices.undo()) is None:
                return False
            names = row["prompt"], frozenset((row["image_a"], row["image_b"]))
            self.queue.insert(0, next(n for n, pair in enumerate(self.pairs) if self._names(pair) == names))
            return True

    def _names(self, pair: PicturePair) -> tuple[str, frozenset[str]]:
        """Its prompt too: the same two pictures may be compared under several."""
        files = (self.pictures[pair.a].file, self.pictures[pair.b].file)
        return self.pictures[pair.a].prompt, frozenset(map(self.choices.name, files))


def plan(pictures: Sequence[Picture], seed: int, per_prompt: int | None) -> list[PicturePair]:
    """All pairs, at most ``per_prompt`` of a prompt; the same for a seed, whatever was judged before."""
    generator, columns = random.Random(seed), []
    by_prompt: dict[str, list[int]] = {}
    for number, picture in enumerate(pictures):
        by_prompt.setdefault(picture.prompt, []).append(number)
    for numbers in by_prompt.values():
        pairs = [PicturePair(*generator.sample(pair, 2)) for pair in itertools.combinations(numbers, 2)]
        generator.shuffle(pairs)
        columns.append(pairs[:per_prompt])
    generator.shuffle(columns)
    return [pair for row in itertools.zip_longest(*columns) for pair in row if pair is not None]
