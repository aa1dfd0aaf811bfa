"""What the commands of the little Slurm do. ``folder`` has a file for each job: the id of its process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil


def sbatch(folder: str, words: list[str]) -> None:
    """Start the script and say its number. What a script asks for is kept for tests to look at."""
    script = Path(words[-1]).read_text()
    if "--partition=none" in script or os.environ.get("SBATCH_PARTITION") == "none":
        sys.exit("sbatch: error: invalid partition specified: none")
    number = str(1000 + len(list(Path(folder).glob("*.sh"))))
    Path(folder, f"{number}.sh").write_text(script)
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    names = {name: flags[name].strip("'").replace("%j", number) for name in ("output", "error")}
    with open(names["output"], "ab") as out, open(names["error"], "ab") as err:
        started = subprocess.Popen(
            ["bash", str(Path(folder, f"{number}.sh"))],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        )
    Path(folder, number).write_text(str(started.pid))
    print(f"Submitted batch job {number}")


def sacct(folder: str, words: list[str]) -> None:
    """State of the jobs asked for."""
    print("JobID|State|NodeList")
    for number in (words[at + 1] for at, word in enumerate(words) if word == "-j"):
        print(f"{number}|{_state(Path(folder, number))}|here")


def scancel(folder: str, words: list[str]) -> None:
    """End a job and all below it."""
    job = Path(folder, words[0])
    with suppress(ProcessLookupError):
        os.killpg(int(job.read_text()), signal.SIGKILL)
    job.with_suffix(".cancelled").touch()


def srun(folder: str, words: list[str]) -> None:
    """Nobody should call it: a step of one task would be bound to one CPU."""
    sys.exit("srun was called")


def _state(job: Path) -> str:
    if job.with_suffix(".cancelled").exists():
        return "CANCELLED by 0"
    try:
        process = psutil.Process(int(job.read_text()))
        return "COMPLETED" if process.status() == psutil.STATUS_ZOMBIE else "RUNNING"
    except psutil.NoSuchProcess:
        return "COMPLETED"
