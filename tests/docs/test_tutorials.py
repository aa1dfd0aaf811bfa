"""The tutorials, followed at a small scale: their suites with small models, their commands as they stand."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pages import BLOCK, ROOT, TEXT, bench
from helpers.tiny import tiny_pipeline

PAGES = ROOT / "docs" / "tutorials"
# What stands in for what, by the name in ``<!-- scale: NAME -->`` before a suite.
SCALE = {
    "sinks": {
        "model: smollm2-135m": "model: bundled:sink-llama/vanilla",
        "novel:persuasion": "file:text.txt",
        "window 256, sink 4+252": "window 32, sink 4+28",
        "[512, 2048]": "[64, 160]",
        "measure: [quality]": "measure: [quality]\n  threads: 1",
    },
    "ddpo": {
        "pipeline: emoji-sd": "prompts: &own file:prompts.txt\n  eval_prompts: *own\n  pipeline: path:tiny",
        "sample_num_steps: 3": "sample_num_steps: 2",
        "sample_batch_size: 16": "sample_batch_size: 4",
        "samples_per_prompt: 8": "samples_per_prompt: 2",
        "train_batch_size: 16": "train_batch_size: 4",
        "steps: [0, 4]": "steps: [0, 1]",
        "alignment, brisque": "brisque",
    },
    "gate": {
        "model: smollm2-135m": "threads: 1, model: bundled:sink-llama/vanilla",
        "novel:persuasion": "file:text.txt",
        "sink 4+252": "sink 4+28",
        "length: 512, decode_tokens: 8": "length: 96, decode_tokens: 2",
    },
}
CODES = {"gate": (0, 4, 5)}  # what two runs took is left to chance


def commands(text: str) -> list[list[str]]:
    """The words of every command of a page that needs nothing but its suite."""
    lines = [line for kind, _, block in BLOCK.findall(text) if kind == "sh" for line in block.splitlines()]
    return [shlex.split(line)[3:] for line in lines if "--against" not in line]


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_a_tutorial(page: str, tmp_path: Path) -> None:
    text = (PAGES / page).read_text(encoding="utf-8")
    (name,) = re.findall(r"<!-- scale: (\w+) -->", text)
    ((file, suite),) = [
        (title, block) for kind, title, block in BLOCK.findall(text) if kind == "yaml" and title
    ]
    for ours, small in SCALE[name].items():
        assert ours in suite, f"{page} no longer says {ours!r}"
        suite = suite.replace(ours, small)
    (tmp_path / file).write_text(suite)
    (tmp_path / "text.txt").write_text(TEXT)
    if name == "ddpo":
        tiny_pipeline().save_pretrained(tmp_path / "tiny")
        (tmp_path / "prompts.txt").write_text("cat\nred fox\n")
    called = commands(text)
    assert called
    for words in called:
        done = bench(tmp_path, *words)
        assert done.returncode in CODES.get(words[0], (0,)), f"{words}\n{done.stdout}{done.stderr}"
    runs = list((tmp_path / "results" / Path(file).stem).glob("2*"))
    assert runs
    assert all((run / "index.html").exists() for run in runs)


def test_pictures_and_links_of_the_pages_are_there() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).resolve().exists(), f"{page.name}: {target}"


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra 'docs'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "site" / "reference" / "record" / "index.html").read_text()
    assert "Content hash of the cell" in made
    assert "until-decided" in (tmp_path / "site" / "reference" / "command-line" / "index.html").read_text()
