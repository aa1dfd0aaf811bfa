"""Architectures of the model library against the independent oracle: a dozen here, all with ``--sweep``."""

from __future__ import annotations

import pytest
import torch
import transformers

from helpers.families import build
from helpers.sweep import oracle, table
from helpers.sweep.cells import BAD, EXACT, LIBRARY, POLICIES, REFUSED, Row, measure, text
from helpers.sweep.run import cases, sweep
from helpers.sweep.tiny_configs import architectures, tiny_model

# Structures that differ: what is special, the architecture, with windows of its own, and the bounded outcome.
SHORT = [
    ("plain", "llama", False, EXACT),
    ("a soft cap on scores and logits, own windows", "gemma2", True, EXACT),
    ("two rotations, own windows", "gemma3_text", True, EXACT),
    ("logits divided", "granite", False, EXACT),
    ("interleaved pairs, layers without positions", "cohere2", True, EXACT),
    ("every fourth layer without positions", "smollm3", False, EXACT),
    ("partial rotary, biases", "phi", False, EXACT),
    ("fused projections", "phi3", False, EXACT),
    ("mixture of experts", "mixtral", False, EXACT),
    ("another mixture", "qwen3_moe", False, EXACT),
    ("latent attention, values of another size", "deepseek_v3", False, EXACT),
    ("learned sinks, other heads in sliding layers", "mimo_v2_flash", True, EXACT),
    ("heads of two sizes", "gemma4_text", True, EXACT),
    ("biases instead of turns", "bloom", False, EXACT),
    ("queries that grow with the position", "beam", False, LIBRARY),
    ("learned positions", "gpt2", False, LIBRARY),
    ("recurrent layers", "qwen3_next", False, REFUSED),
    ("a mask that is part of the scores", "doge", False, LIBRARY),
    ("two calls a layer", "diffllama", False, LIBRARY),
]


@pytest.mark.parametrize(
    ("kind", "own", "outcome"), [case[1:] for case in SHORT], ids=[case[1] for case in SHORT]
)
def test_an_architecture_is_exact_or_says_that_it_is_not(kind: str, own: bool, outcome: str) -> None:
    row = measure(kind, own)
    assert not row.outcomes & set(BAD), row
    assert row.cells["dense"].outcome in (EXACT, LIBRARY), row
    assert {row.cells[policy].outcome for policy in POLICIES if policy != "dense"} == {outcome}, row


def test_every_architecture(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--sweep"):
        pytest.skip("four minutes: run pytest with --sweep, or python tools/sweep.py")
    rows = list(sweep())
    assert [row for row in rows if row.outcomes & set(BAD)] == []
    exact = [row for row in rows if not row.own_windows and table.verdict(row) == EXACT]
    assert len(exact) >= 60


def test_the_table_in_the_documentation_is_of_this_library_or_says_of_which() -> None:
    version, rows = table.read()
    if version != transformers.__version__:
        pytest.skip(f"the table was made with transformers {version}, this is {transformers.__version__}")
    assert sorted(rows) == sorted(Row(kind, own).name for kind, own in cases())
    outcomes = [outcome for row in rows.values() for outcome in row.values()]
    assert not set(outcomes) & set(BAD)
    assert len(architectures()) >= 189
    plain = [row for name, row in rows.items() if "own windows" not in name]
    assert sum(all(row[p] == EXACT for p in POLICIES if p != "dense") for row in plain) >= 60


@pytest.mark.parametrize("kind", ["llama", "gemma2", "deepseek_v3"])
def test_the_oracle_of_a_cache_that_never_fills_is_one_forward(kind: str) -> None:
    model, ids = tiny_model(kind), text()[:40]
    plain = oracle.dense(model, ids)
    torch.testing.assert_close(oracle.streaming(model, ids, 4, 60), plain, atol=1e-4, rtol=0)
    evicted = oracle.streaming(model, ids, 4, 12)
    torch.testing.assert_close(evicted[:16], plain[:16], atol=1e-4, rtol=0)
    assert (evicted - plain).abs().max() > 0.05


def test_the_oracle_knows_where_it_has_nothing_to_say() -> None:
    with pytest.raises(oracle.NoOracleError, match="positions enter elsewhere"):
        oracle.streaming(build("gpt2"), torch.arange(40), 4, 12)
