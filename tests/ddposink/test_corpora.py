"""Corpora: names, what a token stands for in bytes and words, and clear errors for what is not a text."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddposink.assets import hub, pg19
from ddposink.assets.novels import NOVELS, novel
from ddposink.corpora import CorpusRef, TokenStream, load_stream, mentions
from ddposink.errors import Unavailable
from ddposink.reading import BLOCK, encode

BOS = "<s>"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_tokenizer(bos: bool = True) -> Any:
    """Byte-level BPE without merges over non-ASCII: every such character is split over several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat and the other cat sat there and then"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS if bos else None)


TOKENIZER = make_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("b.txt", "then the cat"), ("a.txt", "the cat sat"), ("c.txt", "and the other")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a book")
    return tmp_path


def whole(ref: str, bos: bool = False, tokenizer: Any = TOKENIZER) -> TokenStream:
    """All tokens of a corpus, found by asking for too many."""
    with pytest.raises(ValueError, match="were asked for") as caught:
        load_stream(CorpusRef.parse(ref), tokenizer, 10**9, bos)
    count = int(str(caught.value).split(" has ")[1].split(" tokens")[0].replace(",", ""))
    return load_stream(CorpusRef.parse(ref), tokenizer, count, bos)


def assert_counts_match(stream: TokenStream, text: str) -> None:
    """Bytes and words after every token that ends a character, counted the slow way."""
    assert stream.byte_end[-1] == len(text.encode())
    assert stream.word_end[-1] == len(text.split())
    assert (np.diff(stream.byte_end, prepend=0) >= 0).all()
    assert (np.diff(stream.word_end, prepend=0) >= 0).all()
    for end in range(1, len(stream.ids) + 1):
        prefix = TOKENIZER.decode(stream.ids[:end], clean_up_tokenization_spaces=False)
        if text.startswith(prefix):  # else the last character is not complete yet
            assert stream.byte_end[end - 1] == len(prefix.encode())
            assert stream.word_end[end - 1] == len(prefix.split())


@given(st.text(alphabet=st.sampled_from("the cat\n\t é–漢😀 "), min_size=1, max_size=40))
def test_bytes_and_words_of_every_token_on_any_text(text: str) -> None:
    found = encode(text, TOKENIZER)
    steps = np.cumsum(found.byte_steps), np.cumsum(found.word_steps)
    stream = TokenStream(found.ids, *steps, np.ones(len(found.ids), dtype=bool), [("x", 0)], "")
    assert_counts_match(stream, text)


def test_a_file_is_read_as_one_book(tmp_path: Path) -> None:
    text = "The café – «naïve» 漢字 😀\n\nthe end\n"
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    stream = whole(f"file:{tmp_path / 'book.txt'}")
    assert stream.ids.dtype == stream.byte_end.dtype == stream.word_end.dtype == np.int64
    assert stream.books == [("book.txt", 0)]
    assert TOKENIZER.decode(stream.ids) == text
    assert_counts_match(stream, text)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbfthe cat")
    assert TOKENIZER.decode(whole(f"file:{tmp_path / 'book.txt'}").ids) == "the cat"


def test_a_folder_is_its_txt_files_in_order(folder: Path) -> None:
    stream = whole(f"folder:{folder}")
    assert [name for name, _ in stream.books] == ["a.txt", "b.txt", "c.txt"]
    for (_, start), text in zip(stream.books, ("the cat sat", "then the cat", "and the other"), strict=True):
        assert TOKENIZER.decode(stream.ids[start:]).startswith(text)
    assert stream.byte_end[-1] == len("the cat satthen the catand the other")


@pytest.mark.parametrize(
    ("separator", "joined", "said"),
    [
        ("none", "the cat satthen the catand the other", "no separator"),
        ("newline", "the cat sat\nthen the cat\nand the other\n", "a newline between books"),
        ("bos", "the cat sat<s>then the cat<s>and the other", "a BOS token between books"),
    ],
)
def test_books_are_joined_as_said(folder: Path, separator: str, joined: str, said: str) -> None:
    stream = whole(f"folder:{folder}?separator={separator}")
    assert TOKENIZER.decode(stream.ids) == joined
    assert stream.convention == f"no BOS; concatenated, {said}, never reset"
    assert stream.byte_end[-1] == len(joined.replace(BOS, "")), "a BOS token stands for no text"


def test_bos_comes_first_and_counts_as_no_text(folder: Path) -> None:
    plain, with_bos = whole(f"folder:{folder}"), whole(f"folder:{folder}", bos=True)
    assert with_bos.ids[0] == TOKENIZER.bos_token_id
    assert (with_bos.ids[1:] == plain.ids).all()
    assert (with_bos.byte_end[1:] == plain.byte_end).all()
    assert with_bos.byte_end[0] == with_bos.word_end[0] == 0
    assert [start for _, start in with_bos.books] == [start + 1 for _, start in plain.books]
    assert with_bos.convention.startswith("BOS first")


