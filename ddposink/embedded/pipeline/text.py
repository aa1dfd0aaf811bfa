"""Tokenizer and text encoder of the embedded pipeline: CLIP's classes, small, for the captions' words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 16  # with start and end: the longest caption has ten words


def make_tokenizer(texts: Iterable[str], vocabulary: int = 4_096, length: int = TOKENS) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's format, trained until (almost) every word of ``texts`` is one token."""
    draft = CLIPTokenizer().backend_tokenizer
    draft.model = models.BPE(unk_token=END, end_of_word_suffix="</w>")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        # Letters that end a word are named too, so that no text is unknown; and because the trainer would
        # number them in an order that differs from run to run, and with it those ids that it breaks ties by.
        special_tokens=[START, END, *(f"{letter}</w>" for letter in letters)],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    draft.train_from_iterator(texts, trainer)
    trained = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    return CLIPTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=length)


def make_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    """A `CLIPTextModel` with random weights for ``tokenizer``."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=int(tokenizer.model_max_length),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def encode(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """(N, tokens) ids, padded and cut to the model's length as a pipeline does."""
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    ids: Tensor = tokenizer(list(texts), return_tensors="pt", **options).input_ids
    return ids.to(torch.int64)
