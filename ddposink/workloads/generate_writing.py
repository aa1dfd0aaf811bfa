"""Writing: one token at a time through a stream's decoder, answering one turn after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddposink.streaming import Stream
from ddposink.workloads.generate_chat import Chat


@dataclass
class Turn:
    """One turn: what was asked, how many tokens had been written before, and the answer's ids."""

    asked: str
    at: int
    answer: list[int] = field(default_factory=list)
    ended: int | None = None  # the token with which the answer ended itself, the last of it


class NotFiniteError(Exception):
    """The model's logits are NaN, or none of them is finite: no token can be chosen."""


class Sampler:
    """Chooses tokens: the likeliest, or one drawn on the CPU, so that a seed means the same on any device."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        """A token of ``logits`` (vocabulary,); raises NotFiniteError."""
        best = logits.max()  # NaN if any is
        if not bool(torch.isfinite(best)):
            raise NotFiniteError(f"the largest logit is {float(best)}")
        if self.temperature == 0:
            return int(logits.argmax())
        chances = (logits.double().cpu() / self.temperature).softmax(0)
        if self.top_p < 1:
            chances = nucleus(chances, self.top_p)
        return int(torch.multinomial(chances, 1, generator=self.generator))


def nucleus(chances: Tensor, top_p: float) -> Tensor:
    """``chances`` (n,) with all set to 0 but the likeliest that have ``top_p`` of them together."""
    ordered, places = chances.sort(descending=True)
    before = ordered.cumsum(0) - ordered  # what the likelier ones have
    return torch.zeros_like(chances).scatter(0, places[before < top_p], ordered[before < top_p])


class Writer:
    """A conversation under way: ``ids`` are all tokens fed, ``written`` the places of the model's own."""

    def __init__(
        self, stream: Stream, chat: Chat, turns: Iterator[str], sampler: Sampler, turn_tokens: int
    ) -> None:
        self.decoder = stream.decoder()
        self.chat = chat
        self.coming = turns
        self.sampler = sampler
        self.turn_tokens = turn_tokens
        self.device = next(stream.model.parameters()).device
        self.ids: list[int] = []
        self.written: list[int] = []
        self.turns: list[Turn] = []
        self.logits: Tensor

    def write(self, count: int, wrote: Callable[[int], None] = lambda _: None) -> None:
        """Write until there are ``count`` tokens; ``wrote`` is told how many there are, after each.

        Raises NotFiniteError; what was written before stays.
        """
        with self.decoder.attached():
            while len(self.written) < count:
                if not self.turns or self._answered():
                    self._put(next(self.coming))
                self._answer()
                wrote(len(self.written))

    def _answered(self) -> bool:
        turn = self.turns[-1]
        return turn.ended is not None or len(turn.answer) >= self.turn_tokens

    def _put(self, words: str) -> None:
        """Feed a turn, after which ``logits`` are those of the answer's first token."""
        ids = self.chat.next(words, self.turns[-1].ended) if self.turns else self.chat.first(words)
        self.turns.append(Turn(words, len(self.written)))
        for token in ids:
            self._feed(token)

    def _answer(self) -> None:
        """Choose the next token and feed it."""
        token, turn = self.sampler(self.logits), self.turns[-1]
        self.written.append(len(self.ids))
        turn.answer.append(token)
        turn.ended = token if token in self.chat.ends else None
        self._feed(token)

    def _feed(self, token: int) -> None:
        hidden = self.decoder.feed(torch.tensor([token], device=self.device))
        self.logits = self.decoder.head.logits(hidden)[0]
        self.ids.append(token)
