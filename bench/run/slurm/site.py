"""Slurm as a place to measure on: what its nodes are is asked by a first job, and every pass is a job."""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import submitit

from bench import registry
from bench.errors import UserError
from bench.results.environment import THREAD_VARIABLES, Fingerprint, comparable
from bench.results.folder import keep_fingerprint
from bench.results.store import clear_errors
from bench.run.child import Event, Place
from bench.run.cluster.agent import Description, describe
from bench.run.context import SCRATCH
from bench.run.kept import JOBS, ROOT, gather
from bench.run.launch import Launcher, Refused, Running
from bench.run.meaning import OtherDataError, meaning
from bench.run.slurm.batch import Order, measure
from bench.run.slurm.running import SlurmRunning
from bench.run.worker import Job
from bench.suite.request import Options, Request
from bench.workload import ALLOW_CODE

Say = Callable[[str], None]
KIND = "slurm"  # of submitit's executors
QUEUED = 32  # jobs of ours that wait or run at a time
MARGIN_MINUTES = 15  # for a job beyond the time limit of its pass: imports, downloads
LIMIT = "SBATCH_TIMELIMIT"


class SlurmSite:
    """Nodes as Slurm gives them; all must be like the first one."""

    def __init__(self, request: Request, options: Options, say: Say) -> None:
        self.jobs = options.jobs or request.suite.jobs
        self._request, self._workload = request, request.workload
        self._variables = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, ALLOW_CODE)}
        self._asked = asked_for(request, self.jobs)
        found = self._described(options.results, say)
        if found.version != request.plan.version:
            raise _other_code(found.version, request.plan.version)
        self.fingerprint: Fingerprint = found.fingerprint

    @contextmanager
    def launcher(self, folder: Path, say: Say) -> Iterator[Launcher]:
        """Jobs; what they have left is taken or removed, and so they end."""
        try:
            yield SlurmLauncher(self, folder)
        finally:
            gather(folder)

    def submit(self, folder: Path, work: Any, *arguments: Any) -> Any:
        """A job that calls ``work``. Raises UserError if Slurm does not take it."""
        try:
            executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=KIND)
            executor.update_parameters(**self._asked)
            return executor.submit(work, *arguments)
        except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(
                f"Slurm does not take a job: {said}",
                hint="partition, account and constraint are taken from SBATCH_PARTITION, SBATCH_ACCOUNT, …",
            ) from error

    def order(self, job: Job, folder: Path) -> Order:
        """What a job is told."""
        there = folder / ROOT
        moved = dataclasses.replace(job, root=there, out=there / job.out.relative_to(job.root))
        known = meaning(self._workload, job.work.cells[0])
        return Order(moved, known, self._variables, folder, os.getcwd())

    def place(self, hello: Event, folder: Path, job_id: str) -> Place:
        """What records say of a pass there. Raises UserError if its node is not like the first."""
        if hello["version"] != self._request.plan.version:
            raise _other_code(hello["version"], self._request.plan.version)
        if differing := comparable(self.fingerprint, hello["fingerprint"]):
            raise UserError(
                f"node {hello['node']} has another {', '.join(differing)} than the first one",
                hint="ask for one kind of node: set SBATCH_CONSTRAINT or SBATCH_PARTITION",
            )
        keep_fingerprint(folder, hello["fingerprint"])
        facts: dict[str, str | int] = {"node": hello["node"], "slurm_job": job_id}
        if hello["devices"]:
            facts["node_devices"] = ",".join(hello["devices"])
        return Place(hello["fingerprint"]["id"], facts)

    def _described(self, results: Path, say: Say) -> Description:
        new = not results.exists()
        folder = results.resolve() / f".{JOBS}-{secrets.token_hex(4)}"
        with clear_errors(f"cannot create {folder}"):
            folder.mkdir(parents=True)
        job = None
        try:
            target = registry.targets()[self._request.suite.workload]
            job = self.submit(folder, describe, target, self._variables)
            say(f"Slurm job {job.job_id} asks what a node is; as soon as it has run, passes are submitted")
            found: Description = job.result()
            return found
        except submitit.core.utils.UncompletedJobError as error:
            said = str(error).strip().splitlines()[-1]
            raise UserError(
                f"a node cannot measure: {said}",
                hint="it needs the same ddposink in the same Python as here, and to share the results folder",
            ) from error
        finally:
            if job is not None and not job.done():
                job.cancel(check=False)
            shutil.rmtree(folder, ignore_errors=True)
            if new:
                with suppress(OSError):
                    results.rmdir()


class SlurmLauncher:
    """See ``bench.run.launch.Launcher``."""

    def __init__(self, site: SlurmSite, folder: Path) -> None:
        self._site, self._folder = site, folder

    def await_ready(self) -> None:
        """Nothing to wait for: a pass waits in the queue."""

    def places(self) -> int:
        """How many jobs may wait or run."""
        return QUEUED

    def launch(self, job: Job) -> Running:
        """Submit ``job``, with what an earlier attempt has kept."""
        folder = self._folder.resolve() / JOBS / secrets.token_hex(4)
        try:
            order = self._site.order(job, folder)
        except OtherDataError as error:
            return Refused(str(error))
        kept, name = self._folder / SCRATCH / job.work.id, job.work.id
        with clear_errors(f"cannot create {folder}"):
            (folder / ROOT / SCRATCH).mkdir(parents=True)
            if kept.exists():
                kept.rename(folder / ROOT / SCRATCH / name)
        submitted = self._site.submit(folder, measure, order)
        return SlurmRunning(
            submitted, folder, job, lambda hello: self._site.place(hello, self._folder, submitted.job_id)
        )


def asked_for(request: Request, jobs: int) -> dict[str, Any]:
    """What every job asks Slurm for, by submitit's names. Raises UserError if that cannot be said."""
    needs, timeout = request.suite.resources, request.suite.timeout
    if needs.custom:
        raise UserError(
            f"resources: {{custom: …}} is of Ray; Slurm does not know {', '.join(needs.custom)}",
            hint="ask for a kind of node by SBATCH_CONSTRAINT or SBATCH_PARTITION where you start the run",
        )
    if timeout is None and LIMIT not in os.environ:
        raise UserError(
            "a Slurm job must say how long it may take, and the suite has no timeout",
            hint=f"add timeout: (seconds a pass) to the suite, or set {LIMIT}",
        )
    asked: dict[str, Any] = {
        "name": "bench",
        "timeout_min": math.ceil((timeout or 0) / 60) + MARGIN_MINUTES,
        "cpus_per_task": needs.cpus,
        "slurm_use_srun": False,  # a step of one task would be bound to the CPUs it asks for
        "slurm_additional_parameters": {"no-requeue": True},  # a lost pass is measured again by the run
    }
    if needs.gpus:
        asked["gpus_per_node"] = needs.gpus
    if needs.memory:
        asked["mem_gb"] = needs.memory / 2**30
    if jobs == 1:  # what measures time runs alone
        asked["slurm_exclusive"] = True
    return asked


def _other_code(there: str, here: str) -> UserError:
    return UserError(
        f"the code of the workload on a node is {there}, here it is {here}",
        hint="bring the same commit of ddposink to every node",
    )


@contextmanager
def connected(request: Request, options: Options, say: Say) -> Iterator[SlurmSite]:
    """Slurm, if this machine can submit to it. Raises UserError if not."""
    if KIND == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "no Slurm here: there is no sbatch on this machine",
            hint="start the run on a login node of the cluster, from a folder that its nodes share",
        )
    yield SlurmSite(request, options, say)
