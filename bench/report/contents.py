"""What a view of lines shows, computed once for all who draw it: the picture and the page."""

from __future__ import annotations

from dataclasses import replace

from bench.report.control import control_note, over_control
from bench.report.curves import curve_panels
from bench.report.frames import RunData
from bench.report.front import FRONT, front
from bench.report.panels import NothingToDraw, Panels, line_panels, view_rows
from bench.report.paths import scatter_panels, trace_panels
from bench.report.select import token
from bench.workload import View

_PANELS = {"curve": curve_panels, "line": line_panels, "scatter": scatter_panels, "trace": trace_panels}


MIB = 2**20


def with_front(content: Panels, data: RunData, view: View) -> Panels:
    """The same with the front of each panel beneath its lines; bytes along x are drawn in MiB."""
    higher = data.words.metric(view.y).direction == "higher"
    unit = MIB if data.words.metric(view.x).unit == "B" else 1
    for panel in content.panels:
        panel.lines = {name: replace(line, x=line.x / unit) for name, line in panel.lines.items()}
        found = front(panel.lines.values(), higher=higher)
        if found is not None:
            panel.lines = panel.lines | {FRONT: found}
    said = f"The front: no other point has as little {view.x_label} and is as good."
    return replace(content, notes=[*content.notes, said])


def _shown(view: View, data: RunData) -> RunData:
    """What of ``data`` is drawn; raises NothingToDraw where a comparison has nothing to compare."""
    if view.compares and len({token(hue) for hue in view_rows(data, view)[view.hue]}) < 2:
        raise NothingToDraw(f"there is only one {view.hue}")
    return over_control(view, data)


def contents(view: View, data: RunData) -> Panels:
    """Panels of a view of kind curve, line, scatter or trace; raises NothingToDraw."""
    key = repr(view)  # not its name alone: the same view may be narrowed by another ``where``
    if key not in data.contents:
        try:
            found = _PANELS[view.kind](_shown(view, data), view)
            found.notes.extend(control_note(view, data))
            data.contents[key] = with_front(found, data, view) if view.front else found
        except NothingToDraw as reason:
            data.contents[key] = reason
    found = data.contents[key]
    if isinstance(found, NothingToDraw):
        raise found
    return found
