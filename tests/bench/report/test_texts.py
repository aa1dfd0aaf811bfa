"""Texts that cells have kept: on the page and in the README as characters, whatever they contain."""

from __future__ import annotations

import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bench.report import page as markdown_page
from bench.report.frames import RunData, load
from bench.report.page import write
from bench.report.panels import NothingToDraw
from bench.report.texts import BEGIN, END, KeptText, clean_line, kept_texts
from bench.report.web.page import write_page
from bench.workload import View
from helpers.tuned import Tuned, tuned_run

VIEW = View(
    "texts", "texts", "What was written", "steps", "effect", "steps", "text", hue="reward", series="text"
)
HOSTILE = (
    "─── token 0: asked\n    </pre><script>alert(1)</script>\n━━━ collapse at token 3\n"
    "    ```\n    | a | ![x](http://example.org/x.png) <img src=x onerror=alert(2)> \u202e\x1b[31m\x00 ]]>\n"
)


class Parsed(HTMLParser):
    """Tags of a page, and the text inside its ``pre`` elements of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.marked: list[str] = []
        self.shown = ""
        self._inside = self._mark = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._mark |= tag == "mark"
        self._inside |= tag == "pre" and ("role", "region") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._mark &= tag != "mark"
        self._inside &= tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.shown += data
            if self._mark:
                self.marked.append(data)


def workload() -> Tuned:
    return Tuned(views=(*Tuned().views, VIEW))


def with_texts(folder: Path, texts: dict[str, str]) -> RunData:
    """The invented run, whose furthest cells have kept a text."""
    data = load(tuned_run(folder), workload())  # type: ignore[arg-type]
    for record in data.records:
        text = texts.get(str(record.params["reward"]))
        if text is not None and record.params["steps"] == 100:
            path = f"artifacts/{record.pass_id}/text-100.txt"
            (folder / path).write_text(text, encoding="utf-8", newline="\n")
            kept = record.artifacts[0].model_copy(update={"path": path})
            record.artifacts.append(kept)
    return data


def test_texts_stand_beside_each_other_under_the_names_of_their_hue(tmp_path: Path) -> None:
    found = kept_texts(VIEW, with_texts(tmp_path, {"red": "─── one\n    a\n", "blue": "━━━ two\n    b\n"}))
    assert [text.name for text in found] == ["red", "blue"]
    assert found[0].lines == [("heading", "─── one"), ("", "    a")]
    assert found[1].lines == [("alarm", "━━━ two"), ("", "    b")]


def test_without_texts_there_is_no_section(tmp_path: Path) -> None:
    data = with_texts(tmp_path, {})
    with pytest.raises(NothingToDraw, match="no cell has kept text"):
        kept_texts(VIEW, data)
    text = write_page(tmp_path, [data], {}).read_text(encoding="utf-8")
    assert 'id="texts"' not in text
    assert 'href="#texts"' not in text


def test_a_hostile_text_is_characters_on_the_page(tmp_path: Path) -> None:
    plain = Parsed(write_page(tmp_path, [with_texts(tmp_path / "a", {"red": "a"})], {}).read_text("utf-8"))
    page = Parsed(write_page(tmp_path, [with_texts(tmp_path / "b", {"red": HOSTILE})], {}).read_text("utf-8"))
    assert page.tags.count("script") == plain.tags.count("script")
    assert page.tags.count("img") == plain.tags.count("img")
    assert "</pre><script>alert(1)</script>" in page.shown
    assert not {"\u202e", "\x1b", "\x00"} & set(page.shown)
    assert page.marked == ["━━━ collapse at token 3"]


def test_a_hostile_text_is_a_block_of_code_in_the_readme(tmp_path: Path, monkeypatch) -> None:
    data = with_texts(tmp_path, {"red": HOSTILE})
    monkeypatch.setattr(markdown_page, "read", lambda *_: data)
    text = write(tmp_path, None).read_text(encoding="utf-8")
    blocks = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "code_block"]
    assert any("</pre><script>alert(1)</script>" in block.content for block in blocks)
    html = MarkdownIt("commonmark").render(text)
    assert "<script" not in html
    assert 'example.org/x.png"' not in html


def test_of_a_long_text_both_ends_are_shown(tmp_path: Path) -> None:
    long = "begin\n" + "x" * (BEGIN + END) + "\nend"
    lines = kept_texts(VIEW, with_texts(tmp_path, {"red": long}))[0].lines
    assert lines[0] == ("", "begin")
    assert lines[-1] == ("", "end")
    assert ("heading", "─── 10 characters left out ───") in lines


def test_a_text_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "text-1.txt").write_text("secret")
    data = with_texts(tmp_path / "run", {"red": "a"})
    record = next(r for r in data.records if r.artifacts[-1].path.endswith(".txt"))
    record.artifacts[-1] = record.artifacts[-1].model_copy(update={"path": "../text-1.txt"})
    with pytest.raises(NothingToDraw):
        kept_texts(VIEW, data)


@given(st.text())
def test_lines_are_visible_characters(line: str) -> None:
    shown = clean_line(line)
    assert len(shown) == len(line)
    assert all(a in (b, "\ufffd") for a, b in zip(shown, line, strict=True))
    assert all(
        c == "\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in shown
    )


@given(st.lists(st.text(), min_size=1, max_size=30))
def test_an_excerpt_is_one_block_of_code(lines: list[str]) -> None:
    text = KeptText("a", [("", clean_line("  " + line)) for line in lines])
    tokens = MarkdownIt("commonmark").parse("# before\n\n" + text.excerpt() + "\n\nafter\n")
    kinds = [token.type for token in tokens]
    assert kinds[:3] == ["heading_open", "inline", "heading_close"]
    assert set(kinds[3:]) <= {"code_block", "paragraph_open", "inline", "paragraph_close"}
    assert kinds[-3:] == ["paragraph_open", "inline", "paragraph_close"]
    assert tokens[-2].content == "after"
