"""The `attention` workload in one process: figures against the library's weights, pieces, bins, artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench import registry
from bench.workload import Cell, Cost, Missing, Pass, Samples
from ddposink.streaming import UnsupportedModelError
from ddposink.workloads.attention import AttentionParams, AttentionWorkload
from ddposink.workloads.attention_shares import Reading, along, bin_edges, of_pieces
from helpers.families import VOCAB, build

WORDS = [f"w{i}" for i in range(VOCAB - 2)]
SHAPE = {"length": 200, "pieces": 3, "span": 20, "chunk": 16, "threshold": 0.25}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with a word tokenizer, and a text of 400 words."""
    place = tmp_path_factory.mktemp("attention")
    vocabulary = {"<s>": 0, " ": 1} | {w: i + 2 for i, w in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "isolated")
    for name in ("llama", "gpt-oss", "gpt2"):
        build(name).save_pretrained(place / name)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
        fast.save_pretrained(place / name)
    (place / "text.txt").write_text(" ".join(np.random.default_rng(0).choice(WORDS, 400)))
    return place


class Recorder:
    """A context that keeps what it is told."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.told: list[dict[str, Any]] = []
        self.progressed: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, **values: float) -> None:
        self.progressed.append((done, total))

    def emit(self, cell: Cell, metrics: Mapping[str, Any], **rest: Any) -> None:
        self.told.append({"metrics": dict(metrics), **rest})


def measure(place: Path, out: Path, model: str = "llama", seed: int = 0, **params: Any) -> dict[str, Any]:
    named = model if ":" in model else f"path:{place / model}"
    asked = {"model": named, "corpus": f"file:{place / 'text.txt'}"} | SHAPE | params
    checked = AttentionParams(**asked)
    cell = Cell("0", json.loads(checked.model_dump_json()), "cell", seed)
    recorder = Recorder(out)
    AttentionWorkload().run(Pass("p", "attention", (cell,), Cost(1, "tokens")), recorder)
    (told,) = recorder.told
    fed = checked.length + checked.pieces * checked.span
    assert recorder.progressed[-1] == (fed, fed)
    return told


def tokens(place: Path) -> torch.Tensor:
    fast = PreTrainedTokenizerFast.from_pretrained(place / "llama")
    return torch.tensor(fast((place / "text.txt").read_text(), add_special_tokens=False)["input_ids"])


def eager(model: str, ids: torch.Tensor) -> np.ndarray:
    """(N, L, L): all heads of all layers, by the library."""
    built = build(model)
    built.set_attn_implementation("eager")
    with torch.no_grad():
        found = built(input_ids=ids[None], output_attentions=True).attentions
    return torch.cat(found).flatten(0, 1).double().numpy()


@pytest.mark.parametrize("model", ["llama", "gpt-oss"])
@pytest.mark.parametrize("bos", [False, True])
def test_figures_are_those_of_the_librarys_own_weights(
    place: Path, tmp_path: Path, model: str, bos: bool
) -> None:
    told, text = measure(place, tmp_path, model, bos=bos), tokens(place)
    begin, size = torch.zeros(int(bos), dtype=torch.long), 20 - bos
    pieces = [eager(model, torch.cat([begin, text[i * size : (i + 1) * size]])) for i in range(3)]
    nowhere = [1 - piece.sum(-1) if model == "gpt-oss" else 0 * piece[..., 0] for piece in pieces]
    sinks = [(p[..., 0] + n).mean(-1) for p, n in zip(pieces, nowhere, strict=True)]
    metrics = told["metrics"]
    shares = [float((sink > SHAPE["threshold"]).mean()) for sink in sinks]
    assert 0 < np.mean(shares) < 1
    assert metrics["sink_share"] == Samples(pytest.approx(np.mean(shares)), pytest.approx(shares))
    first = [p[..., 0].mean() for p in pieces]
    assert metrics["attention_first"].values == pytest.approx(first, abs=1e-6)
    few = [p[..., :4].sum(-1).mean() for p in pieces]
    assert metrics["attention_first_four"].values == pytest.approx(few, abs=1e-6)
    assert metrics["attention_strongest"] == pytest.approx(np.mean(sinks, 0).max(), abs=1e-6)
    if model == "gpt-oss":
        assert metrics["attention_learned"].values == pytest.approx([n.mean() for n in nowhere], abs=1e-6)
    else:
        assert metrics["attention_learned"] == Missing("this model has no learned sink logits")
    maps = np.load(next(path for path in told["artifacts"] if path.name.startswith("sinkmap-")))
    assert maps["sink"] == pytest.approx(np.mean(sinks, 0), abs=1e-6)
    assert {len(maps[name]) for name in maps.files} == {metrics["heads"]}
    top = int(maps["sink"].argmax())
    assert told["facts"]["strongest_head"] == f"layer {maps['layer'][top]}, head {maps['head'][top]}"


def test_shares_along_the_text_are_those_of_one_long_reading(place: Path, tmp_path: Path) -> None:
    told, whole = measure(place, tmp_path), eager("llama", tokens(place)[:200])
    bins = np.load(next(path for path in told["artifacts"] if path.name.startswith("along-")))
    assert bins["position"].tolist() == [64, 96, 128, 200]
    assert bins["first"][2] == pytest.approx(whole[:, 96:128, 0].mean(), abs=1e-6)
    assert bins["few"][-1] == pytest.approx(whole[:, 128:, :4].sum(-1).mean(), abs=1e-6)
    assert told["metrics"]["attention_first_four_far"] == pytest.approx(float(bins["few"][-1]), abs=1e-6)
    assert told["metrics"]["attention_first_far"] == pytest.approx(float(bins["first"][-1]), abs=1e-6)
    assert told["conformance"]["farthest_sum_from_1"] < 1e-5
    assert told["status"] == "ok"


def test_every_metric_is_declared_and_present(place: Path, tmp_path: Path) -> None:
    assert set(measure(place, tmp_path)["metrics"]) == {metric.name for metric in AttentionWorkload.metrics}


def test_random_weights_read_random_tokens_that_a_seed_draws(place: Path, tmp_path: Path) -> None:
    params = {"model": "random:tiny", "bos": True, "length": 32}  # a suite's defaults are not of this cell
    one, two, again = (measure(place, tmp_path, seed=seed, **params)["metrics"] for seed in (0, 1, 0))
    assert one["attention_first"] == again["attention_first"] != two["attention_first"]
    assert one["sink_share"].value == 0  # uniform over 20 tokens is 0.18: the 20th harmonic number / 20
    checked, workload = AttentionParams(**params), AttentionWorkload()
    assert workload.seeded(checked)
    assert not checked.bos
    assert workload.label(checked) == "tiny (random weights) · 32"


def test_a_text_longer_than_the_model_takes_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="does not run as a stream"):
        measure(place, tmp_path, "gpt2")
    assert measure(place, tmp_path, "gpt2", length=64)["status"] == "ok"


def test_what_is_not_a_number_is_no_share(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddposink.workloads import attention_run

    reading = attention_run._reading
    monkeypatch.setattr(attention_run, "_reading", lambda shares: broken(reading(shares)))
    told = measure(place, tmp_path)
    assert (told["status"], told["reason"]) == ("nan", "some attention is NaN")


def broken(reading: Reading) -> Reading:
    return Reading(reading.first * np.nan, reading.few, reading.learned)


def test_a_head_counts_piece_by_piece_and_a_learned_logit_counts_as_a_sink() -> None:
    half, none = np.full((1, 4), 0.5), np.zeros((1, 4))
    pieces = [Reading(half, half, none), Reading(none, none, half), Reading(none, half, none)]
    figures = of_pieces(pieces, 0.3)
    assert figures["sink_share"] == Samples(pytest.approx(2 / 3), (1.0, 1.0, 0.0))
    assert figures["attention_strongest"] == pytest.approx(1 / 3)
    assert figures["attention_learned"] == Samples(pytest.approx(1 / 6), (0.0, 0.5, 0.0))


@pytest.mark.parametrize("length", [2, 63, 64, 65, 80, 95, 96, 100, 1000, 2048, 2049])
def test_bins_cover_the_text_and_grow(length: int) -> None:
    edges = bin_edges(length)
    assert (edges[0], edges[-1]) == (0, length)
    assert edges[1] == min(64, length) or length < 80
    sizes = np.diff(edges)
    assert (sizes > 0).all()
    share = np.random.default_rng(0).random((3, length))
    found = along(Reading(share, share, None), 0.5)
    assert (found["first"] * sizes).sum() == pytest.approx(share.mean(0).sum())


def test_bins_are_two_a_doubling() -> None:
    assert bin_edges(512) == [0, 64, 96, 128, 192, 256, 384, 512]


def test_it_is_known_and_what_it_says_is_checked(place: Path) -> None:
    assert isinstance(registry.load("attention"), AttentionWorkload)
    assert not {m.name for m in AttentionWorkload.metrics} & set(AttentionParams.model_fields)
    with pytest.raises(ValidationError, match="a corpus is required"):
        AttentionParams(model=f"path:{place / 'llama'}")
    checked = AttentionParams(model=f"path:{place / 'llama'}", corpus=f"file:{place / 'text.txt'}")
    workload = AttentionWorkload()
    assert workload.cost(checked) == Cost(2048 + 16 * 64, "tokens")
    assert set(workload.identity(checked)) == {"model.sha256", "corpus.sha256"}
    assert not workload.seeded(checked)
    assert workload.columns(checked)["threshold"] == 0.3
