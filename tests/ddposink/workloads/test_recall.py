"""The `recall` workload in one process: what is shared changes no answer; what is evicted is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from bench.workload import Cell, Cost, Missing, Pass, Samples
from ddposink.caches import parse_policy
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import PolicyNotAppliedError, open_stream
from ddposink.workloads import recall_reader
from ddposink.workloads.recall import RecallWorkload
from ddposink.workloads.recall_params import RecallParams
from ddposink.workloads.recall_tasks import texts
from ddposink.workloads.recall_text import Filler, Pieces
from helpers.recorder import Recorder, save_tiny_llama

CHARACTERS = "\n .,:?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
DISTANCES = (40, 150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that reads letter by letter, and a text of sentences."""
    place = tmp_path_factory.mktemp("model")
    vocabulary = {"<s>": 0} | {c: i + 1 for i, c in enumerate(CHARACTERS)}
    save_tiny_llama(place, vocabulary, r"[\s\S]", size=len(vocabulary), positions=512)
    words = np.random.default_rng(0).choice(["oak", "elm", "ash", "yew"], (60, 6))
    (place / "book.txt").write_text(" ".join(f"The {' '.join(row)} grow." for row in words))
    return place


def measure(
    folder: Path, distances: tuple[int, ...] = DISTANCES, into: Recorder | None = None, **params: Any
) -> Recorder:
    defaults = {"model": f"path:{folder}", "corpus": f"file:{folder}/book.txt", "policy": "sink 4+60",
                "chunk": 32, "questions": 3, "interval": 2, "lead": 30, "needles": 2}  # fmt: skip
    cells = []
    for distance in distances:
        checked = RecallParams(**{**defaults, **params, "distance": distance})
        cells.append(Cell(str(distance), json.loads(checked.model_dump_json()), "cell", seed=5))
    recorder = into or Recorder(key="distance")
    RecallWorkload().run(Pass("p", "recall", tuple(cells), Cost(1, "tokens")), recorder)  # type: ignore[arg-type]
    return recorder


@pytest.mark.parametrize("task", ["passkey", "needles", "stream"])
@pytest.mark.parametrize(
    "policy",
    ["dense", "window 64", "sink 4+60", "sink 4+60 evict=chunk:16", "sink 4+60 evict=turn",
     "sink 4+60 positions=library"],
)  # fmt: skip
def test_a_question_is_answered_as_if_nothing_had_been_asked_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, policy: str, task: str
) -> None:
    """What is shared (lead, context, stream) against a new stream that reads all of it for every question."""
    shared = measure(folder, policy=policy, task=task)
    assert shared.progressed[-1] == (6, 6)
    alone = dict(
        kv for one in DISTANCES for kv in measure(folder, (one,), policy=policy, task=task).cells.items()
    )
    monkeypatch.setattr("ddposink.workloads.recall_run.Forking", recall_reader.Whole)
    again = measure(folder, policy=policy, task=task)
    for distance in DISTANCES:
        first = shared.cells[distance]["metrics"]
        for other in (alone, again.cells):
            metrics = other[distance]["metrics"]
            assert first["answer_nll"].values == pytest.approx(metrics["answer_nll"].values, abs=1e-4)
            exact = ("true_distance", "tokens_fed", "kv_bytes", "questions_asked", "accuracy")
            assert [first[name] for name in exact] == [metrics[name] for name in exact]


def test_dense_is_the_model_itself(folder: Path) -> None:
    """One plain forward over the whole text, scored where the answer stands."""
    cells = measure(folder, policy="dense", lead=0, bos=True).cells
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    pieces = Pieces(tokenizer)
    filler = Filler.of(CorpusRef.parse(f"file:{folder}/book.txt"), pieces)
    params = RecallParams(**{"model": f"path:{folder}", "policy": "dense", "distance": 150, "questions": 3})
    found: dict[int, list[float]] = {distance: [] for distance in DISTANCES}
    for steps in texts(params, DISTANCES, 5, pieces, filler):
        text = [0]
        for step in steps:
            text = text + step.more
            (question,) = step.questions
            ids = torch.tensor([*text, *question.asked, *question.answer])
            with torch.no_grad():
                logits = model(ids[None]).logits[0, -1 - len(question.answer) : -1]
            nll = torch.nn.functional.cross_entropy(logits, torch.tensor(question.answer))
            found[question.wanted].append(float(nll))
    for distance in DISTANCES:
        assert cells[distance]["metrics"]["answer_nll"].values == pytest.approx(found[distance], abs=1e-4)


