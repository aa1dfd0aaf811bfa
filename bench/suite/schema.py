"""The JSON Schema of suite files, from which editors complete and check keys and cell parameters.

The suite's own keys come from `bench.suite.model.Suite`; below ``defaults``, ``grid`` and ``include`` the
parameters of the workload named in the same file are offered, through one ``if``/``then`` per
workload. Written as draft 7: the newest that the common YAML editors understand in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.suite.model import Suite
from bench.workload import Workload

DRAFT = "http://json-schema.org/draft-07/schema#"

Schema = dict[str, Any]


def suite_schema(workloads: Iterable[Workload]) -> Schema:
    """JSON Schema for suites of the given workloads. The same input gives the same schema."""
    known = sorted(workloads, key=lambda workload: workload.name)
    schema = Suite.model_json_schema()
    keys = schema["properties"]
    keys["workload"]["enum"] = [workload.name for workload in known]
    keys["seed"] = _scalar_or_list(keys["seed"])
    keys["grid"]["additionalProperties"] = True  # a list of values, or one value of any kind
    keys["memory_limit"]["anyOf"].insert(0, {"type": "string", "pattern": r"^[0-9][0-9._]*\s*[A-Za-z]*$"})
    for key in ("defaults", "grid", "zip", "include", "exclude", "tolerances"):
        keys[key]["type"] = [keys[key]["type"], "null"]  # left empty
    definitions = schema.setdefault("$defs", {})
    schema["allOf"] = [_cells(workload, definitions) for workload in known]
    return {"$schema": DRAFT, **schema, "title": "ddposink suite"}


def _cells(workload: Workload, definitions: Schema) -> Schema:
    """What holds below the grid if the suite names ``workload``."""
    prefix = workload.name
    parameters = workload.Params.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    nested = parameters.pop("$defs", {})
    definitions.update({f"{prefix}.{name}": definition for name, definition in nested.items()})
    definitions.update({f"{prefix}:{name}": value for name, value in parameters["properties"].items()})
    names = list(parameters["properties"])
    one = {name: {"$ref": f"#/$defs/{prefix}:{name}"} for name in names}
    several = {
        name: _scalar_or_list({"type": "array", "items": ref, "minItems": 1}) for name, ref in one.items()
    }
    properties = {
        "defaults": _closed(one),
        "grid": _closed(several),
        "zip": {"items": {"items": {"enum": names}}},
        "include": {"items": _closed(several)},
        "exclude": {"items": {"properties": {name: {} for name in names}}},
        "tolerances": _closed({metric.name: {"description": metric.help} for metric in workload.metrics}),
    }
    return {
        "if": {"properties": {"workload": {"const": prefix}}, "required": ["workload"]},
        "then": {"properties": properties},
    }


def _closed(properties: Schema) -> Schema:
    return {"properties": properties, "additionalProperties": False}


def _scalar_or_list(array: Schema) -> Schema:
    """The same array, whose only item may also stand without brackets."""
    return {"anyOf": [array["items"], array]}
