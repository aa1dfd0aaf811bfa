"""Questions answered under a policy: read on, ask, score the answer in one pass, forget that it was asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddposink.models.language import LoadedModel
from ddposink.streaming import Choice, PolicyNotAppliedError, Stream
from ddposink.turns import turn_ends
from ddposink.workloads.recall_tasks import Question


@dataclass(frozen=True)
class Answer:
    """``right``: the most likely token was the answer's, at each of its tokens, each after the right ones.

    That is what greedy decoding would have written. ``nll``: mean over the answer's tokens, in nats.
    ``read``: tokens before the answer's last, from the beginning of the text on. ``kv_bytes``: held when the
    question came.
    """

    right: bool
    nll: float
    distance: int
    read: int
    kv_bytes: int


class Reader(ABC):
    """Reads texts that begin with ``lead`` (token ids) through one model under one policy."""

    def __init__(self, choice: Choice, loaded: LoadedModel, lead: Sequence[int]) -> None:
        self.reason, self.loaded, self.lead = choice.reason, loaded, list(lead)
        self.renew = choice.renew
        self.device = next(loaded.model.parameters()).device
        self.stream: Stream = choice.stream  # the one that was read last

    @abstractmethod
    def reading(self) -> AbstractContextManager[object]:
        """The lead has been read; every text is read inside this context, and begins behind the lead."""

    @abstractmethod
    def text(self, tokens: int) -> AbstractContextManager[object]:
        """A text of at most ``tokens``, questions included; when it is left it is forgotten."""

    @abstractmethod
    def read(self, more: Sequence[int]) -> None:
        """Go on with the text."""

    @abstractmethod
    def ask(self, question: Question) -> Answer:
        """Ask from here, score the answer, and forget both."""

    def _feed(self, ids: Sequence[int]) -> list[Tensor]:
        """Hidden states of all ``ids`` (m,), forward by forward, (m, d) in all."""
        tokens, hidden = torch.tensor(ids, dtype=torch.long, device=self.device), []
        while len(tokens):
            size = self.stream.next_size(len(tokens))
            hidden.append(self.stream.feed(tokens[:size]))
            tokens = tokens[size:]
        return hidden

    def _score(self, question: Question) -> Answer:
        """Leaves question and answer in the stream."""
        held = checked_bytes(self.stream)
        answer = torch.tensor(question.answer, device=self.device)
        hidden = torch.cat(self._feed([*question.asked, *question.answer[:-1]]))
        logits = self.stream.head.logits(hidden[-len(answer) :]).float()
        nll = torch.nn.functional.cross_entropy(logits, answer)
        right = bool((logits.argmax(-1) == answer).all())
        return Answer(right, float(nll), question.distance, self.stream.seen, held)


class Forking(Reader):
    """One stream for all texts, put back after each question and each text: what they share is read once."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A stream that has read the lead."""
        if self.stream.seen:
            self.stream = self.renew(None)
        with self.stream.attached():
            self._feed(self.lead)
            yield

    @contextmanager
    def text(self, tokens: int) -> Iterator[None]:
        """Put back behind the lead at the end."""
        begin = self.stream.mark(tokens)
        yield
        self.stream.rewind(begin)

    def read(self, more: Sequence[int]) -> None:
        """Feed it."""
        self._feed(more)

    def ask(self, question: Question) -> Answer:
        """What a new stream over the same text would answer."""
        here = self.stream.mark(question.tokens)
        answer = self._score(question)
        self.stream.rewind(here)
        return answer


class Whole(Reader):
    """A stream of its own for each question, for policies that must know the turns of what comes."""

    _text: list[int]  # read so far, the lead included

    def reading(self) -> AbstractContextManager[object]:
        """Nothing is read before it is known what will be asked."""
        return nullcontext()

    @contextmanager
    def text(self, tokens: int) -> Iterator[None]:
        """Begins with the lead."""
        self._text = list(self.lead)
        yield

    def read(self, more: Sequence[int]) -> None:
        """Keep it until something is asked."""
        self._text += more

    def ask(self, question: Question) -> Answer:
        """Everything from the beginning of the text on is read again."""
        everything = np.array([*self._text, *question.asked, *question.answer], dtype=np.int64)
        ends = torch.from_numpy(turn_ends(everything, self.loaded.tokenizer))
        self.stream = self.renew(ends)
        with self.stream.attached():
            self._feed(self._text)
            return self._score(question)


def checked_bytes(stream: Stream) -> int:
    """Measured bytes of keys and values held. Raises PolicyNotAppliedError if the policy promises others."""
    held, promised = stream.nbytes(), stream.predicted_bytes()
    if held != promised:
        raise PolicyNotAppliedError(
            f"after {stream.seen} tokens the cache holds {stream.held} tokens in {held} bytes; "
            f"'{stream.policy}' promises {promised} bytes"
        )
    return held
