"""The first tokens of a text are those of the whole text, and the rest is not read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ddposink import reading
from ddposink.corpora import CorpusRef, load_stream
from ddposink.reading import BLOCK, MARGIN, Book, encode, first_tokens

SAMPLE = (
    'It was the best of times, it was the worst of times; 1775 was the year. "Why?" asked Mr. Lorry\'s '
    "neighbour – «naïvely».\n\n    The   coach lumbered  up Shooter's Hill,\n\tand nobody's    the wiser…  "
    "漢字かな交じり文、それから英語。 😀 It is a far, far better thing that I do!!! "
)
GPT2 = Regex(r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def _trained(kind: str) -> PreTrainedTokenizerFast:
    """Small tokenizers built like the ones in use: byte-level BPE, BPE over everything, unigram."""
    if kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    else:
        inner = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
        alphabet = []
        if kind == "byte-level":
            split = pre_tokenizers.Split(GPT2, "isolated")
            inner.pre_tokenizer = pre_tokenizers.Sequence(
                [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
            )
            inner.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        else:  # as Llama 2: no words, merges may run over everything
            inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>"], initial_alphabet=alphabet)
    inner.train_from_iterator([SAMPLE * 8 + " " * 64 + "\n" * 32], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


TOKENIZERS = {kind: _trained(kind) for kind in ("byte-level", "no words", "unigram")}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(SAMPLE.split(" ")),
        st.text(alphabet="abc \n\t漢😀é.,'", max_size=12),
        st.integers(1, 400).map(lambda n: " " * n),
        st.integers(1, 400).map(lambda n: "\n" * n),
        st.integers(1, 300).map(lambda n: "ab" * n),
    ),
    min_size=1,
    max_size=60,
).map(" ".join)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS, repeats=st.integers(1, 30), wanted=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_the_first_tokens_are_those_of_the_whole_text(
    kind: str, text: str, repeats: int, wanted: int
) -> None:
    text, tokenizer = text * repeats, TOKENIZERS[kind]
    expected = encode(text + "\n", tokenizer).head(wanted)
    found = first_tokens(
        Book("x", iter([text[i : i + 700] for i in range(0, len(text), 700)])), wanted, tokenizer, "\n"
    )
    for name in ("ids", "byte_steps", "word_steps"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "text", ["ab" * 40_000, " " * 50_000 + "end", "漢字" * 30_000, "\n" * 30_000 + "a b " * 20_000]
)
def test_texts_without_words_are_read_as_far_as_it_takes(kind: str, text: str) -> None:
    expected = encode(text, TOKENIZERS[kind]).head(500)
    assert np.array_equal(first_tokens(Book.of("x", text), 500, TOKENIZERS[kind]).ids, expected.ids)


def test_no_more_is_tokenised_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = TOKENIZERS["byte-level"]

    class Watched:
        def __call__(self, text: str, **options: object) -> object:
            seen.append(len(text))
            return inner(text, **options)

    first_tokens(Book.of("x", SAMPLE * 20_000), 1000, Watched())
    assert sum(seen) <= 2 * (reading.CHARACTERS * 1000 + MARGIN)


def test_no_more_of_a_file_is_read_than_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.txt"
    large.write_text(SAMPLE * 40_000, encoding="utf-8")
    assert large.stat().st_size > 8 * BLOCK
    (tmp_path / "later.txt").write_bytes(b"\xff\xfe never opened")
    read = 0

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    monkeypatch.setattr(Path, "open", lambda self, mode="r": Counting(self, "r"))
    stream = load_stream(CorpusRef.parse(f"folder:{tmp_path}"), TOKENIZERS["byte-level"], 1000)
    assert read <= BLOCK
    assert [name for name, _ in stream.books] == ["large.txt"]


def test_a_character_cut_by_a_block_is_one_character(tmp_path: Path) -> None:
    text = "a" * (BLOCK - 1) + "漢字 and more"
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    assert Book.file(tmp_path / "x.txt").whole() == text
    (tmp_path / "bad.txt").write_bytes(b"a" * (BLOCK - 1) + b"\xe6\xbc" + b"x")
    with pytest.raises(ValueError, match=f"not UTF-8 text: .* at byte {BLOCK - 1}"):
        Book.file(tmp_path / "bad.txt").whole()


def test_a_bos_between_books_is_no_target(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("It was the best of times")
    tokenizer = TOKENIZERS["byte-level"]
    length = 3 * len(encode("It was the best of times", tokenizer).ids) + 3
    stream = load_stream(CorpusRef.parse(f"folder:{tmp_path}?separator=bos"), tokenizer, length, bos=True)
    assert np.array_equal(stream.target, stream.ids != tokenizer.bos_token_id)
    assert (~stream.target).sum() == 3
