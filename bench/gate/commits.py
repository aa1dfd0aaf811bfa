"""Which commit a gate measures as its base, and a worktree of it.

A branch is judged by what it changes. If its target has moved on since, the target's newer commits are not
among that: measured against the tip, a branch that touches no code would have "lost" every improvement made
there. So the base is the merge base, unless the tip is asked for.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.errors import UserError

TREE = "tree"  # the worktree in its temporary folder
_SHALLOW = "this checkout is shallow: fetch its history (git fetch --unshallow; in CI, fetch-depth: 0)"


def toplevel(place: Path) -> Path:
    """Root of the git checkout that contains ``place``. Raises UserError outside of one."""
    found = _git(place, "rev-parse", "--show-toplevel")
    if found is None:
        raise UserError(
            f"{place} is not in a git checkout", hint="--against needs one; or use --baseline RUN"
        )
    return Path(found)


def base_commit(ref: str, root: Path, *, tip: bool = False) -> tuple[str, str]:
    """The commit to measure for ``ref``, and what to call it. Raises UserError if there is none.

    That is the merge base of ``ref`` and HEAD; ``tip``: the commit of ``ref`` itself.
    """
    newest = commit_of(ref, root)
    if tip:
        return newest, f"{ref} ({newest[:10]})"
    found = _git(root, "merge-base", newest, "HEAD")
    if not found:
        least = f"--against-tip {ref} compares with that ref as it is"
        hint = f"{_SHALLOW}; {least}" if _shallow(root) else least
        raise UserError(f"{ref} and HEAD have no commit in common that is known here", hint=hint)
    name = ref if found == newest else f"merge base of {ref} and HEAD"
    return found, f"{name} ({found[:10]})"


def commit_of(ref: str, root: Path) -> str:
    """The commit that a ref names. Raises UserError if git knows none."""
    plain = not ref.startswith("-")
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}") if plain else None
    if commit is None:
        near = (_git(root, "branch", "--all", "--format=%(refname:short)") or "").split()
        hint = f"branches: {', '.join(near[:8])}" if near else "give a branch, tag or commit"
        if _shallow(root):
            hint += f"; {_SHALLOW}"
        raise UserError(f"git knows no commit {ref!r}", hint=hint)
    return commit


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """A temporary folder in which `TREE` is a worktree of a commit; both are removed in the end."""
    with TemporaryDirectory(prefix="bench-gate-") as place:
        path = Path(place) / TREE
        _git_or_fail(root, "worktree", "add", "--detach", "--quiet", str(path), commit)
        try:
            yield Path(place)
        finally:
            _git(root, "worktree", "remove", "--force", str(path))


def _shallow(root: Path) -> bool:
    return _git(root, "rev-parse", "--is-shallow-repository") == "true"


def _git(root: Path, *words: str) -> str | None:
    """What git prints, or None if it refuses."""
    done = _run_git(root, *words)
    return done.stdout.strip() if done.returncode == 0 else None


def _git_or_fail(root: Path, *words: str) -> None:
    done = _run_git(root, *words)
    if done.returncode:
        raise UserError(f"git {words[0]} {words[1]} failed: {' '.join(done.stderr.split())[-300:]}")


def _run_git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"git cannot be run: {error}", hint="install git, or use --baseline RUN") from error
