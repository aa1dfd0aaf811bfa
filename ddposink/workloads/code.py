"""The version of a workload is its code: a hash of the syntax trees, blind to comments and layout."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@cache
def code_version(*places: str) -> str:
    """16 hex digits over all modules under ``places`` (files or folders relative to `ddposink`).

    Docstrings and comments do not count, so that explaining a number never invalidates it.
    """
    digest = hashlib.sha256()
    files = sorted(
        f
        for place in places
        for f in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    )
    for file in files:
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                body.pop(0)
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + ast.dump(tree).encode() + b"\0")
    return digest.hexdigest()[:16]


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
