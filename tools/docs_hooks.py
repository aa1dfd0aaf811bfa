"""Pages of the documentation that are made of the code: command line, suite schema, record schema.

MkDocs calls `on_page_markdown` for every page; a line ``<!-- make: NAME -->`` becomes what that stands for.
Pictures of published runs are where they were published, and the site gets copies: ``published/`` in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MARKUP = re.compile(r"\[/?(?:bold|yellow|red|dim)?\]")
_MAKE = re.compile(r"^<!-- make: ([\w-]+) -->$", re.M)
RESULTS = Path(__file__).parents[1] / "results"
_PICTURE = re.compile(r"\]\(((?:\.\./)+)results/(published/[\w./-]+\.(?:png|webp))\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with everything made. KeyError for a name that stands for nothing."""
    made = _MAKE.sub(lambda match: MAKERS[match[1]](), markdown)
    # From a page two folders deep it is ../../results in the checkout and ../published in the site.
    return _PICTURE.sub(lambda match: f"]({match[1].removeprefix('../')}{match[2]})", made)


def on_files(files: Any, config: Any) -> Any:
    """The site's files with the published pictures that its pages show."""
    from mkdocs.structure.files import File

    shown = {
        match[2] for page in files.documentation_pages() for match in _PICTURE.finditer(page.content_string)
    }
    for name in sorted(shown):
        files.append(File(name, str(RESULTS), config["site_dir"], config["use_directory_urls"]))
    return files


def command_line() -> str:
    """Every command: what it says of itself, and its options."""
    import typer

    from bench.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def suite_schema() -> str:
    """Keys of a suite, and parameters of the workloads' cells."""
    from bench import registry
    from bench.suite.model import Suite

    parts = ["## Keys of a suite\n\n" + _fields(Suite.model_json_schema())]
    for name in registry.targets():
        schema = registry.load(name).Params.model_json_schema()
        parts.append(
            f"## Parameters of `{name}`\n\nFor `defaults`, `grid`, `zip` and `include`.\n\n{_fields(schema)}"
        )
    return "\n\n".join(parts)


def record_schema() -> str:
    """Every field of a record, and of what it holds."""
    from bench.results.record import Artifact, Record, Value

    parts = (
        f"## {kind.__name__}\n\n{kind.__doc__}\n\n{_fields(kind.model_json_schema())}"
        for kind in (Record, Value, Artifact)
    )
    return "\n\n".join(parts)


def _command(name: str, command: Any) -> str:
    usage = " ".join(_argument(one) for one in command.params if one.param_type_name == "argument")
    options = [one for one in command.params if one.param_type_name == "option"]
    rows = [
        f"| `{', '.join(one.opts)}` | {_cell(one.help)} | {_default(one)} |"
        for one in options
        if not one.hidden
    ]
    table = "\n".join(["| option | what it does | default |", "| --- | --- | --- |", *rows]) if rows else ""
    return f"## {name}\n\n```\npython -m bench {name} {usage}\n```\n\n{_prose(command.help)}\n\n{table}"


def _argument(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper().strip("_")
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _prose(text: str | None) -> str:
    return _MARKUP.sub(lambda match: "`" if "bold" in match[0] or match[0] == "[/]" else "", text or "")


def _default(option: Any) -> str:
    value = option.default
    return "" if value in (None, False, ()) or callable(value) else f"`{value}`"


def _cell(text: object) -> str:
    return _prose(" ".join(str(text or "").split())).replace("|", "\\|")


def _fields(schema: Mapping[str, Any]) -> str:
    rows = ["| field | type | default | what it is |", "| --- | --- | --- | --- |"]
    needed = schema.get("required", [])
    for name, field in schema["properties"].items():
        default = (
            "required" if name in needed else f"`{json.dumps(field.get('default'), ensure_ascii=False)}`"
        )
        rows.append(f"| `{name}` | {_type(field)} | {_cell(default)} | {_cell(field.get('description'))} |")
    return "\n".join(rows)


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(one) for one in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


MAKERS = {"command-line": command_line, "suite-schema": suite_schema, "record-schema": record_schema}