def test_only_as_many_books_as_asked_for(folder: Path) -> None:
    assert [name for name, _ in whole(f"folder:{folder}?books=2").books] == ["a.txt", "b.txt"]


def test_a_prefix_of_a_corpus_is_a_prefix_of_its_stream(folder: Path) -> None:
    everything, some = (
        whole(f"folder:{folder}"),
        load_stream(CorpusRef.parse(f"folder:{folder}"), TOKENIZER, 5),
    )
    assert len(some.ids) == len(some.byte_end) == len(some.word_end) == 5
    assert (some.ids == everything.ids[:5]).all()
    assert (some.byte_end == everything.byte_end[:5]).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"text\0text", "not text: it contains NUL bytes"),
        (b"caf\xe9 au lait", "not UTF-8 text.*at byte 3"),
        (b"the cat", r"has \d+ tokens for this model, 1,000 were asked for"),
    ],
)
@pytest.mark.parametrize("bos", [False, True])
def test_what_is_no_corpus_is_refused(tmp_path: Path, content: bytes, said: str, bos: bool) -> None:
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_stream(CorpusRef.parse(f"file:{tmp_path / 'book.txt'}"), TOKENIZER, 1000, bos)


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.txt file"):
        load_stream(CorpusRef.parse(f"folder:{tmp_path}"), TOKENIZER, 10)


def test_a_tokenizer_without_bos_or_without_offsets_is_refused(folder: Path) -> None:
    ref = CorpusRef.parse(f"folder:{folder}")
    with pytest.raises(ValueError, match="no BOS token"):
        load_stream(ref, make_tokenizer(bos=False), 5, bos=True)
    with pytest.raises(ValueError, match="no BOS token"):
        load_stream(CorpusRef.parse(f"folder:{folder}?separator=bos"), make_tokenizer(bos=False), 5)

    class Slow:
        bos_token_id, is_fast = 0, False

    with pytest.raises(ValueError, match="which text a token covers"):
        load_stream(ref, Slow(), 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("novel:persuason", "unknown novel 'persuason'.*did you mean 'persuasion'"),
        ("novls", "unknown corpus 'novls'.*did you mean 'novels'"),
        ("novels?seperator=none", "unknown corpus option 'seperator'.*did you mean 'separator'"),
        ("novels?separator=newlin", "unknown separator 'newlin'.*did you mean 'newline'"),
        ("novels?books=0", "at least 1, got '0'"),
        ("novels?books=many", "at least 1, got 'many'"),
        ("file:/no/such/file", "does not exist"),
        ("folder:/no/such/folder", "does not exist"),
        ("pg19:train", "unknown corpus 'pg19:train'"),
        ("pg19:test@main", "unknown corpus 'pg19:test@main'"),
        ("", "unknown corpus ''"),
    ],
)
def test_misspelt_corpora_say_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CorpusRef.parse(text)


def test_identity_follows_the_content(folder: Path) -> None:
    one, other = CorpusRef.parse(f"folder:{folder}"), CorpusRef.parse(f"file:{folder / 'a.txt'}")
    before, file_before = one.identity(), other.identity()
    (folder / "notes.md").write_text("changed")
    assert one.identity() == before, "files that are not read do not count"
    (folder / "a.txt").write_text("the cat spat")
    assert one.identity() != before
    assert other.identity() != file_before
    assert CorpusRef.parse("novel:emma").identity() != CorpusRef.parse("novels").identity()
    assert CorpusRef.parse(f"pg19:test@{COMMIT}").identity()["revision"] == COMMIT


def test_a_renamed_file_changes_the_order_and_so_the_identity(folder: Path) -> None:
    before = CorpusRef.parse(f"folder:{folder}").identity()
    (folder / "a.txt").rename(folder / "z.txt")
    assert CorpusRef.parse(f"folder:{folder}").identity() != before


def test_naming_a_corpus_needs_no_heavy_library() -> None:
    code = (
        "import sys; from ddposink.corpora import CorpusRef; from ddposink.models.language import ModelRef\n"
        "CorpusRef.parse('novels').identity(); ModelRef.parse('random:llama-2-7b').config_dict()\n"
        "ModelRef.parse('smollm2-135m').identity()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rdata', 'datasets', 'huggingface_hub', 'bench'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ROWS = [
    {"short_book_title": "One", "url": "http://www.gutenberg.org/ebooks/10146", "text": "the cat sat"},
    {"short_book_title": "Two", "url": "http://www.gutenberg.org/ebooks/10321", "text": "then the cat"},
    {"short_book_title": "Three", "url": "", "text": "and the other"},
]


