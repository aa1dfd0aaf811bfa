"""The pure parts of the `recall` workload: facts, distances, Wilson's limits."""

from __future__ import annotations

import json
import re
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bench.suite.model import parse_suite
from bench.suite.plan import make_plan
from bench.workload import Samples
from ddposink.workloads.recall import RecallWorkload
from ddposink.workloads.recall_facts import APART, ENTRY, NAMES, SENTENCE, Wording, facts
from ddposink.workloads.recall_params import RecallParams
from ddposink.workloads.recall_reader import Answer
from ddposink.workloads.recall_score import figures, wilson
from ddposink.workloads.recall_tasks import Step, TooFarError, texts
from ddposink.workloads.recall_text import Filler, Pieces, sentences_of


class Letters:
    """A tokenizer with one token a character."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


PIECES = Pieces(Letters())
BOOK = [f" {'x' * (10 + 7 * i % 31)}." for i in range(40)]
FILLER = Filler([PIECES.ids(sentence) for sentence in BOOK])
LONGEST = max(map(len, BOOK))
FACT = 80  # characters of one, about


class Joining:
    """A tokenizer that treats a beginning in its own way, and joins line breaks to a full stop."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        words = re.findall(r"[.?]\n*|\n+| ?\w+|.", text)
        return {"input_ids": [sum(map(ord, word)) + (i == 0) for i, word in enumerate(words)]}


