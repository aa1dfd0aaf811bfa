"""How threads wait is decided once, for all children, and is part of the fingerprint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.results.environment import comparable, fingerprint
from bench.waiting import DECIDED_BY, waiting_variables

CHILD = """
import json, os, sys
from pathlib import Path
from bench.run.launch import LocalLauncher
launcher = LocalLauncher(("json",), Path(sys.argv[1]))
launcher.await_ready()
say = "echo policy=$OMP_WAIT_POLICY,$GOMP_SPINCOUNT > " + sys.argv[2]
child = launcher._context.Process(target=os.system, args=(say,))
child.start()
child.join()
"""


def test_a_user_who_has_decided_is_not_overruled() -> None:
    assert waiting_variables({"HOME": "/"}) == {"OMP_WAIT_POLICY": "PASSIVE"}
    for name in DECIDED_BY:
        assert waiting_variables({name: "ACTIVE"}) == {}


def test_the_fingerprint_says_how_children_will_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DECIDED_BY:
        monkeypatch.delenv(name, raising=False)
    passive = fingerprint()
    assert passive["threads"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ  # asking changes nothing
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    active = fingerprint()
    assert comparable(passive, active) == ["threads.OMP_WAIT_POLICY"]
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert fingerprint()["threads"].get("GOMP_SPINCOUNT") == "1000"


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "policy=PASSIVE,"), ({"OMP_WAIT_POLICY": "active"}, "policy=active,")]
)
def test_children_wait_so(given: dict[str, str], seen: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in DECIDED_BY} | given
    words = [str(tmp_path / "log"), str(tmp_path / "said")]
    subprocess.run([sys.executable, "-c", CHILD, *words], env=environment, check=True, timeout=60)
    assert (tmp_path / "said").read_text().strip() == seen
