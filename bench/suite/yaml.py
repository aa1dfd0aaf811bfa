"""YAML in which every value and key knows its line and column, and in which nothing can go off.

Built on the events of PyYAML's safe loader rather than on its objects: a tag is refused before
anything could be constructed from it, nesting and alias expansion are counted while they happen
(a "YAML bomb" ends early), and duplicate keys are noticed instead of silently overwritten. Scalars
follow YAML 1.2, as editors do: ``no``, ``off`` and ``1:30`` are words, ``1e-3`` is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import yaml

from bench.errors import UserError, raise_any

MAX_BYTES = 256 * 1024
MAX_NODES = 50_000  # with aliases expanded
MAX_DEPTH = 32

KeyPath = Sequence[str | int]

DIGITS = r"[0-9]+(?:_[0-9]+)*"  # underscores part digits; anything else that holds one is a word
_INT = re.compile(rf"[-+]?{DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(rf"[-+]?(\.[0-9]+|{DIGITS}(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
MAX_DIGITS = 400  # in a row, in whatever may be taken for a number later
_TOO_LONG = re.compile(rf"[0-9_]{{{MAX_DIGITS + 1}}}")
_HALF = re.compile(r"[\ud800-\udfff]")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None} | {
    spelling: value
    for word, value in {"null": None, "true": True, "false": False}.items()
    for spelling in (word, word.capitalize(), word.upper())
}
_QUOTE = """text that begins with one of > ! * & % @ ` | must be quoted, e.g. ">32768" """.strip()


class SourceMark(NamedTuple):
    """A place in the file, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place. ``value`` is a scalar, a list of nodes, or a dict of nodes by key."""

    value: Any
    mark: SourceMark
    keys: Mapping[str, SourceMark] = field(default_factory=dict)
    size: int = 1  # nodes in it, aliases expanded

    def plain(self) -> Any:
        """The value as plain data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """The value under a key or index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None


@dataclass(frozen=True)
class YamlSource:
    """A parsed file: tells where things are in it."""

    name: str
    root: Node

    def where(self, path: KeyPath, *, key: bool = False) -> str:
        """``file:line:column`` of the value at ``path`` (of its key: ``key=True``).

        Follows the path as far as the file does, so a missing key is placed at its parent.
        """
        node, mark = self.root, self.root.mark
        for step in path:
            child = node.child(step)
            if child is None:
                break
            mark = node.keys.get(str(step), child.mark) if key else child.mark
            node = child
        return _place(self.name, mark)


def parse(data: bytes, name: str) -> YamlSource:
    """Parse one YAML document. Raises UserError with ``name:line:column`` for everything refused."""
    if len(data) > MAX_BYTES:
        raise UserError(f"the file is larger than {MAX_BYTES // 1024} KiB", where=name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        mark = SourceMark(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x}"
        raise UserError(message, hint="save the file as UTF-8", where=_place(name, mark)) from None
    builder = _YamlBuilder(name, yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        root = builder.document()
    except yaml.MarkedYAMLError as error:
        builder.errors.append(_syntax_error(error, text, name))
    except yaml.reader.ReaderError as error:
        before_text = text[: error.position]
        mark = SourceMark(before_text.count("\n") + 1, error.position - before_text.rfind("\n"))
        message = f"control character U+{error.character:04X} in the text"
        builder.errors.append(UserError(message, where=_place(name, mark)))
    except UserError as error:
        builder.errors.append(error)
    except (ValueError, OverflowError):  # of chr(), inside the scanner
        message = r"\U is followed by the number of no character"
        builder.errors.append(UserError(message, where=name))
    raise_any(builder.errors)
    return YamlSource(name, root)


def _place(name: str, mark: SourceMark) -> str:
    return f"{name}:{mark.line}:{mark.column}"


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str) -> UserError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines() or [""]
    here = lines[line] if line < len(lines) else ""
    where = _place(name, SourceMark(line + 1, column + 1))
    if "\t" in here[: len(here) - len(here.lstrip())] or here[column : column + 1] == "\t":
        return UserError("a tab cannot indent YAML", hint="use spaces", where=where)
    hint = None
    problem = f"{error.context}: {error.problem}" if error.context else str(error.problem)
    if "mapping values are not allowed" in problem:
        hint = 'text that holds ": " must be quoted; otherwise check the indentation of this line'
    elif "alias" in problem or "cannot start any token" in problem or "block scalar" in problem:
        hint = _QUOTE
    return UserError(f"not valid YAML: {problem}", hint=hint, where=where)


class _YamlBuilder:
    """Turns parser events into nodes; keeps going after an error that leaves the rest readable."""

    def __init__(self, name: str, events: Iterator[yaml.Event]):
        self.name = name
        self.errors: list[UserError] = []
        self._events = events
        self._anchors: dict[str, Node | None] = {}  # None: still being read
        self._count = 0

    def document(self) -> Node:
        """The only document of the stream."""
        next(self._events)  # stream start
        if isinstance(event := next(self._events), yaml.StreamEndEvent):
            self._refuse(event, "the file is empty")
            return Node(None, SourceMark(1, 1))
        root = self._node(next(self._events), 1)
        next(self._events)  # document end
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            self._stop(event, "a second document starts here; a file holds one")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        self._grow(event, 1)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            self._refuse(event, f"the tag {tag} is not allowed; no tag is", hint=_QUOTE)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(event, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = Node(self._scalar(event), _mark(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self._anchors:
            self._refuse(event, f"*{event.anchor[:60]} refers to nothing above it", hint=_QUOTE)
            return Node(None, _mark(event))
        if (node := self._anchors[event.anchor]) is None:
            self._stop(event, f"*{event.anchor[:60]} stands inside of what it refers to")
        self._grow(event, node.size)
        return node

    def _sequence(self, event: Any, depth: int) -> Node:
        items = []
        while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(inner, depth + 1))
        return Node(items, _mark(event), size=1 + sum(item.size for item in items))

    def _mapping(self, event: Any, depth: int) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, SourceMark] = {}
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            key = self._key(inner, depth)
            value = self._node(next(self._events), depth + 1)
            if key in keys:
                self._refuse(inner, f"the key {key!r} is given twice (first in line {keys[key].line})")
            elif key is not None:
                keys[key], values[key] = _mark(inner), value
        return Node(values, _mark(event), keys, 1 + len(keys) + sum(value.size for value in values.values()))

    def _key(self, event: Any, depth: int) -> str | None:
        node = self._node(event, depth + 1)
        if isinstance(node.value, dict | list) or node.value in (None, ""):
            self._refuse(event, "a key must be a word")
            return None
        text = event.value if isinstance(event, yaml.ScalarEvent) else str(node.value)
        if text == "<<":
            self._refuse(event, "the merge key << is not supported", hint="share values in 'defaults'")
            return None
        return text

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if _HALF.search(text):
            self._refuse(event, "half a character (a lone surrogate) is no text")
            return None
        if not event.implicit[0]:  # quoted or block text
            return self._text(event)
        if text in _WORDS:
            return _WORDS[text]
        plain = text.replace("_", "")
        if _INT.fullmatch(text) and len(text) <= MAX_DIGITS:
            return int(plain, {"0x": 16, "0o": 8}.get(text[:2], 10))
        if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(plain))):
            self._refuse(event, f"{text[:40]} is not a finite number")
            return None
        return float(plain) if _FLOAT.fullmatch(text) else self._text(event)

    def _text(self, event: Any) -> str | None:
        if _TOO_LONG.search(event.value):
            self._refuse(event, f"more than {MAX_DIGITS} digits in a row")
            return None
        return event.value

    def _grow(self, event: Any, nodes: int) -> None:
        self._count += nodes
        if self._count > MAX_NODES:
            self._stop(event, f"more than {MAX_NODES:,} values (aliases expanded)")

    def _refuse(self, event: Any, message: str, hint: str | None = None) -> None:
        self.errors.append(UserError(message, hint, _place(self.name, _mark(event))))

    def _stop(self, event: Any, message: str) -> NoReturn:
        raise UserError(message, where=_place(self.name, _mark(event)))


def _mark(event: Any) -> SourceMark:
    return SourceMark(event.start_mark.line + 1, event.start_mark.column + 1)
