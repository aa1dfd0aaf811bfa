"""What a git ref needs installed, and whether it is here; refs in worktrees are tried in test_gate_cli."""

import subprocess
from importlib import metadata

import pytest

from bench.errors import UserError
from bench.gate_tree import checked_out, needs, toplevel, unmet

HERE = metadata.version("packaging")


def tree(folder, dependencies=(), pins=(), python=None, extras=None):
    project = {"dependencies": list(dependencies)} | ({"requires-python": python} if python else {})
    lines = ["[project]", 'name = "x"', *(f"{key} = {value!r}" for key, value in project.items())]
    if extras:
        lines += ["[project.optional-dependencies]", *(f"{k} = {v!r}" for k, v in extras.items())]
    (folder / "pyproject.toml").write_text("\n".join(lines))
    (folder / "constraints.txt").write_text("\n".join(pins))
    return needs(folder)


def test_what_is_installed_is_enough_if_it_is_what_is_asked_for(tmp_path):
    assert unmet(tree(tmp_path, ["packaging>=20"])) == []
    assert unmet(tree(tmp_path, ["packaging"], [f"packaging=={HERE}"])) == []
    assert unmet(tree(tmp_path)) == []


def test_other_versions_are_named(tmp_path):
    assert unmet(tree(tmp_path, ["packaging<20"])) == [f"packaging <20 (here {HERE})"]
    assert unmet(tree(tmp_path, ["packaging"], ["Packaging==20.0 # old"])) == [
        f"packaging 20.0 (here {HERE})"
    ]
    assert unmet(tree(tmp_path, ["no-such-thing>=1"])) == ["no-such-thing>=1 (not here)"]
    (told,) = unmet(tree(tmp_path, python=">=99"))
    assert told.startswith("Python >=99 (here 3.")


def test_pins_of_what_a_dependency_needs_count_those_of_linters_do_not(tmp_path):
    assert unmet(tree(tmp_path, ["rich"], ["ruff==0.0.1"])) == []
    (told,) = unmet(tree(tmp_path, ["rich"], ["pygments==1.0"]))  # rich needs it
    assert told.startswith("pygments 1.0 (here ")


def test_extras_and_markers_count_only_where_they_apply(tmp_path):
    asked = tree(tmp_path, ['no-such-thing; python_version < "3"'], extras={"gpu": ["no-such-gpu"]})
    assert unmet(asked) == []
    assert unmet(asked, ["gpu"]) == ["no-such-gpu (not here)"]


def test_a_tree_without_a_project_needs_nothing(tmp_path):
    assert unmet(needs(tmp_path)) == []
    (tmp_path / "pyproject.toml").write_text("[project")
    with pytest.raises(UserError, match=r"pyproject.toml or constraints.txt of that ref cannot be read"):
        needs(tmp_path)


def test_a_ref_is_checked_out_and_removed_again(tmp_path):
    def git(*words):
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "--quiet", "--initial-branch", "main")
    (tmp_path / "code.py").write_text("old")
    git("add", "--all")
    git("commit", "--quiet", "--message", "old")
    (tmp_path / "code.py").write_text("new")
    assert toplevel(tmp_path / ".") == tmp_path.resolve()
    with checked_out("main", tmp_path) as found:
        assert (found.path / "code.py").read_text() == "old"
        assert found.name.startswith("main (")
        place = found.path
    assert not place.exists()
    assert len(git("worktree", "list").splitlines()) == 1
    assert (tmp_path / "code.py").read_text() == "new"
