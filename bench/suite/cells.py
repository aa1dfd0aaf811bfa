"""The cells of a grid that a workload accepts, and for those it refuses: what, where and why.

A refusal is traced back to the value that caused it, whether that was written in ``defaults``, as the
third item of a grid axis or in an included cell. A value that is wrong by itself is always an
error; a combination that the workload refuses as a whole is one only if ``exclude`` lets it through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import UserError
from bench.results.record import canonical
from bench.suite.conditions import Exclusion
from bench.suite.explain import Violation, brief, explain
from bench.suite.grid import Draft, expand
from bench.suite.model import Suite
from bench.workload import Scalar, Workload


@dataclass
class GridPoint:
    """One accepted combination of parameters: a cell but for seed and repeat."""

    workload: Workload
    draft: Draft
    params: BaseModel
    data: dict[str, Any]  # as plain JSON data, defaults filled in
    text: str  # as canonical JSON

    @cached_property
    def columns(self) -> dict[str, Scalar]:
        """The workload's columns of this cell."""
        return self.workload.columns(self.params)

    @cached_property
    def spellings(self) -> tuple[Mapping[str, Any], ...]:
        """Parameters as written, as understood, and as shown: `exclude` may name any of them."""
        written = {name: given.value for name, given in self.draft.given.items()}
        return written, self.data, self.columns


def accept(
    suite: Suite, workload: Workload, rules: Sequence[Exclusion]
) -> tuple[list[GridPoint], list[UserError]]:
    """Validate every cell once. Names unknown to the workload are left to `grid.check_names`."""
    known = workload.Params.model_fields
    points: list[GridPoint] = []
    errors: dict[tuple[str | None, str], UserError] = {}  # a bad value is met in many cells, told once
    for draft in expand(suite):
        values = {name: given.value for name, given in draft.given.items() if name in known}
        try:
            params = workload.Params.model_validate(values)
            data = params.model_dump(mode="json")
            findings = [
                Violation((name,), f"{name}: should be a number, got {brief(value)}")
                for name, value in values.items()
                if _counted(value, data.get(name))
            ]
            if not findings:
                points.append(GridPoint(workload, draft, params, data, canonical(data)))
                continue
        except ValidationError as error:
            findings = list(explain(error, known, "parameter"))
        except ValueError:  # from `canonical`
            findings = [
                Violation((name,), f"{name}: not a finite number") for name in data if not _finite(data[name])
            ]
        applying = [rule for rule in rules if rule.holds(values)]
        if applying and not any(finding.path for finding in findings):
            for rule in applying:
                rule.hits += 1
            continue
        for finding in findings:
            if finding.kind == "missing" and len(values) < len(draft.given):
                continue  # it is probably there, but misspelt
            found = _locate(finding, draft, suite)
            errors.setdefault((found.where, finding.message), found)
    return points, list(errors.values())


def blame(suite: Suite, draft: Draft, message: str) -> UserError:
    """An error about a cell as a whole, placed at the value that ``message`` quotes, if it quotes one."""
    quoted = [
        given
        for given in draft.given.values()
        if re.search(rf"(?<![\w-]){re.escape(str(given.value))}(?![\w-])", message)
    ]
    path = max(quoted, key=lambda given: len(str(given.value))).path if quoted else draft.path
    own = {name: given.value for name, given in draft.given.items() if given.path[0] != "defaults"}
    varied = [f"{name}: {brief(value)}" for name, value in own.items()]
    cell = f" (cell {', '.join(varied)})" if varied else ""
    return UserError(message + cell, where=suite.where(path))


def _locate(finding: Violation, draft: Draft, suite: Suite) -> UserError:
    if not finding.path:
        return blame(suite, draft, finding.message)
    hint = finding.hint
    if finding.kind == "missing":
        hint = f"add it to defaults or to {'this item' if draft.path[0] == 'include' else 'grid'}"
    given = draft.given.get(str(finding.path[0]))
    whole = len(finding.path) == 1 and finding.message.startswith(f"{finding.path[0]}: should be ")
    if whole and given and given.path[0] == "defaults" and isinstance(given.value, list):
        hint = hint or "a list in defaults is one value; several values are an axis of grid"
    path = (*given.path, *finding.path[1:]) if given else draft.path
    return UserError(finding.message, hint, suite.where(path, key=finding.kind == "unknown"))


def _counted(given: Any, taken: Any) -> bool:
    """Whether a true or false was taken for the number 1 or 0: ``kl_beta: true`` reads as a switch."""
    if isinstance(given, list) and isinstance(taken, list):
        return any(_counted(*both) for both in zip(given, taken, strict=False))
    return isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool)


def _finite(value: Any) -> bool:
    try:
        return bool(canonical(value))
    except ValueError:
        return False
