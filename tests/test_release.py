"""Two builds of the wheel, in folders of their own with files of another age, are the same bytes."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_lock_is_of_the_pins():
    names = [line.partition("==")[::2] for line in (ROOT / "constraints.txt").read_text().split()]
    pins = {name.lower().replace("_", "-"): version for name, version in names}
    lines = (ROOT / "requirements.lock").read_text().splitlines()[1:]
    assert len(lines) > 50
    for line in lines:
        name, version = line.partition(" --hash=sha256:")[0].split("==")
        assert "+" not in version, f"{line}: a build that PyPI does not have"
        assert pins.get(name.replace("_", "-"), version) == version, line


def test_what_this_machines_pip_is_set_to_has_no_say_in_the_lock(monkeypatch):
    told = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT")
    for name in (*told, "PIP_CERT"):
        monkeypatch.setenv(name, "x")
    plain = load()._plain_pip()
    assert not plain.keys() & {*told}
    assert plain["PIP_CERT"] == "x"
    assert plain["PIP_CONFIG_FILE"] == os.devnull


@pytest.mark.parametrize(("version", "taken"), [("2.0", True), ("2.0+cpu", False)])
def test_a_build_that_pypi_does_not_have_is_not_locked(version, taken, monkeypatch, tmp_path):
    release = load()

    def pip(command, **_):
        info = {"hashes": {"sha256": "0" * 64}}
        found = [{"metadata": {"name": "Torch", "version": version}, "download_info": {"archive_info": info}}]
        Path(command[command.index("--report") + 1]).write_text(json.dumps({"install": found}))

    monkeypatch.setattr(release.subprocess, "run", pip)
    if taken:
        assert release.lock(tmp_path).splitlines()[1:] == [f"torch==2.0 --hash=sha256:{'0' * 64}"]
    else:
        with pytest.raises(ValueError, match="is a build that PyPI does not have"):
            release.lock(tmp_path)


def load():
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A small project in git: what makes a wheel differ is not in its size."""
    pytest.importorskip("setuptools", reason="the build backend")
    project = tmp_path / "project"
    for name in ("bench", "ddposink/data"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f'"""{name}."""\n')
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("init", "-q"), ("add", "--all"), ("commit", "-q", "-m", "all")):
        subprocess.run(["git", *who, *words], cwd=project, check=True, capture_output=True)
    return project


def test_two_builds_are_the_same_bytes(checkout, tmp_path, monkeypatch):
    release, found = load(), []
    for number in range(2):
        copy = shutil.copytree(checkout, tmp_path / f"copy{number}")
        for path in copy.rglob("*.py"):
            os.utime(path, (number * 1e8 + 1e9,) * 2)
            path.chmod(0o600 if number else 0o664)
        monkeypatch.setenv("PYTHONHASHSEED", str(number))
        out = tmp_path / f"out{number}"
        out.mkdir()
        found.append(hashlib.sha256(release.build_wheel(out, copy).read_bytes()).hexdigest())
    assert found[0] == found[1]
