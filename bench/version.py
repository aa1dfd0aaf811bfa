"""The version of a workload is its code: a hash over all source that its child process may run.

Covered is the import closure of the workload's own modules and of the child's end of a pass, as far as it
is source of this project or of a plug-in itself; other packages belong to the environment. The closure is
found by parsing and imports nothing. Every import counts, wherever it stands, and so does a string that
names a module (``"package.module"`` or ``"package.module:attribute"``, as registries and ``import_module``
take it). What only a type checker imports does not count.

Trees are hashed, not text: comments, docstrings and layout may change, so that explaining a number never
invalidates it. Nor does changing how numbers are shown or judged: see ``SHOWN``.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.declarations import Metric

PROJECT = ("bench", "ddposink")  # packages that are followed whoever imports them
CHILD = "bench.run.worker"  # what every child runs
# Modules that say how answers are shown and judged. All that a child takes from them are names and units of
# metrics, which are hashed by value.
SHOWN = ("bench.declarations",)

_NAMING = (ast.Import, ast.ImportFrom, ast.Constant)  # what may name a module
_NAMES_A_MODULE = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)+)(?::[\w.]+)?")


def code_version(
    *modules: str,
    shown: Collection[str] = (),
    metrics: Iterable[Metric] = (),
    path: Sequence[str] | None = None,
) -> str:
    """16 hex digits over all that a child may run for a workload; ``code_version(__name__)`` makes one.

    A workload that declares its ``metrics`` in a module of their own may leave that module out as ``shown``.
    ``path`` is searched instead of Python's own.
    """
    code = source_hash(CHILD, *modules, shown=shown, path=path)
    units = sorted((metric.name, metric.unit) for metric in metrics)
    return hashlib.sha256(repr((code, units)).encode()).hexdigest()[:16]


def source_hash(*modules: str, shown: Collection[str] = (), path: Sequence[str] | None = None) -> str:
    """64 hex digits over the source of ``modules`` and of what they import; see `closure`."""
    digest = hashlib.sha256()
    for name, file in sorted(closure(*modules, shown=shown, path=path).items()):
        digest.update(f"{name}\0{_source(file, name).digest}\0".encode())
    return digest.hexdigest()


def closure(*modules: str, shown: Collection[str] = (), path: Sequence[str] | None = None) -> dict[str, Path]:
    """The files of ``modules`` and of all they may import, by module; ``shown`` ones are left out.

    Followed are imports of this project, of the packages of ``modules``, and of what lies beside those.
    Raises ModuleNotFoundError if one of ``modules`` is not there.
    """
    search = _Search(modules, path)
    for name in modules:
        if search.place(name) is None:
            raise ModuleNotFoundError(f"there is no module '{name}'")
    seen, queue = {*SHOWN, *shown}, list(modules)
    found: dict[str, Path] = {}
    while queue:
        for name in _with_parents(queue.pop()):
            if name in seen or not search.followed(name):
                continue
            seen.add(name)
            place = search.place(name)
            if place and place.file:
                found[name] = place.file
                queue += _source(place.file, name).imports
    return found


def find_module(name: str) -> Path | None:
    """The file of a module, found without running any package on the way; None if there is none."""
    place = _Search((), None).place(name)
    return place.file if place else None


@dataclass(frozen=True)
class _Place:
    """Where a module is: its file (none for a namespace) and, for a package, where its modules are."""

    file: Path | None
    folders: tuple[str, ...]


class _Search:
    """Finds modules as Python would, one name after the other, and says which are followed."""

    def __init__(self, modules: Sequence[str], path: Sequence[str] | None) -> None:
        self._path = path
        self._places: dict[str, _Place | None] = {}
        own = {name.partition(".")[0] for name in modules}
        self._tops = dict.fromkeys([*PROJECT, *own], True)
        outer = (self._beside(name) for name in own - {*PROJECT})
        self._folders = {folder for folder in outer if folder and not _is_installation(folder)}

    def place(self, name: str) -> _Place | None:
        """Where the module is, if it is anywhere."""
        if name not in self._places:
            self._places[name] = self._find(name)
        return self._places[name]

    def followed(self, name: str) -> bool:
        """Whether the source of a module counts: it is the project's, a plug-in's, or lies beside that."""
        top = name.partition(".")[0]
        if top not in self._tops:
            near = any((f / top).is_dir() or (f / f"{top}.py").is_file() for f in self._folders)
            self._tops[top] = near and self._beside(top) in self._folders
        return self._tops[top]

    def _find(self, name: str) -> _Place | None:
        parent, _, last = name.rpartition(".")
        if parent:
            package = self.place(parent)
            spec = PathFinder.find_spec(last, list(package.folders)) if package else None
        else:
            spec = PathFinder.find_spec(name, self._path)
            if spec is None and self._path is None:
                spec = _spec_of_editable(name)
        if spec is None:
            return None
        file = Path(spec.origin) if spec.has_location and spec.origin else None
        return _Place(file, tuple(spec.submodule_search_locations or ()))

    def _beside(self, top: str) -> Path | None:
        """The folder that holds a top-level module or package."""
        place = self.place(top)
        inside = (place.folders[0] if place.folders else place.file) if place else None
        return Path(inside).parent if inside else None


@dataclass(frozen=True)
class _Source:
    """What counts of a file: the digest of its syntax tree, and the modules that it may import."""

    digest: str
    imports: frozenset[str]


def _source(file: Path, name: str) -> _Source:
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    return _parsed(file.read_bytes(), package)


@lru_cache(maxsize=1024)
def _parsed(content: bytes, package: str) -> _Source:
    """Parse a module of ``package``, once a process; what cannot be parsed counts as it stands."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a compiled module, or source for another Python
        return _Source(hashlib.sha256(content).hexdigest(), frozenset())
    reader = _Reader(package)
    reader.read(tree)
    return _Source(hashlib.sha256("\0".join(reader.text).encode()).hexdigest(), frozenset(reader.imports))