class Gluing:
    """A tokenizer of one token."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(text)]}


def params(**changes: object) -> RecallParams:
    return RecallParams(**{"model": "smollm2-135m", "policy": "dense", "distance": 1} | changes)  # type: ignore[arg-type]


def read(steps: list[Step]) -> list[tuple[str, object]]:
    """What stands before each question, and the question."""
    found, text = [], ""
    for step in steps:
        text += "".join(map(chr, step.more))
        found += [(text, question) for question in step.questions]
    return found


@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([SENTENCE, ENTRY]))
def test_a_name_is_given_again_only_after_many_others(seed: int, digits: int, wording: Wording) -> None:
    told = list(islice(facts(np.random.default_rng(seed), digits, wording), 3 * len(NAMES)))
    for i, fact in enumerate(told):
        assert fact.name not in {other.name for other in told[i + 1 : i + 1 + APART]}
        assert re.fullmatch(rf"\d{{{digits}}}", fact.code)
        assert fact.statement.count(fact.code) == 2
        assert fact.code not in fact.question
        assert (fact.question + fact.answer).rstrip(".").endswith(fact.code)


@given(
    st.integers(0, 2**32),
    st.sampled_from(["passkey", "needles"]),
    st.lists(st.integers(1, 900), min_size=1, max_size=4, unique=True),
)
def test_the_fact_stands_as_far_back_as_whole_sentences_allow(
    seed: int, task: str, wanted: list[int]
) -> None:
    wanted.sort()
    cell = params(task=task, questions=3, distance=wanted[-1])
    for steps in texts(cell, wanted, seed, PIECES, FILLER):
        for text, question in read(list(steps)):
            asked = "".join(map(chr, question.asked))
            (name,) = re.findall(r"The (\w+) number is$|(\w+):$", asked)
            code = "".join(map(chr, question.answer)).strip()
            statement = f"The {name[0]} number is {code}." if task == "passkey" else f". {name[1]}: {code}."
            assert text.count(statement) == 1
            assert len(text) - text.index(statement) - len(statement) == question.distance
            between = text[len(text) - question.distance :] if question.distance else ""
            if between.endswith("x.") or not between:  # a sentence ends here, and none ends nearer
                assert abs(question.distance - question.wanted) <= LONGEST / 2 + 3
            else:  # other facts alone are as far as that, or the first sentence is too long
                assert question.distance >= question.wanted - LONGEST / 2 - 3


@given(st.integers(0, 2**32), st.sampled_from(["passkey", "needles", "stream"]))
def test_a_distance_has_the_same_questions_whatever_others_are_asked_about(seed: int, task: str) -> None:
    wanted = [90, 300, 700]
    cell = params(task=task, questions=3, interval=4, distance=700)
    together = [read(list(steps)) for steps in texts(cell, wanted, seed, PIECES, FILLER)]
    for one in wanted:
        alone = [read(list(steps)) for steps in texts(cell, [one], seed, PIECES, FILLER)]
        among = [[pair for pair in text if pair[1].wanted == one] for text in together]
        assert alone == among
        assert sum(map(len, alone)) == 3


@given(st.integers(0, 2**32), st.integers(1, 1500), st.integers(1, 12))
def test_lines_are_asked_about_at_intervals(seed: int, distance: int, interval: int) -> None:
    cell = params(task="stream", questions=4, interval=interval, distance=distance)
    (steps,) = texts(cell, [distance], seed, PIECES, None)
    asked = read(list(steps))
    lines = [text.count("Remember:") for text, _ in asked]
    assert len(asked) == 4
    assert all(after - before == interval for before, after in pairwise(lines))
    for text, question in asked:
        assert abs(question.distance - distance) <= FACT
        latest = text[: len(text) - question.distance].rsplit("\n\n", 1)[1]
        assert "".join(map(chr, question.answer)).strip() in latest


def test_what_is_farther_than_all_names_is_refused() -> None:
    cell = params(task="stream", distance=100_000)
    (steps,) = texts(cell, [100_000], 0, PIECES, None)
    with pytest.raises(TooFarError, match="names have come again"):
        list(steps)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_limits_are_those_of_scipy(share: tuple[int, int]) -> None:
    right, asked = share
    expected = binomtest(right, asked).proportion_ci(0.95, "wilson")
    assert wilson(right, asked) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(right, asked)[0] <= right / asked <= wilson(right, asked)[1]


def test_no_share_of_nothing() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        wilson(0, 0)


def test_figures_keep_every_answer() -> None:
    found = figures([Answer(True, 0.5, 60, 100, 8), Answer(False, 1.5, 70, 120, 16)])
    assert set(found) == {metric.name for metric in RecallWorkload.metrics}
    assert found["accuracy"] == Samples(0.5, (1.0, 0.0))
    assert found["answer_nll"] == Samples(1.0, (0.5, 1.5))
    assert (found["true_distance"], found["tokens_fed"], found["kv_bytes"]) == (65.0, 220, 16)


def test_sentences_that_can_stand_anywhere() -> None:
    text = (
        'He was a man of sense and honour. "No!" she cried. In 1805 he had\n'
        "been far away from home. Yes. She was\nvery glad of it all."
    )
    assert sentences_of(text) == ["He was a man of sense and honour.", "She was very glad of it all."]


def test_a_piece_is_the_same_wherever_it_stands() -> None:
    assert Pieces(Joining()).ids("\n\nAn oak.") == [20, 175, 32 + ord("o") + ord("a") + ord("k"), ord(".")]
    with pytest.raises(ValueError, match="joins"):
        Pieces(Gluing()).ids(" oak")


def test_what_a_task_does_not_ask_for_splits_no_cells() -> None:
    suite = {
        "suite": "t",
        "workload": "recall",
        "defaults": {"model": "smollm2-135m", "policy": "dense", "distance": 64},
        "grid": {"task": ["passkey", "needles", "stream"], "needles": [2, 4], "interval": [5, 10]},
    }
    plan = make_plan(parse_suite(json.dumps(suite).encode(), "t.yaml"), RecallWorkload())
    assert [cell.params["task"] for cell in plan.cells] == [
        "passkey",
        "needles",
        "needles",
        "stream",
        "stream",
    ]


def test_facts_among_the_sinks_are_worth_a_note() -> None:
    assert not list(RecallWorkload().notes(params(policy="sink 4+60")))
    (note,) = RecallWorkload().notes(params(policy="sink 100+60"))
    assert note.endswith("write a longer `lead`")


def test_random_weights_remember_nothing() -> None:
    with pytest.raises(ValueError, match="remembers nothing"):
        params(model="random:llama-2-7b")
