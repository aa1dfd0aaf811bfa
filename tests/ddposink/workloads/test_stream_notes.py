"""What the plan says of cells that are legal but probably not meant; models that are no streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ddposink.caches import CacheShape, parse_policy
from ddposink.errors import Unavailable
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import evaluate, open_stream
from ddposink.workloads.stream import StreamParams, StreamWorkload
from ddposink.workloads.stream_notes import wanted_bos
from helpers.families import build


def notes(folder: Path, text: Path, **params: object) -> list[str]:
    given = {"model": f"path:{folder}", "corpus": f"file:{text}", "length": 64, **params}
    return list(StreamWorkload().notes(StreamParams.model_validate(given)))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("words " * 100)
    return tmp_path / "text.txt"


def config(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    base = {"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(base | settings))
    return folder


def test_a_window_of_the_models_own_that_hides_the_sinks_is_noted(tmp_path: Path, text: Path) -> None:
    folder = config(tmp_path / "m", sliding_window=64)
    (said,) = notes(folder, text, policy="sink 4+124")
    assert "4 of 4 layers have a sliding window of their own (64 tokens) inside 'sink 4+124'" in said
    assert "the 4 sinks are out of sight" in said
    assert notes(folder, text, policy="sink 4+28") == notes(folder, text, policy="dense") == []
    mixed = config(tmp_path / "x", sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2)
    (said,) = notes(mixed, text, policy="window 124")
    assert "2 of 4 layers" in said
    assert "sinks" not in said


@pytest.mark.parametrize(
    ("settings", "tokenizer", "token"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, {}, "<s>"),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, {}, "<s>"),
        ({"bos_token": "<s>", "add_bos_token": False}, {}, None),
        (
            {"bos_token": "<b>"},
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<b>"}}]}},
            "<b>",
        ),
        (
            {"bos_token": "<b>"},
            {"post_processor": {"type": "Sequence", "processors": [
                {"type": "ByteLevel"}, {"single": [{"SpecialToken": {"id": "<b>"}}, {"Sequence": {}}]}]}},
            "<b>",
        ),
        ({"bos_token": "<b>"}, {"post_processor": {"single": [{"Sequence": {"id": "A"}}]}}, None),
        ({}, {"post_processor": None}, None),
    ],
)  # fmt: skip
def test_a_tokenizer_that_wants_a_bos_is_noted(
    settings: dict, tokenizer: dict, token: str | None, tmp_path: Path, text: Path
) -> None:
    folder = config(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert wanted_bos(folder) == token
    said = notes(folder, text, policy="dense")
    assert len(said) == (token is not None)
    assert all(str(token) in one and "bos: true" in one for one in said)
    assert notes(folder, text, policy="dense", bos=True) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2)),
            "no attention layers",
        ),
        (T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, num_layers=1)), "encoder-decoder"),
    ],
    ids=["mamba", "t5"],
)
def test_what_has_no_stream_is_said_before_weights_are_read(
    model: PreTrainedModel, said: str, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    for weights in tmp_path.glob("*.safetensors"):
        weights.write_bytes(b"no weights at all")
    with pytest.raises(Unavailable, match=said):
        load_model(ModelRef.parse(f"path:{tmp_path}"), "float32", "cpu")


def test_layers_with_a_window_of_their_own_hold_no_more_than_they_need() -> None:
    """Full layers the budget, sliding ones their window less one: the saving against dense is what it is."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            hidden_size=64, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, vocab_size=131, num_local_experts=4, num_experts_per_tok=2,
            sliding_window=128, max_position_embeddings=16384, pad_token_id=None,
        )
    ).eval()  # fmt: skip
    policy, ids = parse_policy("sink 4+1020"), torch.randint(0, 131, (1024,))
    stream = open_stream(model, policy).stream
    evaluate(stream, ids)
    assert stream.nbytes() == stream.predicted_bytes() == 589_312
    assert stream.allocated_bytes() == 256 * (2 * (1024 + 1) + 2 * (127 + 1))  # and a scratch slot each
    shape = CacheShape.from_config(model.config.to_dict(), itemsize=4)
    dense = parse_policy("dense").nbytes(shape, 8192)
    assert policy.nbytes(shape, 1024) == policy.nbytes(shape, 8192) == 589_312
    assert dense / policy.nbytes(shape, 8192) == pytest.approx(7.23, abs=0.01)
    library = open_stream(model, parse_policy("dense")).stream
    evaluate(library, ids)
    assert library.nbytes() == parse_policy("dense").nbytes(shape, 1024)


def test_a_budget_inside_a_window_of_the_models_own_is_fine() -> None:
    stream = open_stream(build("gpt-oss"), parse_policy("sink 2+9")).stream
    assert stream.path == "exact"
    assert not stream.state.tails
