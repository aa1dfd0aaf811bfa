"""The same cell gives the same numbers, however it was reached.

Whatever is no parameter of a cell must not change what it measures, and a parameter that only cuts work into
pieces must not either: the size of a forward, the other cells of a suite, passes side by side, a pass that
goes on after it was cut off, a child that was not forked from a server with everything imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LENGTHS = (50, 130, 300)
LIMIT = 96  # trained length of the models whose rotary frequencies depend on the length
POLICIES = ("dense", "window 32", "sink 4+28", "sink 3+13 evict=turn", "sink 3+13 evict=after-turn")
SCALINGS = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": LIMIT,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 2.5],
    },
}  # fmt: skip
NEAR = 2e-5  # nats; kernels add up in another order when work is cut otherwise
SAME = ("scored_tokens", "nonfinite_tokens", "kv_bytes", "kv_bytes_analytic", "state_bytes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models with a byte tokenizer, and a text in paragraphs."""
    place = tmp_path_factory.mktemp("same")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(letters)} | {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, scaling in SCALINGS.items():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=258, initializer_range=0.2,
            max_position_embeddings=LIMIT if name == "dynamic" else 512,
            rope_parameters={"rope_theta": 10000.0, **scaling},
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(place / name)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
        fast.save_pretrained(place / name)
    words = np.random.default_rng(0).choice(["sail", "harbour", "of", "a", "whale", "and", "storm"], 400)
    text = "".join(word + ("\n\n" if i % 9 == 8 else " ") for i, word in enumerate(words))
    (place / "text.txt").write_text(text)
    return place


def run(
    place: Path,
    out: str,
    *arguments: str,
    lengths: Sequence[int] = LENGTHS,
    policies: Sequence[str] = POLICIES,
    start: str = "pass",
    **defaults: Any,
) -> dict[str, dict[str, Any]]:
    """Records by label of one run of the suite in a process of its own, which does ``start`` first."""
    grid = {"model": [f"path:{place / name}" for name in SCALINGS], "policy": list(policies)}
    suite = {
        "suite": "same",
        "workload": "stream",
        "defaults": {
            "corpus": f"file:{place / 'text.txt'}", "measure": ["quality", "work"], "threads": 1,
            "chunk": 512, **defaults,
        },
        "grid": {**grid, "length": list(lengths)},
    }  # fmt: skip
    (place / f"{out}.yaml").write_text(json.dumps(suite))
    command = [sys.executable, "-c", f"{start}; from bench.cli import main; main()"]
    words = [str(place / f"{out}.yaml"), "--plain", "--results", str(place / out), *arguments]
    done = subprocess.run(command + words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (folder,) = (place / out / "same").glob("2*")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {record["label"]: record for record in records}


def assert_same(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found
    for label, record in found.items():
        mine, theirs = record["metrics"], expected[label]["metrics"]
        assert record["status"] == expected[label]["status"] == "ok"
        for name in ("nll", "nll_post", "bits_per_byte"):
            a, b = mine[name]["value"], theirs[name]["value"]
            assert (a is None) == (b is None), (label, name)
            assert a is None or a == pytest.approx(b, abs=NEAR), (label, name)
        for name in (*SAME, "flops_per_token", "calls_per_token", "allocated_per_token"):
            if name in mine:
                assert mine[name] == theirs[name], (label, name)


@pytest.fixture(scope="module")
def base(place: Path) -> dict[str, dict[str, Any]]:
    found = run(place, "base")
    assert len(found) == len(SCALINGS) * len(POLICIES) * len(LENGTHS)
    return found


def without_work(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Another chunk decodes on buffers of another size."""
    return {
        label: {**record, "metrics": {k: v for k, v in record["metrics"].items() if "per_token" not in k}}
        for label, record in records.items()
    }


def test_the_size_of_a_forward_does_not_matter(place: Path, base: dict[str, Any]) -> None:
    assert_same(without_work(run(place, "chunk", chunk=23)), base)


@pytest.mark.parametrize("length", LENGTHS[1:2])
def test_other_lengths_in_the_suite_do_not_matter(place: Path, base: dict[str, Any], length: int) -> None:
    told = {"policies": ["dense", "sink 3+13 evict=turn"]}
    assert_same(run(place, f"length{length}", lengths=[length], **told), base)


def test_a_child_without_preload_does_not_matter(place: Path, base: dict[str, Any]) -> None:
    start = "from ddposink.workloads.stream import StreamWorkload; StreamWorkload.preload = ()"
    assert_same(run(place, "bare", start=start, policies=["sink 4+28"]), base)


def test_passes_side_by_side_and_cut_off_do_not_matter(place: Path, base: dict[str, Any]) -> None:
    """Side by side; then every second record is lost, and passes go on from their beginning or middle."""
    told = {"policies": ["dense", "sink 4+28", "sink 3+13 evict=turn"]}
    whole = run(place, "cut", "--jobs", "2", **told)
    assert_same(whole, base)
    (folder,) = (place / "cut" / "same").glob("2*")
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[::2]))
    found = run(place, "cut", **told)
    assert len(found) == len(whole) == len(SCALINGS) * 3 * len(LENGTHS)
    assert_same(found, base)


def test_a_pass_that_goes_on_in_the_middle_gives_the_same_bits(place: Path) -> None:
    """Lengths that end within a forward: whoever goes on cuts the text where the whole pass did."""
    told = {"chunk": 48, "policies": ["sink 4+28", "h2o 40 evict=chunk:16"], "measure": ["quality"]}
    whole = run(place, "bits", lengths=(37, 130, 300), **told)
    (folder,) = (place / "bits" / "same").glob("2*")
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(line for line in lines if '"length":300' not in line))
    again = run(place, "bits", lengths=(37, 130, 300), **told)
    assert len(again) == len(whole) == 12
    for label, record in again.items():
        for name in ("nll", "nll_post", "nll_half", "perplexity"):
            assert record["metrics"][name] == whole[label]["metrics"][name], (label, name)


def test_dense_beyond_the_trained_length_is_one_forward(place: Path, base: dict[str, Any]) -> None:
    """The value that the untouched model gives for a text of that very length."""
    for name in ("dynamic", "longrope"):
        model = LlamaForCausalLM.from_pretrained(place / name).eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(place / name)
        ids = torch.tensor(tokenizer((place / "text.txt").read_text())["input_ids"])
        for length in LENGTHS:
            with torch.no_grad():
                logits = model(ids[None, :length]).logits[0]
            expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:length])
            (record,) = (
                one
                for one in base.values()
                if one["params"]["length"] == length
                and one["params"]["policy"] == "dense"
                and one["params"]["model"].endswith(name)
            )
            assert record["metrics"]["nll"]["value"] == pytest.approx(float(expected), abs=NEAR)
            alone = "one forward of all tokens" in record["conformance"]["path_reason"]
            assert alone == (length > LIMIT)


def test_dense_in_pieces_is_no_reference_where_frequencies_depend_on_the_length(place: Path) -> None:
    """It is another model there, trained for that length or not."""
    parts = ["quality", "divergence", "key_tokens"]
    found = run(place, "beside", lengths=(90, 300), policies=["sink 4+28"], measure=parts, key_context=8)
    reasons = {
        (Path(one["params"]["model"]).name, one["params"]["length"], name): one["metrics"][name]["reason"]
        for one in found.values()
        for name in ("kl_dense", "longppl")
    }
    for name in ("kl_dense", "longppl"):
        assert f"beyond its training length of {LIMIT}" in reasons["dynamic", 300, name]
        assert f"other rotary frequencies beyond {LIMIT} tokens" in reasons["longrope", 300, name]
        assert "reference" not in (reasons["longrope", 90, name] or "")
