"""What a suite may say. A suite names a workload and spans a grid over its parameters.

This module knows the suite's own keys only. What the workload's parameters may be is settled when
the suite is planned (`bench.suite.plan`), with the same care: every error names ``file:line:column``, what
was expected, and the nearest valid word.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from bench.errors import UserError, did_you_mean, raise_any
from bench.suite.conditions import parse as parse_condition
from bench.suite.explain import Violation, brief, explain
from bench.suite.yaml import DIGITS, MAX_BYTES, KeyPath, YamlSource, parse
from bench.workload import Scalar

MAX_SEED = 2**32 - 1  # the largest that numpy takes
MAX_MEMORY = 2**60  # bytes; more than a kernel's limits take, or any machine has

_UNITS = {"": 1, "b": 1} | {
    prefix + ending: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for ending, base in (("b", 1000), ("ib", 1024))
}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _none_is(empty: type) -> BeforeValidator:
    """A key that was left empty in YAML (``grid:`` and nothing below it) counts as not given."""
    return BeforeValidator(lambda value: empty() if value is None else value)


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return _not_bool(value)
    match = re.fullmatch(rf"({DIGITS}(?:\.[0-9]+)?)\s*([a-z]*)", value.strip(), re.IGNORECASE)
    if not match or match[2].lower() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write bytes or e.g. 16GiB, 512MiB, 16GB")
    size = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
    return int(min(size, 2.0 * MAX_MEMORY))


def _checked(value: Any) -> Any:
    parse_condition(value)
    return value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"should be a number, got {str(value).lower()}")
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, list | dict):
        raise ValueError("should be a single value")
    return value


_NotBool = BeforeValidator(_not_bool)
_Name = Annotated[str, Field(min_length=1)]
_Parameters = Annotated[dict[_Name, Any], _none_is(dict)]
_Values = Annotated[list[Any], Field(min_length=1), BeforeValidator(_listed)]
_Condition = Annotated[Any, BeforeValidator(_checked)]
_Seed = Annotated[int, Field(ge=0, le=MAX_SEED), _NotBool]
_Seeds = Annotated[list[_Seed], Field(min_length=1), BeforeValidator(_listed)]
_Repeat = Annotated[int, Field(ge=1, le=1000), _NotBool]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), _NotBool]
_Bytes = Annotated[int, Field(gt=0, le=MAX_MEMORY), BeforeValidator(_bytes)]
_Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False), _NotBool]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compare(_Strict):
    """Paired differences: every cell against the one whose column ``axis`` equals ``reference``."""

    axis: _Name = Field(description="Parameter along which cells are compared, e.g. policy")
    reference: Annotated[Scalar, BeforeValidator(_scalar)] = Field(
        description="The value compared with, e.g. dense"
    )


class Resources(_Strict):
    """What a pass needs of a node of a cluster; without ``jobs`` it takes the whole node all the same."""

    cpus: Annotated[int, Field(ge=1, le=100_000), _NotBool] = Field(1, description="CPUs")
    gpus: Annotated[int, Field(ge=0, le=1000), _NotBool] = Field(0, description="GPUs; no pass shares one")
    memory: _Bytes | None = Field(None, description="Host memory that a node must have, e.g. 16GiB")
    custom: dict[_Name, Annotated[float, Field(gt=0, allow_inf_nan=False), _NotBool]] = Field(
        {}, description="Resources that nodes were started with (ray start --resources), e.g. {h100: 1}"
    )


class Suite(_Strict):
    """One suite file. `where` tells the place of a value in it."""

    suite: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64, description="Name; runs go to results/NAME/"
    )
    workload: _Name = Field(description="What is measured in every cell")
    description: str = Field("", description="One paragraph for the report")
    defaults: _Parameters = Field({}, description="Parameters of every cell")
    grid: Annotated[dict[_Name, _Values], _none_is(dict)] = Field(
        {}, description="Axes: every combination of their values is a cell"
    )
    zip: Annotated[list[list[_Name]], _none_is(list)] = Field(
        [], description="Groups of grid axes of equal length that vary together"
    )
    include: Annotated[list[_Parameters], _none_is(list)] = Field(
        [], description="Extra cells, laid over defaults; lists of values expand as a product"
    )
    exclude: Annotated[list[dict[_Name, _Condition]], _none_is(list)] = Field(
        [], description='Drops the cells that meet all conditions of an item: value, list, "sink *", ">8"'
    )
    seed: _Seeds = Field([0], description="Seeds; every cell is measured once with each")
    repeat: _Repeat = Field(1, description="How often every cell is measured")
    jobs: _Repeat = Field(1, description="Passes side by side; for work that does not measure time itself")
    timeout: _Seconds | None = Field(None, description="Seconds after which a pass is stopped")
    memory_limit: _Bytes | None = Field(None, description="Host memory of a pass, e.g. 16GiB")
    resources: Resources = Field(
        default_factory=lambda: Resources.model_validate({}),
        description="What a pass needs of a node of a cluster (--launcher ray or slurm)",
    )
    compare: Compare | None = Field(None, description="Report paired differences along an axis")
    tolerances: Annotated[dict[_Name, _Tolerance], _none_is(dict)] = Field(
        {}, description="Overrides of the metrics' own tolerances"
    )

    _source: YamlSource | None = PrivateAttr(None)

    def where(self, path: KeyPath, *, key: bool = False) -> str:
        """``file:line:column`` of a value, or of its key; ``grid.policy.2`` if no file was read."""
        if self._source is None:
            return ".".join(map(str, path)) or "suite"
        return self._source.where(path, key=key)


def load_suite(path: Path | str) -> Suite:
    """Read a suite file. Raises UserError, or CombinedError with everything wrong with its keys."""
    path = Path(path)
    return parse_suite(_read(path), str(path))


def parse_suite(data: bytes, name: str) -> Suite:
    """`load_suite` for bytes already read; ``name`` stands for the file in errors."""
    source = parse(data, name)
    plain = source.root.plain()
    if not isinstance(plain, dict):
        raise UserError(
            f"a suite is a mapping of keys, not {'a list' if isinstance(plain, list) else brief(plain)}",
            hint=f"keys: {', '.join(Suite.model_fields)}",
            where=source.where(()),
        )
    try:
        suite = Suite.model_validate(plain)
    except ValidationError as error:
        findings = explain(error, Suite.model_fields, "key", levels=2)
        raise_any(
            UserError(found.message, _hint(found), source.where(found.path, key=found.kind == "unknown"))
            for found in findings
        )
        raise  # unreachable: a ValidationError has at least one finding
    suite._source = source
    return suite


def _hint(found: Violation) -> str | None:
    """What is nearest to an unknown key, also within the keys that are mappings of their own."""
    inner: dict[str | int, type[BaseModel]] = {"compare": Compare, "resources": Resources}
    if found.kind == "unknown" and len(found.path) == 2 and found.path[0] in inner:
        return did_you_mean(str(found.path[1]), inner[found.path[0]].model_fields)
    return found.hint


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            suites = sorted(found.name for found in path.glob("*.y*ml"))
            hint = f"suites in it: {', '.join(suites)}" if suites else "there are no .yaml files in it"
            raise UserError(f"{path} is a folder, not a suite", hint=hint)
        if not path.exists():
            raise UserError(f"there is no suite {path}", hint=_nearby(path))
        if not path.is_file():
            raise UserError(f"{path} is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the suite {path}: {error.strerror}") from error


def _nearby(path: Path) -> str:
    """Suites where the missing file was looked for and where suites usually are."""
    folders = dict.fromkeys(folder for folder in (path.parent, Path("suites")) if folder.is_dir())
    by_stem: dict[str, str] = {}
    for folder in folders:
        for found in sorted(folder.glob("*.y*ml")):
            by_stem.setdefault(found.stem, str(found))
    if not by_stem:
        return "no suites (*.yaml) were found nearby"
    near = get_close_matches(path.stem, by_stem, n=1)
    found_here = f"found: {', '.join(by_stem.values())}"
    return f"did you mean {by_stem[near[0]]}? {found_here}" if near else found_here
