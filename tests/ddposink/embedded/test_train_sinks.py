"""Training small models for learned sinks: resumable to the bit, and its products usable by suites."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from ddposink.caches import parse_policy
from ddposink.corpora import CorpusRef, load_stream
from ddposink.embedded import sink_training, train_sinks
from ddposink.embedded.sink_training import (
    Pace,
    SinkRecipe,
    load_checkpoint,
    new_state,
    sample,
    save_checkpoint,
    train,
)
from ddposink.models.language import ModelRef, load_model
from ddposink.models.packed import pack, unpack, unpack_bytes
from ddposink.streaming import evaluate, open_stream

TINY = SinkRecipe(layers=2, width=32, heads=2, context=24, batch=2, vocabulary=300, steps=9, warm_up=3)
WORDS = [
    "whale",
    "rose",
    "and",
    "the",
    "sea",
    "was",
    "grey",
    "as",
    "a",
    "winter",
    "morning",
    "of",
    "harbours",
]


def words(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count)) + "\n"


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.txt").write_text(words(400, number))
    (folder / "apart.txt").write_text("nothing but apples " * 100)
    return folder


def ids(count: int = 600, seed: int = 3) -> torch.Tensor:
    return torch.randint(1, TINY.vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("sink_token", [False, True])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, sink_token: bool) -> None:
    recipe, text, held_out = replace(TINY, sink_token=sink_token), ids(), ids(80, seed=4)
    pace = Pace(look=2, save_seconds=0.0)
    whole = new_state(recipe)
    for _ in train(whole, text, held_out, tmp_path / "whole", pace):
        pass

    cut = new_state(recipe)
    for _ in train(cut, text, held_out, tmp_path / "cut", pace):
        if cut.step == 5:  # the checkpoint is of step 4: step 5 is lost and done again
            break
    resumed = load_checkpoint(tmp_path / "cut", recipe)
    assert resumed.step == 4
    assert not same(weights(resumed.model), weights(cut.model))
    torch.rand(7)  # whatever else drew random numbers in between
    for _ in train(resumed, text, held_out, tmp_path / "cut", pace):
        pass

    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.step == whole.step == 9
    timeless = [[{k: v for k, v in e.items() if k != "seconds"} for e in s.history] for s in (whole, resumed)]
    assert timeless[0] == timeless[1]
    assert [entry["step"] for entry in whole.history] == [2, 4, 6, 8, 9]
    assert not same(weights(whole.model), weights(new_state(recipe).model))


def test_the_optimizer_comes_back_too(tmp_path: Path) -> None:
    state, text = new_state(TINY), ids()
    for _ in range(3):
        sink_training.advance(state, text)
    save_checkpoint(state, tmp_path / "c")
    back = load_checkpoint(tmp_path / "c", TINY)
    before, after = state.optimizer.state_dict()["state"], back.optimizer.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(same(before[i], after[i]) for i in before)
    assert any(bool(slot["exp_avg"].abs().sum() > 0) for slot in after.values())


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    save_checkpoint(new_state(TINY), tmp_path / "c")
    with pytest.raises(ValueError, match="was trained with seed=0: repeat these options"):
        load_checkpoint(tmp_path / "c", replace(TINY, seed=1))


def test_a_training_may_be_ended_early_or_prolonged(tmp_path: Path) -> None:
    state = new_state(TINY)
    for _ in train(state, ids(), ids(80, seed=4), tmp_path / "c", Pace(look=100)):
        pass
    longer = load_checkpoint(tmp_path / "c", replace(TINY, steps=11))
    assert len(list(train(longer, ids(), ids(80, seed=4), tmp_path / "c", Pace(look=100)))) == 2
    shorter = load_checkpoint(tmp_path / "c", replace(TINY, steps=5))
    assert list(train(shorter, ids(), ids(80, seed=4), tmp_path / "c", Pace(look=100))) == []
    assert shorter.step == 11


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    save_checkpoint(new_state(TINY), tmp_path / "c")
    raw = (tmp_path / "c").read_bytes()
    header = int.from_bytes(raw[:8], "little")
    assert "model.model.embed_tokens.weight" in json.loads(raw[8 : 8 + header])


def test_samples_are_windows_of_the_text_and_a_function_of_the_step() -> None:
    text = torch.arange(1, 601)
    plain, with_sink = sample(text, TINY, 5), sample(text, replace(TINY, sink_token=True), 5)
    assert plain.shape == with_sink.shape == (TINY.batch, TINY.context)
    assert (plain.diff(dim=1) == 1).all()
    assert (with_sink[:, 0] == 0).all()
    assert (with_sink[:, 1:].diff(dim=1) == 1).all()
    assert torch.equal(plain, sample(text, TINY, 5))
    assert not torch.equal(plain, sample(text, TINY, 6))
    starts = torch.cat([sample(text[: TINY.context + 1], TINY, step)[:, 0] for step in range(40)])
    assert set(starts.tolist()) == {1, 2}, "the last window of the text must be reachable, and no further"


def test_the_learning_rate_warms_up_holds_and_falls_to_almost_zero() -> None:
    recipe = SinkRecipe(steps=1000, warm_up=100, decay=0.25, learning_rate=1.0)
    rates = [recipe.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99:750] == [1.0] * 651
    assert rates[875] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01


def test_training_learns() -> None:
    recipe, text = replace(TINY, steps=120), ids(24).repeat(20)
    state = new_state(recipe)
    first = sink_training.advance(state, text)
    last = [sink_training.advance(state, text) for _ in range(119)][-1]
    assert last < 0.5 * first


def test_a_look_sees_a_sink_where_there_is_one() -> None:
    state = new_state(replace(TINY, sink_token=True))
    found = sink_training.look(state, ids(200))
    assert set(found["nll"]) == {"0", "1", "2", "4"}
    queries = torch.arange(TINY.context // 2, TINY.context)
    uniform = float((1 / (queries + 1)).mean())  # weights near zero: attention is spread evenly
    assert found["mass"]["mean"] == pytest.approx([uniform, uniform], rel=0.05)
    assert state.model.training, "training goes on in training mode"
    assert state.model.config._attn_implementation == "sdpa"

    with torch.no_grad():  # dimension 0 marks text, dimension 1 the sink token; queries ask for the latter
        embedding = state.model.model.embed_tokens.weight
        embedding[:, 0], embedding[:, 1] = 1.0, 0.0
        embedding[0] = torch.eye(TINY.width)[1]
        attention = state.model.model.layers[0].self_attn
        slow = TINY.width // TINY.heads // 2 - 1  # the slowest pair of rotary dimensions of each head
        attention.q_proj.weight[slow :: TINY.width // TINY.heads, 0] = 30.0
        attention.k_proj.weight[slow :: TINY.width // TINY.heads, 1] = 30.0
    found = sink_training.look(state, ids(200))
    assert found["mass"]["mean"][0] > 0.99
    assert found["mass"]["strongest_head"][1] < 0.1


def test_command_line_trains_resumes_and_exports_a_loadable_model(tmp_path: Path, books: Path) -> None:
    app = typer.Typer()
    app.command()(train_sinks.main)
    out = tmp_path / "out"
    options = [
        *("--out", str(out), "--sink-token", "--corpus", f"folder:{books}"),
        *("--held-out", f"file:{books / 'apart.txt'}", "--steps", "6", "--layers", "2", "--width", "32"),
        *("--heads", "2", "--context", "24", "--batch", "2", "--vocabulary", "300", "--look-every", "3"),
        *("--look-tokens", "100", "--save-every", "0"),
    ]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "step      6" in done.output
    loaded = load_model(ModelRef.parse(f"path:{out / 'model'}"), "float32", "cpu")
    assert loaded.tokenizer.bos_token == "<|sink|>"
    assert loaded.train_length == 24
    assert loaded.model.config.bos_token_id == loaded.tokenizer.bos_token_id == 0
    state = load_checkpoint(
        out / "checkpoint.safetensors", replace(TINY, sink_token=True, steps=6, warm_up=200)
    )
    trained = {name: p.numpy() for name, p in weights(state.model).items()}
    wanted = unpack(pack(trained))
    for name, p in loaded.model.named_parameters():
        assert np.array_equal(p.numpy(), wanted[name])
    packed = out / "packed" / "model.packed.safetensors"
    assert unpack_bytes(packed.read_bytes()) == (out / "model" / "model.safetensors").read_bytes()
    assert {f.name for f in (out / "model").iterdir()} ^ {f.name for f in (out / "packed").iterdir()} == {
        "model.safetensors", "model.packed.safetensors",
    }  # fmt: skip
    text = load_stream(CorpusRef.parse(f"file:{books / 'apart.txt'}"), loaded.tokenizer, 60, bos=True)
    assert text.ids[0] == 0
    assert text.byte_end[-1] <= len("nothing but apples " * 100)
    card = (out / "model" / "README.md").read_text()
    assert "a learnable sink token" in card
    command = "--out DIR --sink-token --steps 6 --layers 2 --width 32 --heads 2 --context 24 --batch 2"
    assert f"{command} --vocabulary 300`" in card
    assert f"| 6 | 0 | {state.history[-1]['loss']:.3f} |" in card
    assert str(tmp_path) not in json.dumps(json.loads((out / "model" / "training.json").read_text()))

    again = CliRunner().invoke(app, options)  # finished: nothing is trained again
    assert again.exit_code == 0, again.output
    assert "step 6 of 6" in again.output
    other = CliRunner().invoke(app, [*options, "--seed", "1"])
    assert other.exit_code == 2
    assert "seed=0" in " ".join(other.output.replace("│", " ").split())


def test_the_held_out_book_is_not_trained_on(tmp_path: Path, books: Path) -> None:
    held_out = f"file:{books / 'apart.txt'}"
    tokenizer, text, apart = train_sinks.read_data(TINY, tmp_path, f"folder:{books}", held_out, 50)
    assert "apples" not in tokenizer.decode(text)
    assert "apples" in tokenizer.decode(apart)
    assert "whale" in tokenizer.decode(text)
    assert tokenizer.bos_token is None


def test_both_tokenizers_give_the_same_ids_and_every_byte_survives(books: Path) -> None:
    texts = [(books / "0.txt").read_text()]
    plain = train_sinks.make_tokenizer(texts, TINY)
    with_sink = train_sinks.make_tokenizer(texts, replace(TINY, sink_token=True))
    text = "the whale — é 🐋\n\n\tNUL-free" + words(50, 9)
    encoded = plain(text, add_special_tokens=False)["input_ids"]
    assert encoded == with_sink(text, add_special_tokens=False)["input_ids"]
    assert plain.decode(encoded) == text
    assert 0 not in encoded, "the sink token never stands for text"


def test_help_comes_without_training() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ddposink.train_sinks", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--sink-token" in done.stdout


def test_streamed_nll_is_the_loss_that_training_minimises() -> None:
    state = new_state(TINY)
    text = ids(TINY.context)
    streamed = evaluate(open_stream(state.model, parse_policy("dense")).stream, text)
    loss = state.model(input_ids=text[None], labels=text[None]).loss.detach()
    assert float(streamed.mean()) == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("name", ["vanilla", "sink-token"])
def test_bundled_models_load_and_only_one_has_a_sink(name: str) -> None:
    ref = ModelRef.parse(f"bundled:sink-llama/{name}")
    assert ref.folder is not None
    assert sum(f.stat().st_size for f in ref.folder.iterdir()) < 1_400_000
    loaded = load_model(ref, "float32", "cpu")
    notes = json.loads((ref.folder / "training.json").read_text())
    recipe = SinkRecipe(**notes["recipe"])
    assert recipe == replace(SinkRecipe(), sink_token=name == "sink-token"), "the defaults are its recipe"
    assert (loaded.tokenizer.bos_token_id == 0) == recipe.sink_token
    passage = (
        "No one would have believed, in the last years of the nineteenth century, that human affairs were "
        "being watched keenly and closely by intelligences greater than man's and yet as mortal as his own. "
    )
    text = torch.tensor(loaded.tokenizer(passage * 4, add_special_tokens=False)["input_ids"])
    state = sink_training.SinkState(recipe, loaded.model, new_state(recipe).optimizer)
    found = sink_training.look(state, torch.cat([torch.zeros(1, dtype=torch.long), text]))
    strongest = max(found["mass"]["strongest_head"])
    assert strongest > 0.3 if recipe.sink_token else strongest < 0.05
