"""What a view of lines shows, computed once for all who draw it: the picture and the page."""

from __future__ import annotations

from bench.report.curves import curve_panels
from bench.report.frames import RunData
from bench.report.panels import NothingToDraw, Panels, line_panels
from bench.report.paths import scatter_panels, trace_panels
from bench.workload import View

_PANELS = {"curve": curve_panels, "line": line_panels, "scatter": scatter_panels, "trace": trace_panels}


def contents(view: View, data: RunData) -> Panels:
    """Panels of a view of kind curve, line, scatter or trace; raises NothingToDraw."""
    key = repr(view)  # not its name alone: the same view may be narrowed by another ``where``
    if key not in data.contents:
        try:
            data.contents[key] = _PANELS[view.kind](data, view)
        except NothingToDraw as reason:
            data.contents[key] = reason
    found = data.contents[key]
    if isinstance(found, NothingToDraw):
        raise found
    return found
