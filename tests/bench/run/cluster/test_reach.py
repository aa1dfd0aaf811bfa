"""A cluster that cannot be had is one clear sentence, in bounded time, before anything is written."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import UserError

ROOT = Path(__file__).parents[4]
WITHOUT_RAY = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "ray" else found(name, *rest)
from bench.cli import main
main()
"""


def bench(folder, *words, code="from bench.cli import main; main()"):
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, "run", str(ROOT / "suites" / "smoke.yaml"), *words]
    done = subprocess.run(
        command, cwd=folder, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (folder / "results").exists()
    return done.stderr


def test_without_ray(tmp_path):
    said = bench(tmp_path, "--launcher", "ray", code=WITHOUT_RAY)
    assert said.splitlines() == [
        "error: --launcher ray needs Ray, which is not installed",
        "  hint: pip install 'ddposink[ray]'",
    ]


def test_an_address_without_a_cluster_to_use_it(tmp_path):
    assert "--address is of a cluster" in bench(tmp_path, "--address", "10.0.0.1:6379")


def test_an_unknown_launcher_is_told_with_those_there_are(tmp_path):
    said = bench(tmp_path, "--launcher", "kubernetes")
    for name in ("local", "ray", "slurm"):
        assert f"'{name}'" in said


def test_nobody_at_the_address(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
    with socket.socket() as found:  # bound, but nobody listens
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
        said = bench(tmp_path, "--launcher", "ray", "--address", address)
    assert said.startswith(f"error: no cluster answers at {address}: ")
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("address", ["somewhere", "ray://head:10001", "head:", "head:0", "head:99999", ""])
def test_what_is_no_address(address):
    site = pytest.importorskip("bench.run.cluster.site", reason="ray is not installed", exc_type=ImportError)
    with pytest.raises(UserError, match="is not the address of a cluster"):
        site.check_answers(address)


def test_somebody_else_at_the_address(monkeypatch):
    site = pytest.importorskip("bench.run.cluster.site", reason="ray is not installed", exc_type=ImportError)
    monkeypatch.setattr(site, "CONNECT_SECONDS", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no cluster can be used at {address}: ") as caught:
            site.check_answers(address)
    assert "ray start" in str(caught.value.hint)