@pytest.fixture
def pg19_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A PG19-like data set in a local folder; returns the revision that the "hub" names newest."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    monkeypatch.setattr(pg19, "REPO", str(tmp_path))
    monkeypatch.setattr(hub, "unreachable", lambda: None)

    class Api:
        def dataset_info(self, name: str, timeout: float) -> Any:
            return type("Info", (), {"sha": COMMIT})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return COMMIT


def test_pg19_is_streamed_from_parquet_and_its_revision_recorded(pg19_here: str) -> None:
    stream = whole("pg19:test")
    assert [name for name, _ in stream.books] == ["10146", "10321", "Three"]
    assert TOKENIZER.decode(stream.ids) == "the cat satthen the catand the other"
    assert stream.convention.endswith(f"@{pg19_here}")
    pinned = "f" * 40
    assert whole(f"pg19:test@{pinned}?books=1").convention.endswith(f"@{pinned}")


def test_one_book_of_pg19(pg19_here: str) -> None:
    stream = whole("pg19:test/10321")
    assert stream.books == [("10321", 0)]
    assert TOKENIZER.decode(stream.ids) == "then the cat"
    with pytest.raises(ValueError, match="PG19 test has no book '1'; books are 10146, 10321"):
        load_stream(CorpusRef.parse("pg19:test/1"), TOKENIZER, 5)


def test_pg19_without_network_is_unavailable_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        Unavailable, match=r"corpus not available offline: .*HF_HUB_OFFLINE.*folder:DIR"
    ) as caught:
        load_stream(CorpusRef.parse("pg19:test"), TOKENIZER, 5)
    assert "\n" not in str(caught.value)


def test_pg19_that_cannot_be_read_is_unavailable(pg19_here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pg19, "REPO", "/no/such/data/set")
    with pytest.raises(Unavailable, match="could not be read"):
        load_stream(CorpusRef.parse("pg19:test"), TOKENIZER, 5)


@pytest.mark.assets
@pytest.mark.parametrize("name", NOVELS)
def test_every_novel_is_the_pinned_text(name: str) -> None:
    text = novel(name)
    assert hashlib.sha256(text.encode()).hexdigest() == NOVELS[name][2]
    assert len(text.split()) > 55_000
    for remains in ("PROJECT GUTENBERG EBOOK", "End of Project Gutenberg", "Gutenberg-tm License"):
        assert remains not in text
    assert text.strip() + "\n" == text


@pytest.mark.assets
def test_a_damaged_novel_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddposink.assets import novels

    asset = novels.ASSETS["austen"].path(), novels.ASSETS["austen-index"].path()
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path))
    for source, name in zip(asset, ("austen", "austen-index"), strict=True):
        copy = novels.ASSETS[name].cache_file
        copy.parent.mkdir(parents=True)
        copy.write_bytes(source.read_bytes())
    good = novel("persuasion")
    (tmp_path / "novels" / "persuasion.txt").write_text(good[:-7])
    assert novel("persuasion") == good
    assert (tmp_path / "novels" / "persuasion.txt").read_text(encoding="utf-8") == good


@pytest.mark.assets
def test_a_whole_novel_through_the_real_tokenizer() -> None:
    from transformers import AutoTokenizer

    from ddposink.assets.catalogue import cache_dir
    from ddposink.models.language import ModelRef, load_model

    load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")
    folder = next((cache_dir() / "models").glob("smollm2-135m-*/tokenizer.json")).parent
    stream = whole("novel:persuasion", tokenizer=AutoTokenizer.from_pretrained(folder))
    text = novel("persuasion")
    assert len(stream.ids) == 115_862
    assert stream.byte_end[-1] == len(text.encode())
    assert stream.word_end[-1] == len(text.split())
    assert (np.diff(stream.byte_end) >= 0).all()


def test_a_word_is_found_wherever_a_file_is_cut_into_blocks(tmp_path: Path) -> None:
    for before in (0, BLOCK - 3, BLOCK, 3 * BLOCK):
        (tmp_path / "a.txt").write_text("x" * before + "<|im_end|>" + "y" * 9)
        for text in (f"file:{tmp_path}/a.txt", f"folder:{tmp_path}"):
            assert mentions(CorpusRef.parse(text), ["</s>", "<|im_end|>"])
            assert not mentions(CorpusRef.parse(text), ["<|end|>"])
            assert not mentions(CorpusRef.parse(text), [])
