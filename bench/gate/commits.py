"""Which commit a gate measures as its base, and a worktree of it.

A branch is judged by what it changes. If its target has moved on since, the target's newer commits are not
among that: measured against the tip, a branch that touches no code would have "lost" every improvement made
there. So the base is the merge base, unless the tip is asked for.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import temporary
from bench.errors import UserError
from bench.results.environment import git_environment
from bench.results.store import RECORDS

TREE = "tree"  # the worktree in its temporary folder
VERDICT = "verdict.json"
_KIND = "gate"
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
def worktree(root: Path, commit: str, results: Path | None = None) -> Iterator[Path]:
    """A temporary folder in which `TREE` is a worktree of a commit; both are removed in the end.

    If this process is killed, `tidy` of a later one removes them, and ``results`` if nothing is in it.
    """
    note = {"root": str(root.resolve()), "results": str(results.resolve()) if results else None}
    folder = temporary.own(_KIND, note)
    path = folder.path / TREE
    try:
        _git_or_fail(root, "worktree", "add", "--detach", "--quiet", str(path), commit)
        try:
            yield folder.path
        finally:
            _git(root, "worktree", "remove", "--force", str(path))
    finally:
        folder.remove()


def tidy() -> int:
    """Remove what gates that are gone have left behind, and only that; how many there were."""
    return temporary.tidy(_KIND, _take_back)


def _take_back(place: Path, note: Mapping[str, Any]) -> None:
    """What git knows of the worktree in ``place``, and a folder of results in which there are none."""
    root, results = Path(note["root"]), note.get("results")
    known = _git(root, "rev-parse", "--git-common-dir") if root.is_dir() else None
    for entry in (root / known / "worktrees").glob("*/gitdir") if known else ():
        with suppress(OSError):
            if Path(entry.read_text().strip()).is_relative_to(place.resolve()):
                shutil.rmtree(entry.parent)
    if results and not _holds_results(Path(results)):
        shutil.rmtree(results, ignore_errors=True)


def _holds_results(folder: Path) -> bool:
    found = [folder / VERDICT, *folder.glob(f"**/{RECORDS}")]
    return any(path.is_file() and path.stat().st_size for path in found)


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
        return subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            check=False,
            env=git_environment(),
        )
    except OSError as error:
        raise UserError(f"git cannot be run: {error}", hint="install git, or use --baseline RUN") from error
