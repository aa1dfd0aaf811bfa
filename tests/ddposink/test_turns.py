"""Where turns end: the chat template's tokens where the text has them, paragraphs otherwise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ddposink.turns import end_tokens, turn_ends

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OWN = "{% for m in messages %}[{{ m.role }}] {{ m.content }} <over>{% endfor %}"


def tokenizer(template: str | None = None, *added: str) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name) for name in added])
    found = PreTrainedTokenizerFast(tokenizer_object=inner)
    found.chat_template = template
    return found


def pieces(text: str, tok: PreTrainedTokenizerFast) -> list[str]:
    """The text cut behind every token that ends a turn."""
    encoded = tok(text, return_offsets_mapping=True)
    ends = turn_ends(np.array(encoded["input_ids"]), tok)
    cuts = [0, *(b for (_, b), end in zip(encoded["offset_mapping"], ends, strict=True) if end), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


@pytest.mark.parametrize("template", [CHATML, None])
def test_end_of_turn_tokens_end_turns(template: str | None) -> None:
    tok = tokenizer(template, "<|im_start|>", "<|im_end|>")
    text = "<|im_start|>user\nHow?\n\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    assert pieces(text, tok) == [
        "<|im_start|>user\nHow?\n\nWhy?<|im_end|>", "\n<|im_start|>assistant\nSo.<|im_end|>", "\n"
    ]  # fmt: skip


def test_a_template_names_its_own_token() -> None:
    tok = tokenizer(OWN, "<over>", "<aside>")
    assert end_tokens(tok) == {tok.convert_tokens_to_ids("<over>")}
    assert pieces("a <aside>b<over>c", tok) == ["a <aside>b<over>", "c"]


def test_without_such_tokens_in_the_text_paragraphs_are_turns() -> None:
    for tok in (tokenizer(), tokenizer(CHATML, "<|im_start|>", "<|im_end|>")):
        assert pieces("one\ntwo\n\nthree\n\n\nfour", tok) == ["one\ntwo\n\n", "three\n\n", "\n", "four"]


def test_a_template_that_fails_leaves_the_well_known_tokens() -> None:
    tok = tokenizer("{{ raise_exception('no') }}", "<|eot_id|>")
    assert end_tokens(tok) == {tok.convert_tokens_to_ids("<|eot_id|>")}


@pytest.mark.parametrize("blank", ["\r\n\r\n", "\n\t\n", "\n  \n", "\r\n \t\r\n"])
def test_a_blank_line_is_one_however_it_is_written(blank: str) -> None:
    assert pieces(f"one\ntwo{blank}three", tokenizer()) == [f"one\ntwo{blank}", "three"]


def test_a_line_that_is_not_blank_ends_no_paragraph() -> None:
    """Tokenizers join punctuation with the line break behind it."""
    inner = Tokenizer(models.WordLevel({"a": 0, ";\n": 1, "}\n": 2, "b": 3, "\n": 4}, unk_token="a"))
    joined = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert not turn_ends(np.array([0, 1, 2, 3]), joined).any()
    assert turn_ends(np.array([0, 1, 4, 3]), joined).tolist() == [False, False, True, False]
