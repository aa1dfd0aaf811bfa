"""tools/gpu_evidence.sh, all of it that a machine without a GPU can go through."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.suite.request import Options, prepare

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "gpu_evidence.sh"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: it would measure")


def script(*words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    # Its own pytest is no worker of ours, and would refuse to measure as one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHON": python}
    return subprocess.run(
        ["bash", str(SCRIPT), *words], env=env, capture_output=True, text=True, timeout=500, check=False
    )


def parts() -> list[str]:
    return script("parts").stdout.split()


def test_help_and_mistakes() -> None:
    assert "collect" in script("--help").stdout
    assert script("--help").returncode == script().returncode == 0
    for words, message in (
        (["run", "memory-7b"], "unknown part 'memory-7b'; parts: tests "),
        (["fly"], "unknown command 'fly'"),
        (["run", "--fast"], "unknown option --fast"),
        (["run", "--seconds", "soon"], "--seconds should be a number of seconds, not 'soon'"),
        (["run", "--out"], "--out needs a value"),
        (["pack", "--out", "/nowhere"], "there is no folder /nowhere: run something first"),
        (["install", "--wheels", "/nowhere"], "there is no folder /nowhere"),
    ):
        ended = script(*words)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"gpu_evidence: {message}"), ended.stderr


@pytest.mark.parametrize(("suite", "prefix"), [("gpu-memory", "memory-"), ("gpu-ddpo", "ddpo-")])
def test_the_parts_of_a_suite_are_all_its_cells_and_none_twice(
    suite: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    labels = [cell.label for cell in prepare(Options(suite=Path(f"suites/{suite}.yaml"))).cells]
    text = SCRIPT.read_text(encoding="utf-8")
    patterns = {
        part: f"{part.removeprefix('memory-')}*"
        if prefix == "memory-"
        else re.search(rf"{part}\) .*--only '(.*)'", text)[1]
        for part in parts()
        if part.startswith(prefix)
    }
    for label in labels:
        answering = [part for part, glob in patterns.items() if fnmatchcase(label, glob)]
        assert len(answering) == 1, (label, answering)


@without_gpu
def test_without_cuda_it_refuses_unless_told(tmp_path: Path) -> None:
    ended = script("run", "--out", str(tmp_path))
    assert ended.returncode == 2
    assert "sees no CUDA device; --cpu goes through it all without one" in ended.stderr


@without_gpu
def test_the_flow_ends_with_everything_skipped_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    chosen = ["tests", "bench-smollm2-135m", "memory-smollm2-135m", "page"]
    ended = script("run", *chosen, "--cpu", "--out", str(out))
    logs = {log.stem: log.read_text() for log in (out / "logs").iterdir()}
    assert ended.returncode == 0, (ended.stdout, ended.stderr, logs)
    assert "needs a CUDA device" in logs["tests"]
    assert "skipped" in logs["bench-smollm2-135m"]
    (records,) = out.glob("results/gpu-memory/*/records.jsonl")
    answers = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(answers) == 21
    assert {answer["status"] for answer in answers} == {"skipped"}
    assert (records.parent / "index.html").stat().st_size > 10_000
    status = script("status", "--out", str(out)).stdout.splitlines()
    assert {line.split()[1] for line in status if line.startswith("done")} == set(chosen)

    (records.parent / "artifacts" / "cell").mkdir(parents=True)
    (records.parent / "artifacts" / "cell" / "weights").touch()
    assert script("pack", "--out", str(out)).returncode == 0
    with tarfile.open(tmp_path / "evidence.tgz") as packed:
        names = packed.getnames()
    assert f"./{records.relative_to(out)}" in names
    assert not any("artifacts" in name for name in names)

    more = script("run", "memory-mistral-7b", "--cpu", "--out", str(out))
    assert more.returncode == 0
    (records,) = out.glob("results/gpu-memory/*/records.jsonl")  # parts of a suite meet in one run
    assert len(records.read_text().splitlines()) == 21 + 18


@without_gpu
def test_a_part_that_runs_out_of_time_is_not_done(tmp_path: Path) -> None:
    ended = script("run", "tests", "--cpu", "--seconds", "1", "--out", str(tmp_path))
    assert ended.returncode == 75
    assert "run it again to go on" in ended.stdout
    assert "begun    tests" in script("status", "--out", str(tmp_path)).stdout


@without_gpu
def test_the_headline_is_rehearsed_on_small_shapes(tmp_path: Path) -> None:
    """The very commands of a GPU: every step leaves what it measured, and why it could not the rest."""
    ended = script("headline", "--shapes", "tiny", "--cpu", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {path.name for path in (tmp_path / "done").iterdir()} == {
        f"headline-{step}" for step in ("tests", "rates", "decode", "exact", "ddpo")
    }
    found = json.loads((tmp_path / "summary.json").read_text())
    named: dict[str, list[Any]] = {}
    for one in found:
        assert (one["value"] is None) == bool(one.get("reason")) or "cell" in one, one
        named.setdefault(one["name"], []).append(one)
    rates = "copy_rate exact_times_token_by_token library_dense_decode_ms fraction_of_copy_bandwidth"
    for name in rates.split():
        assert all(one["value"] > 0 for one in named[name]), name
    assert named["exact_mean_nll_difference_to_decode"][0]["value"] < 1e-3
    assert {one["engine"] for one in named["ddpo_samples_per_s"] if one["value"] > 0} == {"native", "trl"}
    assert len(named["latency_median_ms"]) == 6
    assert all(one["reason"] for one in named["nvml_process_bytes"] + named["energy_per_token_j"])
    assert all(one["value"] is None for one in named["ddpo_peak_bytes"])
    assert "fraction_of_copy_bandwidth" in (tmp_path / "summary.md").read_text()


def test_the_headline_ends_within_eight_minutes() -> None:
    text = SCRIPT.read_text()
    assert len(re.findall(r"headline-\w+:(\d+)", text)) == 5
    (deadline,) = re.findall(r"DEADLINE=(\d+)", text)
    assert int(deadline) + 5 <= 8 * 60  # whatever the steps add up to
    assert '[ "$limit" -le "$left" ] || limit=$left' in text


def test_a_step_that_fails_leaves_a_reason_and_the_next_goes_on(tmp_path: Path) -> None:
    tool = [sys.executable, str(SCRIPT.with_name("gpu_headline.py"))]
    words = ["ddpo", "--out", str(tmp_path), "--device", "cpu", "--pipeline", "path:/nowhere"]
    subprocess.run([*tool, *words], check=False, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "headline-ddpo.jsonl").read_text().splitlines()]
    failed = [line for line in lines if line["name"] == "ddpo_samples_per_s"]
    assert [line["engine"] for line in failed] == ["native", "trl"]
    assert all(line["value"] is None and "nowhere" in line["reason"] for line in failed)
    subprocess.run([*tool, "summary", "--out", str(tmp_path)], check=True)
    assert "nowhere" in (tmp_path / "summary.md").read_text()


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A python that writes down what it is asked to do, and makes environments whose python is itself."""
    stub = tmp_path / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >> {tmp_path}/asked\n'
        "for last; do :; done\n"
        'if [ "$2" = venv ]; then mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; fi\n'
    )
    stub.chmod(0o755)
    return stub


