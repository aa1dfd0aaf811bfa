"""The `stream` workload in one process: cells, metrics, conformance, rewinding, refusals."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.workload import Cell, Cost, Missing, Pass, Samples, Skip
from ddposink.streaming import PolicyNotAppliedError, UnsupportedPolicyError
from ddposink.workloads.stream import StreamParams, StreamWorkload
from ddposink.workloads.stream_params import Part
from helpers.families import VOCAB
from helpers.recorder import Recorder, save_tiny_llama

WORDS = [f"w{i}" for i in range(VOCAB - 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a word tokenizer, and a text of 400 words in paragraphs."""
    place = tmp_path_factory.mktemp("model")
    vocabulary = {"<s>": 0, "\n": 1, "\n\n": 2, " ": 3} | {w: i + 4 for i, w in enumerate(WORDS)}
    save_tiny_llama(place, vocabulary, r"\n\n|\n| ", size=VOCAB, positions=64)
    generator = np.random.default_rng(0)
    words = generator.choice(WORDS, 400)
    text = "".join(w + ("\n\n" if i % 25 == 24 else " ") for i, w in enumerate(words))
    (place / "text").mkdir()
    (place / "text" / "book.txt").write_text(text)
    return place


def measure(folder: Path, out: Path, lengths: tuple[int, ...] = (40, 120, 300), **params: Any) -> Recorder:
    workload = StreamWorkload()
    defaults = {"model": f"path:{folder}", "corpus": f"file:{folder}/text/book.txt", "policy": "sink 4+28",
                "chunk": 64, "decode_tokens": 2}  # fmt: skip
    cells = []
    for length in lengths:
        checked = StreamParams(**{**defaults, **params, "length": length})
        cells.append(Cell(str(length), json.loads(checked.model_dump_json()), "cell"))
    recorder = Recorder(out)
    workload.run(Pass("p", "stream", tuple(cells), Cost(max(lengths), "tokens")), recorder)
    return recorder


@pytest.mark.parametrize(
    "policy",
    [
        "dense",
        "window 32",
        "sink 4+28",
        "sink 4+28 evict=chunk:16",
        "sink 4+28 evict=turn",
        "h2o 48 recent=4 evict=turn",
    ],
)
def test_lengths_of_a_pass_equal_passes_of_their_own(folder: Path, tmp_path: Path, policy: str) -> None:
    """Looking at the cache, decoding on from there and rewinding must leave no trace."""
    together = measure(folder, tmp_path, policy=policy)
    for length in (40, 120, 300):
        alone = measure(folder, tmp_path, (length,), policy=policy, measure=("quality",))
        a, b = together.cells[length]["metrics"], alone.cells[length]["metrics"]
        assert a["nll"] == pytest.approx(b["nll"], abs=1e-5)
        assert a["kv_bytes"] == b["kv_bytes"]
    assert together.progressed[-1] == (300, 300)


def test_what_ends_a_turn_does_not_depend_on_how_much_is_read(folder: Path, tmp_path: Path) -> None:
    """Blank lines end turns where a text has no end-of-turn token, and it may have its first one late."""
    place, vocabulary = tmp_path / "chat", {"<s>": 0, "\n\n": 1, " ": 2, "a": 3, "b": 4}
    save_tiny_llama(place, vocabulary, r"\n\n| ", size=6, positions=64)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    tokenizer.add_tokens(["<|im_end|>"])
    tokenizer.save_pretrained(place)
    (place / "text").mkdir()
    (place / "text" / "book.txt").write_text("a b b a\n\n" * 60 + "<|im_end|>" + "a a b\n\n" * 90)
    for policy in ("sink 4+124 evict=turn", "sink 4+124 evict=after-turn"):
        both = measure(place, tmp_path, (100, 200, 900), policy=policy, measure=("quality",))
        alone = measure(place, tmp_path, (100,), policy=policy, measure=("quality",))
        a, b = both.cells[100]["metrics"], alone.cells[100]["metrics"]
        assert (a["kv_bytes"], a["nll"]) == (b["kv_bytes"], pytest.approx(b["nll"], abs=1e-5))
        with pytest.raises(UnsupportedPolicyError) as refused:
            measure(place, tmp_path, (200,), policy=policy, measure=("quality",))
        assert both.cells[200]["status"] == "error"
        assert both.cells[200]["reason"] == f"UnsupportedPolicyError: {refused.value}"
        assert both.cells[900]["status"] == "ok"


