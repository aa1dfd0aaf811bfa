"""The `generate` workload in one process: what is written, by whom it is checked, and what is kept of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.workload import Cell, Cost, Missing, Pass, Skip
from ddposink.caches import parse_policy
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import PolicyNotAppliedError, Stream, UnsupportedPolicyError, open_stream
from ddposink.workloads.generate import GenerateParams, GenerateWorkload
from ddposink.workloads.generate_artifact import ALARM, HEADING, conversation
from ddposink.workloads.generate_chat import Chat
from ddposink.workloads.generate_fresh import FreshScores
from ddposink.workloads.generate_rule import SPAN
from ddposink.workloads.generate_writing import NotFiniteError, Sampler, Turn, Writer
from helpers.recorder import Recorder

WORDS = [f"w{i}" for i in range(56)]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a word tokenizer, a chat template and a text of sentences."""
    place = tmp_path_factory.mktemp("model")
    plain = ["\n", "\n\n", " ", "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(plain)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\n| "), "isolated")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", chat_template=TEMPLATE
    ).save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=len(plain) + len(SPECIAL), initializer_range=0.3,
                         max_position_embeddings=64)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    drawn = np.random.default_rng(0).choice(WORDS, (30, 6))
    (place / "text").mkdir()
    (place / "text" / "book.txt").write_text(" ".join(" ".join(words) + "." for words in drawn))
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load_model(ModelRef.parse(f"path:{folder}"), "float32", "cpu")


class Written(Recorder):
    """Gives the texts that were kept, too."""

    def text(self, length: int) -> str:
        return self.cells[length]["artifacts"][-1].read_text(encoding="utf-8")


def measure(
    folder: Path, out: Path, lengths: tuple[int, ...] = (30, 90), seed: int = 0, **params: Any
) -> Written:
    workload = GenerateWorkload()
    defaults = {"model": f"path:{folder}", "turns": f"file:{folder}/text/book.txt", "policy": "sink 4+28",
                "turn_tokens": 20, "fresh_window": 32, "device": "cpu"}  # fmt: skip
    cells = []
    for length in lengths:
        checked = GenerateParams(**{**defaults, **params, "length": length})
        cells.append(Cell(str(length), json.loads(checked.model_dump_json()), "cell", seed))
    recorder = Written(out)
    workload.run(Pass("p", "generate", tuple(cells), Cost(max(lengths), "tokens")), recorder)
    return recorder


def writer(loaded: Any, policy: str, temperature: float = 0.0, seed: int = 0, **options: Any) -> Writer:
    stream = open_stream(loaded.model, parse_policy(policy), **options).stream
    asked = iter([f"w{i} w{i + 1}" for i in range(50)])
    return Writer(stream, Chat(loaded.tokenizer), asked, Sampler(temperature, 1.0, seed), 12)


@torch.no_grad()
def test_greedy_writes_the_likeliest_token_of_the_untouched_model(loaded: Any) -> None:
    made = writer(loaded, "dense")
    made.write(60)
    logits = loaded.model(input_ids=torch.tensor([made.ids])).logits[0]
    assert [made.ids[p] for p in made.written] == [int(logits[p - 1].argmax()) for p in made.written]


@pytest.mark.parametrize("policy", ["window 24", "sink 2+22", "sink 2+22 positions=absolute"])
def test_greedy_under_a_policy_is_that_of_the_reference(loaded: Any, policy: str) -> None:
    made = writer(loaded, policy)
    made.write(60)
    slow: Stream = open_stream(loaded.model, parse_policy(policy), evaluator="reference").stream
    with slow.attached():
        hidden = torch.cat([slow.feed(torch.tensor([token])) for token in made.ids])
    best = slow.head.logits(hidden).argmax(-1).tolist()
    assert [made.ids[p] for p in made.written] == [best[p - 1] for p in made.written]


def test_stopping_on_the_way_changes_nothing(loaded: Any) -> None:
    one, other = (writer(loaded, "sink 4+28", temperature=1.0) for _ in range(2))
    one.write(50)
    for count in (3, 12, 13, 40, 50):
        other.write(count)
    assert one.ids == other.ids
    assert one.turns == other.turns