def asked(folder: Path) -> str:
    return (folder / "asked").read_text()


def test_collect_downloads_the_lock_and_a_torch_for_cuda(tmp_path: Path, recorder: Path) -> None:
    wheels = tmp_path / "wheels"
    words = ["collect", "--wheels", str(wheels), "--python", "3.12"]
    ended = script(*words, "--cuda", "cu130", python=str(recorder))
    assert ended.returncode == 0, ended.stderr
    torch_line, lock_line, tool_line = asked(tmp_path).splitlines()
    assert "torch==2.13.0+cu130" in torch_line
    assert "--extra-index-url https://download.pytorch.org/whl/cu130" in torch_line
    assert "--no-deps --requirement" in lock_line
    assert "--python-version 3.12" in lock_line
    assert "setuptools" in tool_line
    (tmp_path / "asked").unlink()
    assert script(*words, "--no-torch", python=str(recorder)).returncode == 0
    assert "torch==" not in asked(tmp_path)
    (wheels / "torch-2.13.0+cpu-cp311-none-linux_x86_64.whl").touch()
    ended = script(*words, python=str(recorder))
    assert "has torch for CPUs only" in ended.stderr


def test_install_asks_no_index(tmp_path: Path, recorder: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    words = ["install", "--system", "--wheels", str(wheels), "--venv", str(tmp_path / "venv")]
    ended = script(*words, python=str(recorder))
    assert ended.returncode == 0, ended.stderr
    first, *installs, last = asked(tmp_path).splitlines()
    assert first.startswith("-m venv --system-site-packages")
    assert len(installs) == 2
    assert all(f"--no-index --find-links {wheels}" in line for line in installs)
    assert "torch.cuda.is_available" in last


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
