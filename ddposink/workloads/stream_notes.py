"""What is legal in a `stream` cell but probably not meant: sentences for the plan. Cheap, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ddposink.caches import CacheShape, Policy
from ddposink.models.files import Stamped, stamped
from ddposink.models.language import ModelRef


def own_window_notes(model: ModelRef, policy: Policy) -> Iterator[str]:
    """Layers whose own sliding window lies inside the policy's: there the model decides what is seen."""
    if not policy.bounded:
        return
    if model.kind == "path":
        windows = _windows(*stamped(f"{model.name}/config.json"))
    else:
        windows = _windows_of(model.config_dict() or {})
    inside = [own for own in windows if own is not None and own - 1 <= policy.window]
    if not inside:
        return
    what = f"the {policy.sinks} sinks are out of sight and " if policy.sinks else ""
    yield (
        f"{model.name}: {len(inside)} of {len(windows)} layers have a sliding window of their own "
        f"({min(inside)} tokens) inside '{policy}': in these {what}nothing but that window is held"
    )


def bos_notes(model: ModelRef, bos: bool) -> Iterator[str]:
    """A tokenizer that puts a BOS before every text, in a cell that leaves it out."""
    folder = None if bos else model.folder
    if folder is None:
        return
    files = (f"{folder}/tokenizer_config.json", f"{folder}/tokenizer.json")
    if (token := _bos_of(*map(stamped, files))) is None:
        return
    yield (
        f"{model.name}: its tokenizer begins every text with {token}, which `bos: false` leaves out; write "
        f"`bos: true` (and `?separator=bos` for several books) to feed it as it was trained"
    )


def wanted_bos(folder: Path) -> str | None:
    """The token that a model's tokenizer begins every text with; None if it adds none or says nothing."""
    return _bos_of(stamped(f"{folder}/tokenizer_config.json"), stamped(f"{folder}/tokenizer.json"))


@lru_cache(maxsize=16)
def _bos_of(config: Stamped, whole: Stamped) -> str | None:
    settings = _json(*config)
    name = settings.get("bos_token")
    token = str(name.get("content") if isinstance(name, dict) else name) if name else None
    if token and settings.get("add_bos_token"):
        return token
    processor = _json(*whole).get("post_processor") or {}
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps:
        single = step.get("single") if isinstance(step, dict) else None
        first = single[0] if isinstance(single, list) and single else {}
        special = first.get("SpecialToken", {}).get("id") if isinstance(first, dict) else None
        if special and token in (None, special):
            return str(special)
    return None


def _json(file: str, *_: int) -> dict[str, Any]:
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=16)
def _windows(file: str, *stamp: int) -> tuple[int | None, ...]:
    return _windows_of(_json(file, *stamp))


def _windows_of(config: dict[str, Any]) -> tuple[int | None, ...]:
    """The sliding window of every layer; none where this cannot read it: the stream reads the model."""
    try:
        return tuple(CacheShape.from_config(config.get("text_config") or config, itemsize=4).layer_windows)
    except (ValueError, TypeError, KeyError):
        return ()
