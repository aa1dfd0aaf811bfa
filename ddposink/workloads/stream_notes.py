"""What is legal in a `stream` cell but probably not meant: sentences for the plan. Cheap, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddposink.caches import CacheShape, Policy
from ddposink.models.language import ModelRef


def own_window_notes(model: ModelRef, policy: Policy) -> Iterator[str]:
    """Layers whose own sliding window lies inside the policy's: there the model decides what is seen."""
    config = model.config_dict()
    if config is None or not policy.bounded:
        return
    try:
        windows = CacheShape.from_config(config.get("text_config") or config, itemsize=4).layer_windows
    except (ValueError, TypeError, KeyError):
        return  # a configuration this cannot read: the stream reads the model itself
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
    folder = model.folder
    if bos or folder is None or (token := wanted_bos(folder)) is None:
        return
    yield (
        f"{model.name}: its tokenizer begins every text with {token}, which `bos: false` leaves out; write "
        f"`bos: true` (and `?separator=bos` for several books) to feed it as it was trained"
    )


def wanted_bos(folder: Path) -> str | None:
    """The token that a model's tokenizer begins every text with; None if it adds none or says nothing."""
    settings = _json(folder / "tokenizer_config.json")
    name = settings.get("bos_token")
    token = str(name.get("content") if isinstance(name, dict) else name) if name else None
    if token and settings.get("add_bos_token"):
        return token
    processor = _json(folder / "tokenizer.json").get("post_processor") or {}
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in steps:
        single = step.get("single") if isinstance(step, dict) else None
        first = single[0] if isinstance(single, list) and single else {}
        special = first.get("SpecialToken", {}).get("id") if isinstance(first, dict) else None
        if special and token in (None, special):
            return str(special)
    return None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
