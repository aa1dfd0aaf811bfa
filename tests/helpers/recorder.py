"""A context for a workload in this process, and the tiny model that such tests read with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.workload import Cell


class Recorder:
    """Keeps what it is told: cells by their parameter ``key``."""

    def __init__(self, out: Path | None = None, key: str = "length") -> None:
        if out is not None:
            out.mkdir(exist_ok=True)
        self.out, self.key = out, key
        self.cells: dict[int, dict[str, Any]] = {}
        self.progressed: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, **values: float) -> None:
        self.progressed.append((done, total))

    def emit(self, cell: Cell, metrics: Mapping[str, Any], **rest: Any) -> None:
        self.cells[cell.params[self.key]] = {"metrics": dict(metrics), **rest}


def save_tiny_llama(
    place: Path, vocabulary: dict[str, int], split: str, *, size: int, positions: int
) -> None:
    """A random Llama with a tokenizer that knows ``vocabulary`` and cuts a text where ``split`` matches."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=size,
        initializer_range=0.2,
        max_position_embeddings=positions,
    )
    LlamaForCausalLM(config).save_pretrained(place)
