"""What passes keep for their next attempt, gathered where that looks for it whatever measured before."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from bench.run.context import SCRATCH

JOBS = "slurm"  # folder of the jobs of a run, in the run folder
ROOT = "root"  # in the folder of a job: what a run folder is to its pass
PART, OLD = ".part", ".old"  # of a copy from a node that is being replaced


def gather(folder: Path) -> None:
    """Have all that passes of the run in ``folder`` have kept, and remove what else launchers have left.

    Jobs that nobody reads any more end when their folder is gone.
    """
    for left in (folder / JOBS).glob("*"):
        keep_scratch(left, folder)
    shutil.rmtree(folder / JOBS, ignore_errors=True)
    for aside in (folder / SCRATCH).glob(f"*{OLD}"):
        restore(aside.with_name(aside.name.removesuffix(OLD)))
    for rest in [*(folder / SCRATCH).glob(f"*{OLD}"), *(folder / SCRATCH).glob(f"*{PART}")]:
        shutil.rmtree(rest, ignore_errors=True)


def restore(kept: Path) -> None:
    """Undo the first of two renames, if we were killed before the second."""
    aside = kept.with_name(kept.name + OLD)
    if aside.exists() and not kept.exists():
        with suppress(OSError):
            aside.rename(kept)


def keep_scratch(folder: Path, root: Path) -> None:
    """Have what the pass of a job's ``folder`` keeps for its next attempt where that is looked for.

    A rename: who still writes there finds no place for more.
    """
    for kept in (folder / ROOT / SCRATCH).glob("*"):
        with suppress(OSError):
            target = root / SCRATCH / kept.name
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            kept.rename(target)
