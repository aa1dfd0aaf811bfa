"""From a run folder to pictures, tables and the page that shows them.

Frames in, files out; nothing is measured here and nothing here knows what was measured. Importing
this package is cheap: pandas, seaborn and jinja2 are imported when something is rendered.
"""

from __future__ import annotations

from pathlib import Path

from bench.workload import Workload


def render(run_dir: Path, workload: Workload | None = None) -> Path:
    """Write ``tables/``, ``plots/`` and ``README.md`` of a run folder and return the README's path.

    Works at any time: for unfinished runs, for runs in which everything failed, for none at all.
    ``workload`` is looked up by the name in the run's suite if not given; where that fails, the
    records' own metrics are shown without declared labels and pictures. Raises UserError if
    ``run_dir`` is no run folder or cannot be written.
    """
    from bench.report.page import write

    return write(Path(run_dir), workload)
