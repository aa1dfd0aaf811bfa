"""The code of a git ref, ready to run: a worktree in a temporary folder and packages to go with it.

Building an environment takes minutes and is rarely needed: as long as what is installed here is what the
ref asks for (its dependencies and constraints), it runs on that, only its own source in front. If it
asks for other versions, an environment of its own is built.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from bench.errors import UserError, did_you_mean
from bench.gate.commits import TREE, base_commit, commit_of, worktree
from bench.gate.pairs import Tree

PYPROJECT, CONSTRAINTS = "pyproject.toml", "constraints.txt"
BUILD_SECONDS = 3600


@contextmanager
def checked_out(
    ref: str, root: Path, extras: Sequence[str] = (), *, tip: bool = False, results: Path | None = None
) -> Iterator[Tree]:
    """A tree of the code that HEAD's changes to ``ref`` began from; ``tip``: of ``ref`` itself.

    Everything made for it is removed in the end; ``results`` are for: see `commits.worktree`.
    """
    commit, name = base_commit(ref, root, tip=tip)
    with worktree(root, commit, results) as place:
        path = place / TREE
        wanted = needs(path, ref)
        if extras:
            _check_extras(extras, wanted.extras.keys() | needs(root, "the working tree").extras.keys())
        yield _with_packages(name, path, place, wanted, extras)


@contextmanager
def elsewhere(tree: Tree, root: Path) -> Iterator[Tree]:
    """The same code and packages at another path."""
    assert tree.path is not None
    with worktree(root, commit_of("HEAD", tree.path)) as place:
        yield replace(tree, path=place / TREE)


@dataclass(frozen=True)
class Needs:
    """What a tree asks to be installed."""

    python: str | None
    dependencies: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]
    pins: Mapping[str, str]  # of constraints.txt: normalised name → version


def needs(tree: Path, name: str = "that ref") -> Needs:
    """Read pyproject.toml and constraints.txt of a tree; empty where there is none. Raises UserError."""
    project: dict[str, Any] = {}
    try:
        if (tree / PYPROJECT).exists():
            project = tomllib.loads((tree / PYPROJECT).read_text(encoding="utf-8")).get("project", {})
        pinned = (tree / CONSTRAINTS).read_text(encoding="utf-8") if (tree / CONSTRAINTS).exists() else ""
    except ValueError as error:
        raise _unreadable(name, error) from error
    pins = (line.partition("#")[0].strip().partition("==") for line in pinned.splitlines())
    found = Needs(
        project.get("requires-python"),
        tuple(project.get("dependencies", ())),
        {name: tuple(found) for name, found in project.get("optional-dependencies", {}).items()},
        {canonicalize_name(name.strip()): version.strip() for name, equal, version in pins if equal},
    )
    try:
        for text in (*found.dependencies, *(text for texts in found.extras.values() for text in texts)):
            Requirement(text)
        SpecifierSet(found.python or "")
    except (InvalidRequirement, InvalidSpecifier) as error:
        raise _unreadable(name, error) from error
    return found


def _unreadable(name: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:300]
    return UserError(
        f"{PYPROJECT} or {CONSTRAINTS} of {name} cannot be read: {said}",
        hint="mend it there, or give another ref",
    )


def _check_extras(extras: Sequence[str], known: Iterable[str]) -> None:
    for extra in extras:
        if extra not in known:
            raise UserError(
                f"--extras {extra}: {PYPROJECT} has no such extra", hint=did_you_mean(extra, known)
            )


def unmet(wanted: Needs, extras: Sequence[str] = ()) -> list[str]:
    """What the packages installed here lack for a tree, e.g. ``torch 2.12.0 (here 2.13.0)``.

    Looks at its dependencies and all that these need in turn, not at pins of anything else (linters).
    """
    missing = []
    if wanted.python and not SpecifierSet(wanted.python).contains(platform.python_version()):
        missing.append(f"Python {wanted.python} (here {platform.python_version()})")
    left = [*wanted.dependencies, *(text for extra in extras for text in wanted.extras.get(extra, ()))]
    seen: set[str] = set()
    while left:
        requirement = Requirement(left.pop())
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.append(f"{requirement} (not here)")
            continue
        pin = wanted.pins.get(name)
        asked = SpecifierSet(f"=={pin}") if pin else requirement.specifier
        if not asked.contains(found.version, prereleases=True):
            missing.append(f"{name} {pin or requirement.specifier} (here {found.version})")
        if name not in seen:
            seen.add(name)
            left += found.requires or []
    return sorted(set(missing))


def _with_packages(name: str, path: Path, place: Path, wanted: Needs, extras: Sequence[str]) -> Tree:
    here = platform.python_version()
    if wanted.python and not SpecifierSet(wanted.python).contains(here):
        raise UserError(
            f"{name} cannot be built: it asks for Python {wanted.python}, this is {here}",
            hint="run the gate with a Python that both sides support, or use --baseline RUN",
        )
    lacking = unmet(wanted, extras)
    if not lacking:
        return Tree(name, path, prepared="the packages installed here, which are those it asks for")
    listed = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
    python = _build(path, place / "venv", wanted, extras, name)
    return Tree(name, path, python, prepared=f"an environment of its own, for it asks for {listed}")


def _build(tree: Path, place: Path, wanted: Needs, extras: Sequence[str], name: str) -> Path:
    """A virtual environment with what the tree depends on; its own source is not installed."""
    try:
        venv.create(place, with_pip=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise _not_built(name, f"no virtual environment can be made here: {error}") from error
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    packages = [*wanted.dependencies, *(text for extra in extras for text in wanted.extras.get(extra, ()))]
    if packages:
        pins = ["-c", CONSTRAINTS] if (tree / CONSTRAINTS).exists() else []
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
        try:
            done = subprocess.run(
                [*command, *packages],
                cwd=tree,
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _not_built(name, f"pip took more than {BUILD_SECONDS} seconds") from error
        if done.returncode:
            raise _not_built(name, _complaint(done))
    return python


def _complaint(pip: subprocess.CompletedProcess[str]) -> str:
    """Why pip gave up, in a line of its own that says more than that it did."""
    said = [line.removeprefix("ERROR: ") for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
    told = [line for line in said if not line.startswith("ResolutionImpossible")]
    return told[-1] if told else f"pip ended with code {pip.returncode}"


def _not_built(name: str, reason: str) -> UserError:
    hint = "give a ref whose dependencies can be installed here, or use --baseline RUN"
    return UserError(f"{name} cannot be built: {reason}", hint=hint)