def test_every_metric_is_declared_and_present(folder: Path, tmp_path: Path) -> None:
    declared = {metric.name for metric in StreamWorkload.metrics}
    record = measure(folder, tmp_path, (300,), measure=get_args(Part))
    metrics = record.cells[300]["metrics"]
    assert set(metrics) == declared
    assert isinstance(metrics["latency_median_ms"], Samples)
    assert (
        metrics["cats_per_token"] < 20
    )  # rotate_half of the library's own rotary embedding, no cache copies
    for name in ("nvml_process_bytes", "alloc_peak_bytes", "energy_per_token_j"):
        if not torch.cuda.is_available():
            assert isinstance(metrics[name], Missing)
            assert metrics[name].reason
    assert metrics["kv_bytes"] == metrics["kv_bytes_analytic"] == 32 * 2 * 2 * 8 * 4 * 2


@pytest.mark.parametrize("policy", ["dense", "sink 4+28"])
def test_a_batch_holds_so_many_caches_and_reads_the_text_once(
    folder: Path, tmp_path: Path, policy: str
) -> None:
    """Bytes and FLOPs add up; NLLs are those of one stream, also beyond where the batch was looked at."""
    parts = ("quality", "memory", "latency", "work")
    one = measure(folder, tmp_path, (120, 300), policy=policy, measure=parts)
    four = measure(folder, tmp_path, (120, 300), policy=policy, measure=parts, batch=4)
    for length in (120, 300):
        a, b = one.cells[length]["metrics"], four.cells[length]["metrics"]
        assert b["nll"] == pytest.approx(a["nll"], abs=1e-6)
        for name in ("kv_bytes", "kv_bytes_analytic"):
            assert b[name] == 4 * a[name]
        assert b["flops_per_token"] == a["flops_per_token"]
        assert b["calls_per_token"] < a["calls_per_token"] / 2
        steps = b["latency_median_ms"].values
        assert b["tokens_per_s"] == pytest.approx(4 * len(steps) / (sum(steps) / 1e3), rel=1e-3)
    label = StreamWorkload().label(StreamParams(model="random:tiny", policy=policy, length=64, batch=4))
    assert label == f"tiny · {policy} · 4 streams · 64"


