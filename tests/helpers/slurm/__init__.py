"""A Slurm of one machine: `sbatch`, `sacct` and `scancel` as submitit uses them. A job is a process."""

from __future__ import annotations

import sys
from pathlib import Path

COMMAND = """#!{python}
import sys
sys.path.insert(0, {tests!r})
from helpers.slurm import commands
commands.{name}({folder!r}, sys.argv[1:])
"""


def install(folder: Path) -> Path:
    """Put the commands into ``folder`` / bin, for PATH; what they know of jobs lies beside."""
    tests, bin = str(Path(__file__).parents[2]), folder / "bin"
    bin.mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in ("sbatch", "sacct", "scancel", "srun"):
        text = COMMAND.format(python=sys.executable, tests=tests, name=name, folder=str(folder / "jobs"))
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    return bin
