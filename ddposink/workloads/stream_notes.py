"""What is legal in a `stream` cell but probably not meant: sentences for the plan. Cheap, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from ddposink.caches import CacheShape, Policy
from ddposink.models import ModelRef


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
