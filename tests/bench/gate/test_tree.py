"""What a git ref needs installed, and whether it is here; refs in worktrees are tried in test_gate_cli."""

import subprocess
from importlib import metadata

import pytest

from bench.errors import UserError
from bench.gate.commits import base_commit, toplevel
from bench.gate.tree import _complaint, checked_out, needs, unmet

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


@pytest.mark.parametrize(
    ("project", "told"),
    [
        ({"dependencies": ["!!no name"]}, "Expected package name"),
        ({"python": "three"}, "Invalid specifier: 'three'"),
        ({"extras": {"gpu": ["a b"]}}, "Expected semicolon"),
    ],
)
def test_needs_that_nobody_can_read_are_refused(tmp_path, project, told):
    with pytest.raises(UserError, match=told) as caught:
        tree(tmp_path, **project)
    assert "\n" not in caught.value.message


def test_a_ref_that_needs_another_python_or_a_misspelt_extra_is_not_built(tmp_path):
    def checked(*extras):
        with checked_out("HEAD", tmp_path, extras) as found:
            return found

    def commit():
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "x")):
            subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)

    tree(tmp_path, extras={"ddpo": ["packaging"]})
    commit()
    assert "packages installed here" in checked("ddpo").prepared
    with pytest.raises(UserError, match=r"--extras dppo: .* has no such extra\n  hint: did you mean 'ddpo'"):
        checked("dppo")
    tree(tmp_path, python=">=99")
    commit()
    with pytest.raises(UserError, match=r"cannot be built: it asks for Python >=99, this is 3"):
        checked()


def test_pip_is_quoted_with_the_line_that_says_why():
    def said(*lines):
        return _complaint(subprocess.CompletedProcess([], 1, "", "\n".join(lines)))

    conflict = "ERROR: Cannot install a and b because these have conflicting dependencies."
    assert said("noise", conflict, "ERROR: ResolutionImpossible: for help visit X") == conflict[7:]
    assert said("noise") == "pip ended with code 1"


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


def test_a_base_is_where_head_left_the_ref(tmp_path):
    git = repository(tmp_path / "whole")
    git("checkout", "--quiet", "-b", "topic")
    git("commit", "--quiet", "--allow-empty", "--message", "topic")
    began = git("rev-parse", "main").strip()
    git("checkout", "--quiet", "main")
    git("commit", "--quiet", "--allow-empty", "--message", "newer")
    newest = git("rev-parse", "main").strip()
    git("checkout", "--quiet", "topic")
    place = tmp_path / "whole"
    assert base_commit("main", place) == (began, f"merge base of main and HEAD ({began[:10]})")
    assert base_commit("main", place, tip=True) == (newest, f"main ({newest[:10]})")
    assert base_commit("topic~1", place) == (began, f"topic~1 ({began[:10]})")


def test_without_a_common_commit_there_is_one_clear_error(tmp_path):
    git = repository(tmp_path / "whole")
    git("checkout", "--quiet", "--orphan", "island")
    git("commit", "--quiet", "--allow-empty", "--message", "other history")
    told = r"^main and HEAD have no commit in common that is known here\n  hint: --against-tip main"
    with pytest.raises(UserError, match=told):
        base_commit("main", tmp_path / "whole")
    git("checkout", "--quiet", "main")
    git("checkout", "--quiet", "-b", "topic")
    git("commit", "--quiet", "--allow-empty", "--message", "topic")
    shallow = tmp_path / "shallow"
    git("clone", "--quiet", "--depth", "1", "--no-single-branch", f"file://{tmp_path}/whole", str(shallow))
    told = r"no commit in common .*\n.*git fetch --unshallow; in CI, fetch-depth: 0"
    with pytest.raises(UserError, match=told):
        base_commit("origin/main", shallow)
    with pytest.raises(UserError, match=r"git knows no commit 'nowhere'\n.*this checkout is shallow"):
        base_commit("nowhere", shallow)


def repository(folder):
    """A repository with one commit on main, and git to work in it."""

    def git(*words):
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        done = subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout

    folder.mkdir()
    git("init", "--quiet", "--initial-branch", "main")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    return git