@pytest.mark.parametrize(
    ("policy", "parts", "why"),
    [
        ("h2o 48", ("memory",), "'h2o 48' is read one stream at a time; batch 8 is for dense"),
        ("sink 4+28 evict=chunk:8", ("memory",), "one stream at a time"),
        ("quantized 4", ("memory",), "one stream at a time"),
        ("sink 4+28 positions=library", ("memory",), "one stream at a time"),
        ("dense", ("quality",), "batch 8 changes nothing that is measured: add memory or latency"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(policy: str, parts: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        StreamParams(model="random:tiny", policy=policy, length=64, batch=8, measure=parts)


@pytest.mark.parametrize(("parts", "said"), [(("memory", "memory"), "'memory' twice"), ((), "nothing")])
def test_a_part_named_twice_is_no_other_question(parts: tuple[str, ...], said: str) -> None:
    """It was a cell of its own, measured beside the other one."""
    with pytest.raises(ValueError, match=f"measure names {said}"):
        StreamParams(model="random:tiny", policy="dense", length=64, measure=parts)


def test_longppl_is_the_perplexity_of_key_tokens_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which they are is dense attention's affair: the same under every policy, however the text is cut."""
    monkeypatch.setattr("ddposink.streaming.contrast.ALPHA", 0.02)
    monkeypatch.setattr("ddposink.streaming.contrast.BETA", -100.0)
    settings: dict[str, Any] = {"measure": ("quality", "key_tokens", "memory"), "key_context": 8}
    found = {
        policy: measure(folder, tmp_path, (40, 64), policy=policy, **settings).cells
        for policy in ("dense", "window 16")
    }
    dense, window = (found[policy][64]["metrics"] for policy in ("dense", "window 16"))
    assert dense["key_tokens"] == window["key_tokens"] >= 16
    assert dense["longppl"] == pytest.approx(np.exp(dense["nll_key"].value))
    assert dense["longppl"] != pytest.approx(window["longppl"], rel=1e-3)
    alone = measure(folder, tmp_path, (64,), policy="window 16", **settings).cells[64]["metrics"]
    assert alone["longppl"] == pytest.approx(window["longppl"], rel=1e-5)
    beyond = measure(folder, tmp_path, (300,), policy="window 16", **settings).cells[300]["metrics"]
    assert "beyond its training length of 64 tokens" in beyond["longppl"].reason


def test_memory_beside_a_reference_is_not_the_policys(folder: Path, tmp_path: Path) -> None:
    parts = ("quality", "divergence", "memory")
    metrics = measure(folder, tmp_path, (64,), policy="window 16", measure=parts).cells[64]["metrics"]
    assert "dense attention reads the same text beside" in metrics["rss_peak_bytes"].reason


def test_few_key_tokens_are_no_longppl(folder: Path, tmp_path: Path) -> None:
    metrics = measure(folder, tmp_path, (64,), measure=("quality", "key_tokens")).cells[64]["metrics"]
    assert metrics["key_tokens"] < 16
    assert metrics["longppl"].reason == f"only {metrics['key_tokens']} key tokens in the text"


HALF = 2e-4  # what half precision leaves of a mean


def series(cell: dict[str, Any]) -> np.ndarray:
    """Per-token NLLs of a cell, kept from one length to the next."""
    return np.concatenate([np.load(path)["nll"] for path in cell["artifacts"]]).astype(float)


def test_a_kept_nll_is_right_to_less_than_a_thousandth_of_a_nat(folder: Path, tmp_path: Path) -> None:
    """Against one plain forward of the library: what somebody finds who checks token by token."""
    cell = measure(folder, tmp_path, (40, 60), policy="dense", measure=("quality",)).cells[60]
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer((folder / "text" / "book.txt").read_text(), return_tensors="pt").input_ids[0, :60]
    with torch.no_grad():
        logits = model(ids[None]).logits[0, :-1]
    plain = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
    assert np.abs(series(cell) - plain).max() < 5e-4


def test_numbers_follow_from_the_per_token_series(folder: Path, tmp_path: Path) -> None:
    cell = measure(folder, tmp_path, (300,)).cells[300]
    nll = series(cell)
    metrics = cell["metrics"]
    assert nll.shape == (299,)
    assert metrics["perplexity"] == pytest.approx(np.exp(nll.mean()), rel=HALF)
    assert metrics["nll_post"] == pytest.approx(
        nll[33:].mean(), rel=HALF
    )  # query 33 is the first to miss a token
    text = (folder / "text" / "book.txt").read_text()
    pieces = [p for p in re.split(r"(\n\n|\n| )", text) if p][:300]
    covered = sum(map(len, pieces[1:]))
    assert metrics["bits_per_byte"] == pytest.approx(nll.sum() / np.log(2) / covered, rel=HALF)
    words = sum(p.strip() != "" for p in pieces[1:])
    assert metrics["word_perplexity"] == pytest.approx(np.exp(nll.sum() / words), rel=1e-2)


def test_work_per_token_is_flat_once_the_window_is_full_and_grows_for_dense(
    folder: Path, tmp_path: Path
) -> None:
    sink = measure(folder, tmp_path).cells
    dense = measure(folder, tmp_path, policy="dense").cells
    keys = ("flops_per_token", "calls_per_token", "cats_per_token", "allocated_per_token")
    assert [sink[120]["metrics"][k] for k in keys] == [sink[300]["metrics"][k] for k in keys]
    assert dense[300]["metrics"]["flops_per_token"] > dense[120]["metrics"]["flops_per_token"]


def test_conformance_is_in_the_record(folder: Path, tmp_path: Path) -> None:
    conformance = measure(folder, tmp_path).cells[300]["conformance"]
    assert conformance["path"] == "exact"
    assert conformance["tokens_held"] == 32
    assert conformance["largest_position"] == 32
    assert conformance["kv_bytes_measured"] == conformance["kv_bytes_predicted"]
    assert conformance["attention_calls_per_layer"] == 10  # 32 8 | 20 56 4 | 24 56 56 28 16
    assert "no BOS" in conformance["corpus_convention"]


def test_figures_after_eviction_wait_for_the_first_eviction(folder: Path, tmp_path: Path) -> None:
    policy = "sink 4+28 evict=chunk:64"
    cells = measure(folder, tmp_path, (60, 300), policy=policy, measure=("quality",)).cells
    assert isinstance(cells[60]["metrics"]["nll_post"], Missing)
    assert [path.name for path in cells[300]["artifacts"]] == ["nll-60.npz", "nll-300.npz"]
    nll = series(cells[300])
    assert cells[300]["metrics"]["nll_post"] == pytest.approx(nll[64:].mean(), rel=HALF)
    assert cells[300]["conformance"]["tokens_held"] == 32 + 300 % 64


def test_learned_positions_are_measured_under_a_name_of_their_own(folder: Path, tmp_path: Path) -> None:
    gpt2 = tmp_path / "gpt2"
    shutil.copytree(folder, gpt2)
    (gpt2 / "model.safetensors").unlink()
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=400)
    ).save_pretrained(gpt2)
    with pytest.raises(UnsupportedPolicyError, match="learned absolute positions"):
        measure(gpt2, tmp_path, (40,), policy="sink 4+28")
    for policy in ("dense", "sink 4+28 positions=library"):
        cells = measure(gpt2, tmp_path, policy=policy).cells
        assert cells[300]["status"] == "ok"
        assert cells[300]["conformance"]["path"] == "library"
        assert "learned absolute positions" in cells[300]["conformance"]["path_reason"]


def test_a_policy_that_is_not_applied_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ddposink.streaming.state as state

    monkeypatch.setattr(
        state.StreamState, "held", property(lambda self: min(self.seen, self.sinks + self.window - 1))
    )
    with pytest.raises(PolicyNotAppliedError, match="promises 32 tokens"):
        measure(folder, tmp_path, (40,))


def test_a_layer_that_goes_round_the_hook_is_an_error(folder: Path, tmp_path: Path) -> None:
    from ddposink.caches import parse_policy
    from ddposink.models.language import ModelRef, load_model
    from ddposink.streaming import inspect
    from ddposink.streaming.exact import ExactStream

    model = load_model(ModelRef.parse(f"path:{folder}"), "float32", "cpu").model
    attention = model.model.layers[1].self_attn
    stream = ExactStream(model, parse_policy("sink 4+28"), inspect(model).positions, 64)
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with stream.attached(), pytest.raises(PolicyNotAppliedError, match="1 of 2 layers"):
        stream.feed(torch.arange(stream.next_size(50)))


def test_nan_weights_are_a_nan_cell_and_earlier_lengths_stand(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    model = LlamaForCausalLM.from_pretrained(folder)
    text = (folder / "text" / "book.txt").read_text()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    victim = next(i for i in ids[60:] if i not in ids[:41])
    model.model.embed_tokens.weight.data[victim] = torch.nan
    model.save_pretrained(broken)
    cells = measure(broken, tmp_path, (40, 300), measure=("quality",)).cells
    assert cells[40]["status"] == "ok"
    assert cells[300]["status"] == "nan"
    assert "NaN" in cells[300]["reason"]
    assert isinstance(cells[300]["metrics"]["nonfinite_tokens"], int)


def test_random_weights_report_no_perplexity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ddposink.models.shapes as shapes

    tiny = shapes.SHAPES["smollm2-135m"] | {"num_hidden_layers": 2, "hidden_size": 36, "vocab_size": 99,
                                            "intermediate_size": 16}  # fmt: skip
    monkeypatch.setitem(shapes.SHAPES, "smollm2-135m", tiny)
    cell = measure(Path("nowhere"), tmp_path, (60,), model="random:smollm2-135m").cells[60]
    assert isinstance(cell["metrics"]["perplexity"], Missing)
    assert cell["metrics"]["kv_bytes"] > 0
    assert not cell["artifacts"]


def test_missing_weights_are_skipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Skip, match="not available offline"):
        measure(folder, tmp_path, (40,), model="org/name@" + "0" * 40)


def test_a_text_that_is_too_short_says_how_long_it_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="800 tokens for this model, 5,000 were asked for"):
        measure(folder, tmp_path, (5000,))


@pytest.mark.parametrize("length", [0, -3, 1])
def test_impossible_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        StreamParams(model="random:llama-2-7b", policy="dense", length=length)


def test_declaring_needs_no_torch() -> None:
    code = "import sys, ddposink.workloads.stream as s; s.StreamWorkload().version(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "pandas"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "policy",
    [
        "h2o 24 evict=chunk:8",
        "pyramidkv 32 recent=8 beta=4",
        "sink 2+14 bits=4",
        "recompute 24",
        "quantized 8",
    ],
)
def test_policies_of_the_general_stream_are_measured_like_any_other(
    folder: Path, tmp_path: Path, policy: str
) -> None:
    record = measure(folder, tmp_path, (150, 300), policy=policy, measure=("quality", "divergence", "memory"))
    for length in (150, 300):
        cell = record.cells[length]
        assert cell["status"] == "ok"
        assert cell["metrics"]["kv_bytes"] == cell["metrics"]["kv_bytes_analytic"]
    kl, agree = (record.cells[300]["metrics"][name] for name in ("kl_dense", "top1_agreement"))
    assert isinstance(kl, Missing)
    assert "beyond its training length of 64 tokens" in kl.reason
    assert agree == kl
    per_token = np.concatenate([np.load(path)["kl"] for path in record.cells[300]["artifacts"]])
    assert per_token.shape == (299,)
    assert np.isfinite(per_token).all()