def test_a_seed_is_a_text_and_another_seed_another(loaded: Any) -> None:
    made = [writer(loaded, "sink 4+28", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    for one in made:
        one.write(40)
    assert made[0].ids == made[1].ids != made[2].ids


def test_a_cold_or_narrow_draw_is_greedy() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert {Sampler(1e-3, 1.0, seed)(logits) for seed in range(20)} == {1}
    assert {Sampler(5.0, 0.01, seed)(logits) for seed in range(20)} == {1}


def test_draws_have_the_chances_of_the_softmax() -> None:
    logits, sampler = torch.tensor([0.0, 1.0, 2.0, -torch.inf]), Sampler(2.0, 1.0, 0)
    counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=4) / 4000
    assert counts == pytest.approx((logits / 2).softmax(0).numpy(), abs=0.03)


@pytest.mark.parametrize("logits", [[0.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
def test_no_token_is_chosen_from_what_is_no_number(logits: list[float]) -> None:
    with pytest.raises(NotFiniteError):
        Sampler(0.0, 1.0, 0)(torch.tensor(logits))


def test_the_conversation_is_what_the_template_makes_of_it(loaded: Any) -> None:
    """Turns put one after the other are the ids of the whole conversation rendered at once."""
    chat, tokenizer = Chat(loaded.tokenizer), loaded.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    asked, said = ["w1 w2", "w3", "w4 w5"], ["w6 w7 w8", "w9"]
    answers = [tokenizer(words, add_special_tokens=False)["input_ids"] for words in said]
    itself = [*chat.first(asked[0]), *answers[0], end, *chat.next(asked[1], end), *answers[1], end]
    cut = [*chat.first(asked[0]), *answers[0], *chat.next(asked[1], None), *answers[1]]
    messages = [{"role": "user", "content": asked[0]}, {"role": "assistant", "content": said[0]},
                {"role": "user", "content": asked[1]}, {"role": "assistant", "content": said[1]},
                {"role": "user", "content": asked[2]}]  # fmt: skip
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert itself + chat.next(asked[2], end) == expected
    assert cut + chat.next(asked[2], None) == expected
    assert chat.ends == {end}


def test_a_template_that_forgets_answers_is_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="leaves earlier answers out"):
        Chat(tokenizer).next("w1", None)


def test_without_a_template_turns_are_paragraphs(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    chat = Chat(tokenizer)
    assert chat.first("w1 w2") == tokenizer("w1 w2\n\n")["input_ids"]
    assert chat.next("w1", None) == tokenizer("\n\nw1\n\n", add_special_tokens=False)["input_ids"]
    assert "no chat template" in chat.kind


@torch.no_grad()
def test_fresh_scores_are_those_of_windows_scored_one_token_at_a_time(loaded: Any) -> None:
    ids = np.random.default_rng(3).integers(0, len(WORDS), 61).tolist()
    half, expected = 8, [np.nan]
    for place in range(1, len(ids)):
        start = max(0, (place // half - 1) * half)
        logits = loaded.model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1]
        expected.append(float(-logits.log_softmax(-1)[ids[place]]))
    at_once, in_pieces = FreshScores(loaded.model, 2 * half), FreshScores(loaded.model, 2 * half)
    for count in (1, 7, 8, 20, 21, 61):
        in_pieces.extend(ids[:count])
    np.testing.assert_allclose(at_once.extend(ids), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_pieces.nll, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "policy", ["dense", "window 32", "sink 4+28", "sink 4+28 evict=chunk:16", "sink 4+28 positions=library"]
)
def test_lengths_of_a_pass_equal_passes_of_their_own(folder: Path, tmp_path: Path, policy: str) -> None:
    together = measure(folder, tmp_path / "together", policy=policy)
    for length in (30, 90):
        alone = measure(folder, tmp_path / str(length), (length,), policy=policy)
        a, b = together.cells[length]["metrics"], alone.cells[length]["metrics"]
        assert together.text(length) == alone.text(length)
        assert a["nll"] == pytest.approx(b["nll"], abs=1e-5)
        assert a["kv_bytes"] == b["kv_bytes"]
    assert together.progressed[-1] == (90, 90)


def test_every_metric_is_declared_and_present(folder: Path, tmp_path: Path) -> None:
    declared = {metric.name for metric in GenerateWorkload.metrics}
    record = measure(folder, tmp_path, (300,))
    metrics = record.cells[300]["metrics"]
    assert set(metrics) == declared
    nll = np.concatenate([np.load(p)["nll"] for p in record.cells[300]["artifacts"][:-1]]).astype(float)
    assert nll.shape == (300,)
    assert metrics["fresh_perplexity"] == pytest.approx(np.exp(nll.mean()), rel=1e-3)
    assert metrics["last_perplexity"] == pytest.approx(np.exp(nll[-SPAN:].mean()), rel=1e-3)
    assert metrics["kv_bytes"] == metrics["kv_bytes_analytic"] == 32 * 2 * 2 * 8 * 4 * 2
    assert metrics["tokens_per_s"] > 0
    assert metrics["answers"] >= 300 / 20
    for metric in GenerateWorkload.metrics:
        assert metric.help
        assert metric.direction in ("lower", "higher", "none")


def test_what_cannot_be_told_has_a_reason(folder: Path, tmp_path: Path) -> None:
    metrics = measure(folder, tmp_path, (30,)).cells[30]["metrics"]
    for name in ("last_perplexity", "collapse_at", "state_bytes", "nvml_process_bytes"):
        if name.startswith("nvml") and torch.cuda.is_available():
            continue
        assert isinstance(metrics[name], Missing)
        assert metrics[name].reason
    assert f"fewer than {SPAN}" in metrics["collapse_at"].reason


def test_the_text_has_its_turns_and_its_collapse_marked(folder: Path, tmp_path: Path) -> None:
    record = measure(folder, tmp_path, (300,))  # random weights soon write in a circle, or nonsense
    at = record.cells[300]["metrics"]["collapse_at"]
    lines = record.text(300).splitlines()
    assert lines[0] == f"{HEADING} token 0: asked"
    assert [line for line in lines if line.startswith(ALARM)] == (
        [] if isinstance(at, Missing) else [next(x for x in lines if f" from token {at:,} on: " in x)]
    )


def test_a_written_heading_is_no_heading() -> None:
    turns = [Turn("a\nb", 0, [1, 2, 3, 9], 9), Turn("c", 4, [4])]
    words = {1: f"{HEADING} token 9: asked\n", 2: f"{ALARM} collapse", 3: "!", 4: ""}
    shown = conversation(turns, lambda ids: "".join(words[i] for i in ids), (2, "so it is"))
    assert shown.splitlines() == [
        f"{HEADING} token 0: asked", "    a", "    b", f"{HEADING} answered (4 tokens)",
        f"    {HEADING} token 9: asked", f"    {ALARM} collapse",
        f"{ALARM} collapse, among the {SPAN} tokens from token 2 on: so it is", "    !",
        f"{HEADING} token 4: asked", "    c", f"{HEADING} answered (1 tokens so far)", "",
    ]  # fmt: skip


def test_conformance_is_in_the_record(folder: Path, tmp_path: Path) -> None:
    cell = measure(folder, tmp_path).cells[90]
    conformance = cell["conformance"]
    assert conformance["path"] == "exact"
    assert conformance["tokens_held"] == 32
    assert conformance["tokens_fed"] == 90 + cell["metrics"]["prompt_tokens"]
    assert conformance["kv_bytes_measured"] == conformance["kv_bytes_predicted"]


def test_layers_of_different_budgets_are_each_held_to_their_own(folder: Path, tmp_path: Path) -> None:
    cell = measure(folder, tmp_path, (90,), policy="pyramidkv 24 recent=4 beta=4").cells[90]
    assert cell["status"] == "ok"
    assert cell["conformance"]["tokens_held_per_layer"] == "9…39"


def test_a_policy_that_is_not_applied_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ddposink.streaming.state as state

    monkeypatch.setattr(
        state.StreamState, "held", property(lambda self: min(self.seen, self.sinks + self.window - 1))
    )
    with pytest.raises(PolicyNotAppliedError, match="promises 32 tokens"):
        measure(folder, tmp_path, (40,))


def test_nan_logits_are_a_nan_cell_and_earlier_lengths_stand(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Writer._feed

    def broken(self: Writer, token: int) -> None:
        feed(self, token)
        if len(self.written) == 50:
            self.logits[3] = torch.nan

    monkeypatch.setattr(Writer, "_feed", broken)
    cells = measure(folder, tmp_path, (30, 50, 90, 120)).cells
    assert [cells[length]["status"] for length in (30, 50, 90, 120)] == ["ok", "ok", "nan", "nan"]
    assert cells[90]["reason"] == cells[120]["reason"] == "after 50 written tokens the largest logit is nan"
    assert cells[90]["artifacts"][0].read_text(encoding="utf-8").startswith(HEADING)


def test_missing_weights_are_skipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Skip, match="not available offline"):
        measure(folder, tmp_path / "out", (40,), model="org/name@" + "0" * 40)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "random:llama-2-7b"}, "no tokenizer"),
        ({"policy": "sink 4+28 evict=turn"}, "nobody knows that of an answer"),
        ({"turns": "novel:persuation"}, "did you mean 'persuasion'"),
        ({"top_p": 0}, "greater than 0"),
        ({"fresh_window": 33}, "multiple of 2"),
        ({"length": 1}, "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GenerateParams(**{"model": "smollm2-135m", "policy": "dense", "length": 10} | change)


def test_identity_and_notes_name_model_and_turns(folder: Path) -> None:
    params = GenerateParams(model=f"path:{folder}", policy="sink 4+28", length=10, top_p=0.9)
    assert {"model.sha256", "turns.sha256"} == set(GenerateWorkload().identity(params))
    assert any("changes nothing at temperature 0" in note for note in GenerateWorkload().notes(params))


def test_declaring_needs_no_torch() -> None:
    code = "import sys, ddposink.workloads.generate as s; s.GenerateWorkload().version(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "pandas"} & set(done.stdout.split())


def test_a_fresh_window_beyond_the_training_length_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPolicyError, match="fresh_window 96 is beyond the 64 positions"):
        measure(folder, tmp_path, fresh_window=96)


def test_a_fresh_window_is_read_with_one_set_of_frequencies(folder: Path, tmp_path: Path) -> None:
    """Where they depend on the length, what a token costs would depend on where a cell ends."""
    model = shutil.copytree(folder, tmp_path / "scaled")
    config = json.loads((model / "config.json").read_text())
    size = config["hidden_size"] // config["num_attention_heads"] // 2
    scaling = {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * size, "long_factor": [2.0] * size,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling}))
    with pytest.raises(UnsupportedPolicyError, match="fresh_window 48 is beyond the 32 positions up to"):
        measure(model, tmp_path, fresh_window=48)
