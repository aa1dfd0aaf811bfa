"""The facts to be remembered, and the questions about them: seeded and synthetic, so that no model knows one.

The wording is such that a model of 135 million weights answers from its cache: a number stated twice, and a
question that begins its own answer. What is right is one of ten to the power of its digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Words that a text of the nineteenth century has no numbers for; each is one fact's name.
NAMES = (
    "amber azure brass bronze coral crimson golden green indigo ivory jade lilac maroon olive orange pink "
    "purple red scarlet silver teal violet white yellow brown black blue gray copper lemon cherry plum "
    "iron marble velvet paper glass crystal wooden cotton leather ruby emerald sapphire pearl diamond "
    "rose lavender peach apricot mint cream sandy stone pepper ginger cinnamon honey maple walnut cedar"
).split()
APART = len(NAMES) - 8  # names that come before one is given to another number


@dataclass(frozen=True)
class Wording:
    """How a fact is stated and asked for: a paragraph each, the blank line before it included."""

    statement: str
    question: str


# Told as a sentence: a small model answers it over hundreds of tokens, but confuses several such sentences.
SENTENCE = Wording(
    "\n\nRemember: the {name} number is {code}. The {name} number is {code}.",
    "\n\nWhat is the {name} number? The {name} number is",
)
# Told as an entry of a list: keeps several apart.
ENTRY = Wording("\n\n{name}: {code}. {name}: {code}.", "\n\n{name}:")


@dataclass(frozen=True)
class Fact:
    """``code`` is the number that goes by ``name``."""

    name: str
    code: str
    wording: Wording = SENTENCE

    @property
    def statement(self) -> str:
        """What is read."""
        return self.wording.statement.format(name=self.name, code=self.code)

    @property
    def question(self) -> str:
        """What is asked; it begins the answer."""
        return self.wording.question.format(name=self.name)

    @property
    def answer(self) -> str:
        """What must follow the question."""
        return f" {self.code}"


def facts(rng: np.random.Generator, digits: int, wording: Wording = SENTENCE) -> Iterator[Fact]:
    """Facts without end. A name comes again, with another number, only after `APART` others."""
    names, recent = list(NAMES), list[str]()
    while True:
        recent.append(names.pop(int(rng.integers(len(names)))))
        if len(recent) > APART:
            names.append(recent.pop(0))
        yield Fact(recent[-1], "".join(str(digit) for digit in rng.integers(0, 10, digits)), wording)