def test_every_metric_is_declared_and_present(folder: Path) -> None:
    record = measure(folder).cells[150]
    metrics = record["metrics"]
    assert set(metrics) == {metric.name for metric in RecallWorkload.metrics}
    assert not [name for name, value in metrics.items() if isinstance(value, Missing)]
    assert isinstance(metrics["accuracy"], Samples)
    assert (
        metrics["kv_bytes"] == 64 * 2 * 2 * 8 * 4 * 2
    )  # tokens, layers, heads, width, float32, keys and values
    assert record["facts"]["cache_limit"] == 64
    assert record["facts"]["chance"] == 1e-5
    assert record["conformance"]["tokens_held"] == 64


def test_seeds_ask_other_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = measure(folder, (40,), task="stream").cells[40]["metrics"]["answer_nll"]
    assert measure(folder, (40,), task="stream").cells[40]["metrics"]["answer_nll"] == one
    assert measure(folder, (40,), task="stream", digits=4).cells[40]["metrics"]["answer_nll"] != one


def test_a_line_that_no_name_reaches_is_skipped_and_the_nearer_one_answered(folder: Path) -> None:
    cells = measure(folder, (40, 100_000), task="stream").cells
    assert cells[40].get("status", "ok") == "ok"
    assert cells[100_000]["status"] == "skipped"
    assert "names have come again" in cells[100_000]["reason"]


def test_out_of_memory_far_away_leaves_the_nearer_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = recall_reader.Forking._feed

    def little_memory(self: recall_reader.Forking, ids: list[int]) -> list[torch.Tensor]:
        if self.stream.seen + len(ids) > 400:
            raise torch.OutOfMemoryError("too much")
        return feed(self, ids)

    monkeypatch.setattr(recall_reader.Forking, "_feed", little_memory)
    recorder = Recorder(key="distance")
    with pytest.raises(torch.OutOfMemoryError):
        measure(folder, (40, 150, 900), recorder, policy="dense")
    assert sorted(recorder.cells) == [40, 150]


def test_a_cache_of_another_size_is_an_error(folder: Path) -> None:
    loaded = load_model(ModelRef.parse(f"path:{folder}"), "float32", "cpu")
    stream = open_stream(loaded.model, parse_policy("sink 4+60")).stream
    with stream.attached():
        stream.feed(torch.arange(1, 21))
    assert recall_reader.checked_bytes(stream) == stream.nbytes()
    stream.state.seen += 1  # type: ignore[attr-defined]
    stream.state.layers.popitem()  # type: ignore[attr-defined]
    with pytest.raises(PolicyNotAppliedError, match="promises"):
        recall_reader.checked_bytes(stream)


@pytest.mark.assets
def test_a_window_forgets_what_dense_attention_finds() -> None:
    found = {}
    for policy in ("dense", "window 96", "sink 4+92"):
        recorder = Recorder(key="distance")
        params = RecallParams(model="smollm2-135m", policy=policy, distance=120, questions=8, lead=32)
        cell = Cell("c", json.loads(params.model_dump_json()), "cell")
        RecallWorkload().run(Pass("p", "recall", (cell,), Cost(1, "tokens")), recorder)  # type: ignore[arg-type]
        found[policy] = recorder.cells[120]["metrics"]["accuracy"].value
    assert found["dense"] >= 0.9
    assert found["window 96"] == found["sink 4+92"] == 0


def test_a_tokenizer_that_loses_digits_is_refused(tmp_path: Path) -> None:
    """All numbers would be one number, and every answer right."""
    letters = [c for c in CHARACTERS if not c.isdigit()]
    save_tiny_llama(
        tmp_path, {"<s>": 0} | {c: i + 1 for i, c in enumerate(letters)}, r"[\s\S]", size=80, positions=512
    )
    (tmp_path / "book.txt").write_text("The oak and the elm grow. " * 60)
    with pytest.raises(ValueError, match="this tokenizer does not know all of '0123456789'"):
        measure(tmp_path)