class _Reader:
    """Goes through a syntax tree once; `ast.dump` and `ast.walk` would take three times as long."""

    def __init__(self, package: str) -> None:
        self.text: list[str] = []  # what the tree says, without docstrings and places
        self.imports: set[str] = set()  # names that may be modules
        self._package = package

    def read(self, node: ast.AST) -> None:
        """Take in a node and all below it."""
        if isinstance(node, _NAMING):
            self.imports.update(_imported(node, self._package))
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            node.body = []
        self.text += (type(node).__name__, "(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or name == "ctx":  # the context follows from the place
                continue
            self.text.append(name)
            if isinstance(value, ast.AST):
                self.read(value)
            elif isinstance(value, list):
                self._read_list(value[1:] if name == "body" and _is_docstring(value[:1]) else value)
            else:
                self.text.append(repr(value))
        self.text.append(")")

    def _read_list(self, values: list[ast.AST | str | None]) -> None:
        self.text.append("[")
        for value in values:
            if isinstance(value, ast.AST):
                self.read(value)
            else:
                self.text.append(repr(value))
        self.text.append("]")


def _imported(node: ast.Import | ast.ImportFrom | ast.Constant, package: str) -> Iterator[str]:
    """Names of modules in an import or a string; what is imported from a module may be one, too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        relative = "." * node.level + (node.module or "")
        try:
            base = resolve_name(relative, package)
        except ImportError:  # it leaves the package and would fail
            return
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node.value, str) and (named := _NAMES_A_MODULE.fullmatch(node.value)):
        yield named[1]


def _is_docstring(first: list[ast.AST]) -> bool:
    statement = first[0] if first else None
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_type_checking(test: ast.AST) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _with_parents(name: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``: whoever imports the last runs them all."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _spec_of_editable(name: str) -> ModuleSpec | None:
    """Find a top-level module that is not on the path: an editable installation has a finder of its own."""
    try:
        return find_spec(name)
    except ValueError:  # a module that was not imported as one, such as __main__
        return None


def _is_installation(folder: Path) -> bool:
    """Whether everything anybody has installed lies there side by side."""
    places = {Path(place) for place in sysconfig.get_paths().values()}
    return folder in places or folder.name in ("site-packages", "dist-packages")
