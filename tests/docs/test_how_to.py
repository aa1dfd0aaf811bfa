"""Every how-to is followed to the letter: its blocks become a package and a suite, and its command is run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bench.results.record import Status
from bench.results.store import read_records
from helpers.pages import BLOCK, ROOT, TEXT, bench
from helpers.tiny import tiny_pipeline

PAGES = ROOT / "docs" / "how-to"


def blocks(page: str) -> dict[str, str]:
    """Files that a page tells to write, by name."""
    found = BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))
    return {name: text for _, name, text in found if name}


def shell(page: str) -> str:
    """The page's first shell block."""
    return next(text for kind, _, text in BLOCK.findall((PAGES / page).read_text()) if kind == "sh")


def follow(page: str, folder: Path) -> dict[str, str]:
    """Write the page's files, and install its package as pip would record it."""
    files = blocks(page)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if "pyproject.toml" in files:
        project = tomllib.loads(files["pyproject.toml"])["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
        groups = project["entry-points"].items()
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in one.items()) for group, one in groups]
        (info / "entry_points.txt").write_text("\n".join(lines))
    (folder / "text.txt").write_text(TEXT)
    return files


def measured(folder: Path, suite: str) -> list[Any]:
    """Run the page's command; the records, all of which must be ok."""
    done = bench(folder, suite)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "results" / Path(suite).stem).glob("2*")
    records, damaged = read_records(run / "records.jsonl")
    assert not damaged
    assert records
    assert {record.status for record in records} == {Status.OK}
    return records


def test_a_cache_policy(tmp_path: Path) -> None:
    follow("cache-policy.md", tmp_path)
    assert shell("cache-policy.md") == "python -m bench share.yaml\n"
    nll = {r.columns["policy"]: r.metrics["nll"].value for r in measured(tmp_path, "share.yaml")}
    assert nll["share-sink 32"] == nll["sink 4+28"] != nll["dense"]
    module = tmp_path / "share_sink.py"
    module.write_text(module.read_text().replace("// 8\n", "// 4\n"))  # another policy, under the same name
    assert len(measured(tmp_path, "share.yaml")) == 4, "the cell of the changed policy is measured again"
    suite = tmp_path / "share.yaml"
    suite.write_text(suite.read_text().replace("share-sink 32", "share-sink 7"))
    refused = bench(tmp_path, "plan", "share.yaml")
    assert refused.returncode == 2
    assert "at least 8 tokens" in refused.stderr


def test_a_policy_that_chooses_by_content_is_a_package_of_its_own(tmp_path: Path) -> None:
    example = ROOT / "examples" / "value-norm"
    shown = BLOCK.findall((PAGES / "cache-policy.md").read_text(encoding="utf-8"))
    code = next(text for kind, name, text in shown if kind == "python" and not name)
    source = (example / "value_norm.py").read_text()
    said = re.sub(r'\n        """[^\n]*"""', "", source)  # docstrings of methods are left out on the page
    assert code.strip() in said
    target, source_copy = tmp_path / "site", tmp_path / "copy"
    shutil.copytree(example, source_copy)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(target), str(source_copy)], check=True, capture_output=True)
    (tmp_path / "text.txt").write_text(TEXT)
    suite = (example / "value-norm.yaml").read_text()
    suite = suite.replace("novel:persuasion", "file:text.txt").replace("length: 1024", "length: 200")
    suite = suite.replace("recent=32", "recent=4")
    (tmp_path / "value-norm.yaml").write_text(
        re.sub(r"128 (.*?)evict=chunk:32", r"16 \1evict=chunk:8", suite)
    )
    for path in target.iterdir():  # what pip installed, where `bench` looks
        path.rename(tmp_path / path.name)
    policies = {record.params["policy"] for record in measured(tmp_path, "value-norm.yaml")}
    assert "value-norm 16 evict=chunk:8" in policies


