"""The gate on the real streaming workload: faults of the kinds that have happened, on a tiny model."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.gate.against import compare
from bench.gate.options import GateOptions
from bench.gate.pairs import PairSession, Tree
from bench.gate.rule import Verdict
from bench.gate.scope import Asked
from bench.suite.model import load_suite
from bench.suite.plan import make_plan
from bench.suite.request import Options, Request
from helpers.gateplace import HERE, ROOT, plug_in
from helpers.gatestream import FaultyStream

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama of random weights with a tokenizer of words, and a text."""
    place = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(vocabulary), initializer_range=0.2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    (place / "text").mkdir()
    words = np.random.default_rng(0).choice(WORDS, 400)
    (place / "text" / "book.txt").write_text(" ".join(words))
    return place


@pytest.fixture(scope="module")
def gate(model, tmp_path_factory):
    """Measures head with a fault against base without one; both sides stay ready."""
    folder = tmp_path_factory.mktemp("gate")
    suite = folder / "tiny.yaml"
    cell = {
        "model": f"path:{model}", "corpus": f"file:{model}/text/book.txt", "policy": "sink 4+28",
        "length": 200, "chunk": 64, "decode_tokens": 8, "threads": 1,
    }  # fmt: skip
    suite.write_text(json.dumps({"suite": "tiny", "workload": "gatestream", "defaults": cell}))
    plugs = plug_in(folder / "plugs", "gatestream", "helpers.gatestream:FaultyStream")
    fault = folder / "fault"
    env = {"PYTHONPATH": f"{plugs}:{HERE}", "OMP_NUM_THREADS": "1"}
    sides = Tree("base", ROOT, env=env), Tree("head", ROOT, env=env | {"GATESTREAM_FAULT": str(fault)})
    loaded = load_suite(suite)
    plan = make_plan(loaded, FaultyStream())
    request = Request(loaded, FaultyStream(), plan, plan.passes)
    with PairSession.start(*sides, Asked(suite, repeats=60), folder / "gate") as session:

        def gate(name, pairs=1, **more):
            fault.write_text(name)
            options = GateOptions(Options(suite), against="base", pairs=pairs, **more)
            report = compare(session, request, options, Console(file=io.StringIO()))
            return {j.metric: j for j in report.judgements}, report

        yield gate


def regressed(found):
    return {name for name, judgement in found.items() if judgement.verdict is Verdict.REGRESSED}


def test_equal_code_has_equal_work_and_quality(gate):
    """Times are not asserted: by chance, or by a neighbour, one of a dozen may seem to have changed."""
    found, report = gate("none", pairs=3)
    exact_and_near = [j for j in found.values() if j.klass != "noisy"]
    assert len(exact_and_near) > 8
    assert {str(j.verdict) for j in exact_and_near} == {"pass"}
    assert report.exit_code == (4 if regressed(found) else 0)


def test_a_hundredth_of_a_nat(gate):
    found, report = gate("quality")
    assert {"nll", "nll_post", "bits_per_byte"} <= regressed(found)
    assert found["nll"].difference == pytest.approx(0.01, abs=1e-6)
    assert report.exit_code == 4


def test_a_cache_with_one_slot_too_few(gate):
    found, report = gate("slot")
    assert regressed(found) == {"status"}
    assert "PolicyNotAppliedError" in found["status"].reason
    assert report.exit_code == 4


def test_a_policy_that_means_one_slot_less(gate):
    """Less memory is no regression, but it is seen; what it costs in quality is."""
    found, report = gate("window")
    assert found["kv_bytes"].verdict is Verdict.IMPROVED
    assert found["kv_bytes"].head / found["kv_bytes"].base == pytest.approx(31 / 32)
    assert found["nll_post"].verdict in (Verdict.REGRESSED, Verdict.IMPROVED)
    assert report.counts[Verdict.PASS] < 20


def test_a_concatenation_that_creeps_back_into_decoding(gate):
    found, _ = gate("cat")
    assert {"cats_per_token", "calls_per_token"} <= regressed(found)
    assert found["cats_per_token"].difference == 1


def test_a_sleep_per_token(gate):
    found, _ = gate("sleep", pairs=4, until_decided=True, max_pairs=16)
    assert {"latency_median_ms", "tokens_per_s"} <= regressed(found)
    assert found["nll"].verdict is Verdict.PASS


def test_memory_left_behind_per_token(gate):
    found, _ = gate("leak", pairs=4, until_decided=True, max_pairs=8)
    assert "rss_peak_bytes" in regressed(found)
    assert found["kv_bytes"].verdict is Verdict.PASS
