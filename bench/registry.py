"""Workloads by name. A name stands for ``module:attribute`` and is imported only when it is used.

Plug-ins declare an entry point in the group ``bench.workloads``; `stream`, `recall`, `generate`, `attention`
and `ddpo` are known without one, so that a checkout works uninstalled. A name that two packages claim is an
error, never an overwrite. The version of a plug-in is best made by ``bench.version.code_version(__name__)``.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from bench.errors import UserError, did_you_mean
from bench.workload import Workload

GROUP = "bench.workloads"
_registered = {
    "stream": "ddposink.workloads.stream:StreamWorkload",
    "recall": "ddposink.workloads.recall:RecallWorkload",
    "ddpo": "ddposink.workloads.ddpo:DdpoWorkload",
    "attention": "ddposink.workloads.attention:AttentionWorkload",
    "generate": "ddposink.workloads.generate:GenerateWorkload",
}


def register(name: str, target: str) -> None:
    """Make ``target`` (``module:attribute``) known as ``name``. Raises UserError if that is taken."""
    if (taken := targets().get(name, target)) != target:
        raise UserError(f"workload {name!r} is claimed by both {taken} and {target}")
    _registered[name] = target


def targets() -> dict[str, str]:
    """All known workloads as name → ``module:attribute``; nothing is imported."""
    known = dict(_registered)
    for name, target in _installed():
        if known.setdefault(name, target) != target:
            raise UserError(f"workload {name!r} is claimed by both {known[name]} and {target}")
    return dict(sorted(known.items()))


def load(name: str, where: str | None = None) -> Workload:
    """Import the workload ``name``; ``where`` is the place that asked for it, for the error.

    Raises UserError for an unknown name, for a target that cannot be imported, and for a workload
    whose metrics cannot be told from its parameters.
    """
    known = targets()
    if name not in known:
        raise UserError(f"unknown workload {name!r}", hint=did_you_mean(name, known), where=where)
    module, _, attribute = known[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        message = f"workload {name!r} ({known[name]}) cannot be imported: {error}"
        raise UserError(message, where=where) from error
    workload: Workload = found() if isinstance(found, type) else found
    if both := sorted({m.name for m in workload.metrics} & set(workload.Params.model_fields)):
        message = f"workload {name!r} ({known[name]}): {', '.join(both)} is both a metric and a parameter"
        raise UserError(message, hint="call the metric by another name", where=where)
    return workload


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Entry points of installed packages; looking through them all takes some milliseconds."""
    return tuple(sorted({(point.name, point.value) for point in entry_points(group=GROUP)}))