def test_a_reward(tmp_path: Path) -> None:
    follow("reward.md", tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("cat\nred fox\n")
    suite = tmp_path / "red.yaml"
    suite.write_text(suite.read_text().replace("PIPELINE", f"path:{tmp_path}/tiny"))
    assert shell("reward.md") == "python -m bench red.yaml\n"
    last = max(measured(tmp_path, "red.yaml"), key=lambda record: record.params["steps"])
    assert last.metrics["eval_redness"].unit == "%"
    assert last.metrics["gain_redness"].value != 0
    assert "redness" in (next((tmp_path / "results" / "red").glob("2*")) / "README.md").read_text()


def test_a_reward_server(tmp_path: Path) -> None:
    follow("reward.md", tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("cat\nred fox\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    suite = tmp_path / "red.yaml"
    text = suite.read_text().replace("PIPELINE", f"path:{tmp_path}/tiny")
    suite.write_text(text.replace("[redness]", f"['http://127.0.0.1:{port}/score']"))
    server = subprocess.Popen(
        [sys.executable, "server.py", str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        last = max(measured(tmp_path, "red.yaml"), key=lambda record: record.params["steps"])
    finally:
        server.terminate()
        server.wait()
    trained = last.metrics["trained_reward"].value
    assert trained is not None
    assert 0 < trained < 255


def test_a_workload_and_its_metrics(tmp_path: Path) -> None:
    follow("workload.md", tmp_path)
    assert shell("workload.md") == "python -m bench sorting.yaml\n"
    records = measured(tmp_path, "sorting.yaml")
    assert len(records) == 4
    assert all(r.metrics["inversions"].value == 0 < r.metrics["sort_ms"].value for r in records)
    assert (next((tmp_path / "results" / "sorting").glob("2*")) / "plots" / "time.png").exists()


def test_own_texts(tmp_path: Path) -> None:
    follow("corpus.md", tmp_path)
    (tmp_path / "books").mkdir()
    for name in "ab":
        (tmp_path / "books" / f"{name}.txt").write_text(TEXT[: len(TEXT) // 2])
    assert shell("corpus.md") == "python -m bench mine.yaml\n"
    records = measured(tmp_path, "mine.yaml")
    assert {record.columns["corpus"].partition(":")[0] for record in records} == {"file", "folder"}


def test_endless_writing(tmp_path: Path) -> None:
    follow("generate.md", tmp_path)
    assert shell("generate.md") == "python -m bench chat.yaml\n"
    records = measured(tmp_path, "chat.yaml")
    assert {record.params["length"] for record in records} == {64, 320}
    run = next((tmp_path / "results" / "chat").glob("2*"))
    assert len(list(run.glob("artifacts/*/text-320.txt"))) == 3
    assert 'id="texts"' in (run / "index.html").read_text(encoding="utf-8")


def test_an_export_format(tmp_path: Path) -> None:
    follow("exporter.md", tmp_path)
    for name, text in blocks("workload.md").items():  # something that can be gated in seconds
        if name != "pyproject.toml":
            (tmp_path / name).write_text(text)
    with (next(tmp_path.glob("*.dist-info")) / "entry_points.txt").open("a") as file:
        file.write("\n[bench.workloads]\nsorting = sorting:Sorting\n")
    for _ in range(2):
        assert bench(tmp_path, "sorting.yaml", "--new").returncode == 0
    first, second = sorted(str(path) for path in (tmp_path / "results" / "sorting").glob("2*"))
    words = shell("exporter.md").split()[3:]
    given = {"smoke": "sorting.yaml", "RUN": first, "OTHER": second}
    done = bench(tmp_path, *(given.get(word, word) for word in words))
    assert done.returncode in (0, 4, 5), done.stdout + done.stderr  # what two sorts took is left to chance
    assert re.fullmatch(r"sorting: .* \(exit code [045]\)\n", (tmp_path / "verdict.txt").read_text())


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_commands_of_a_page_exist(page: str) -> None:
    """Every command that a page shows is one of the command line, with options that it has."""
    helps: dict[str, str] = {}
    for kind, _, text in BLOCK.findall((PAGES / page).read_text(encoding="utf-8")):
        for line in text.splitlines() if kind == "sh" else ():
            if not (
                match := re.match(r"(?:PYTHON=\S+ )?python3? -m bench (\S+)(.*)", line.partition("  #")[0])
            ):
                continue
            command = match[1] if not match[1].endswith((".yaml", ".yml")) else "run"
            if command not in helps:
                done = bench(ROOT, command, "--help")
                assert done.returncode == 0, f"{page}: there is no command {command}"
                helps[command] = done.stdout
            for option in re.findall(r"(?<=\s)--[a-z-]+", match[2]):
                assert option in helps[command], f"{page}: {command} has no option {option}"
            if "--only" in match[2] and "suites/" in match[2]:  # what is named is there
                words = shlex.split(match[2])
                only = words[words.index("--only") + 1]
                suite = next(word for word in words if word.startswith("suites/"))
                assert bench(ROOT, "plan", suite, "--only", only).returncode == 0, f"{page}: --only {only}"


def test_the_pages_are_valid_suites_and_toml() -> None:
    for page in PAGES.glob("*.md"):
        for name, text in blocks(page.name).items():
            if name.endswith(".toml"):
                assert tomllib.loads(text)
            if name.endswith(".py"):
                compile(text, name, "exec")
    assert json.loads((ROOT / "suites" / "schema.json").read_text())