def test_a_budget_in_bytes_is_labelled_with_the_tokens_it_buys() -> None:
    given = {"model": "smollm2-135m", "corpus": "novel:persuasion", "length": 64}
    assert StreamParams(**given, policy="h2o 22.5MiB evict=chunk:64").policy == "h2o 512 evict=chunk:64"
    half = StreamParams(**given, policy="sink 4+22.5MiB", dtype="bfloat16")
    assert half.policy == "sink 4+1020"
    with pytest.raises(ValueError, match="one token takes 46,080 bytes in 30 layers"):
        StreamParams(**given, policy="snapkv 40kB")
    hub = {**given, "model": "org/name@" + "0" * 40}
    with pytest.raises(ValueError, match="needs the model's configuration, which is not here"):
        StreamParams(**hub, policy="h2o 22.5MiB")


def test_a_static_cache_must_have_room_for_what_is_decoded() -> None:
    given = {"model": "smollm2-135m", "corpus": "novel:persuasion", "length": 64, "decode_tokens": 8}
    assert StreamParams(**given, policy="static 76").policy == "static 76"
    with pytest.raises(ValueError, match="write 'static 76'"):
        StreamParams(**given, policy="static 75")


def test_a_policy_that_cannot_be_defined_is_refused_before_weights_are_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "latent"
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text()) | {"kv_lora_rank": 16}
    (place / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("ddposink.workloads.policy_child.load_model", None)
    with pytest.raises(UnsupportedPolicyError, match="caches latents"):
        measure(place, tmp_path, (100,), policy="h2o 24")


@pytest.mark.parametrize("policy", ["sink 4+28 evict=turn", "sink 4+28 evict=after-turn"])
def test_a_text_without_turns_is_no_text_for_a_policy_by_turns(
    folder: Path, tmp_path: Path, policy: str
) -> None:
    (tmp_path / "one.txt").write_text((folder / "text" / "book.txt").read_text().replace("\n\n", " "))
    with pytest.raises(UnsupportedPolicyError, match="goes by turns, and none ends in"):
        measure(folder, tmp_path / "out", policy=policy, corpus=f"file:{tmp_path}/one.txt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_lora_rank": 16}, "this model has kv_lora_rank: give tokens"),
        ({"global_head_dim": 64}, "this model has global_head_dim: give tokens"),
        ({"num_key_value_heads": [1, 2]}, "does not tell its sizes"),
        ({"layer_types": 5}, "does not tell its sizes"),
    ],
)
def test_bytes_of_layers_that_differ_are_not_promised(
    folder: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """What a token takes is not told by one head's size; a budget would be overrun under its label."""
    for file in folder.glob("*.json"):
        shutil.copy(file, tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = {"model": f"path:{tmp_path}", "corpus": f"file:{folder}/text/book.txt", "length": 40}
    with pytest.raises(ValueError, match=words):
        StreamParams(**given, policy="h2o 22.5MiB")
