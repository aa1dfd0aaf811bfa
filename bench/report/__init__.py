"""From a run folder to pictures, tables and the page that shows them.

Frames in, files out; nothing is measured here and nothing here knows what was measured. Importing
this package is cheap: pandas, seaborn and jinja2 are imported when something is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.workload import Workload


def render(
    run_dir: Path, workload: Workload | None = None, baseline: Path | None = None, *, vectors: bool = True
) -> Path:
    """Write ``tables/``, ``plots/``, ``README.md`` and ``index.html`` of a run; return the README's path.

    ``index.html`` is the same for a browser, in one self-contained file. With a ``baseline`` (another run
    folder) both are held against it, and ``comparison.md`` says how. Without ``vectors`` no SVG is written
    beside the bitmaps, as for a copy that is published.

    Works at any time: for unfinished runs, for runs in which everything failed, for none at all.
    ``workload`` is looked up by the name in the run's suite if not given; where that fails, the
    records' own metrics are shown without declared labels and pictures. Raises UserError if
    ``run_dir`` is no run folder or cannot be written.
    """
    from bench.report.page import write

    return write(Path(run_dir), workload, baseline, vectors=vectors)


def render_only(run_dir: Path, wanted: str, *, vectors: bool = True) -> Path:
    """As `render`, of the cells that ``wanted`` names as ``run --only`` does, into ``only/…`` of the run.

    Raises UserError if it names none.
    """
    from bench.report.page import write_only

    return write_only(Path(run_dir), wanted, vectors=vectors)


def render_several(run_dirs: Sequence[Path], baseline: Path, out: Path) -> Path:
    """Write one page of several runs, each held against ``baseline``, into ``out``; return its path.

    Raises UserError if the runs are not of one suite and workload, or if ``out`` cannot be written.
    """
    from bench.report.page import write_several

    return write_several(run_dirs, baseline, out)
