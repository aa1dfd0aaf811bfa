"""A cluster as a place to measure on: reached in bounded time, its code checked, and nodes that are alike."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bench import registry
from bench.errors import UserError, listed
from bench.results.environment import THREAD_VARIABLES
from bench.run.cluster.agent import Description, describe
from bench.run.cluster.launcher import RayLauncher, Say
from bench.run.cluster.nodes import Node, alike, alive, fitting
from bench.run.launch import Launcher
from bench.suite.request import Options, Request
from bench.workload import ALLOW_CODE

ANSWER_SECONDS = 5.0  # for the head's port
CONNECT_SECONDS = 45.0  # for a first connection, from a process of its own
DESCRIBE_SECONDS = 90.0  # for all nodes to say what they are; starting a worker takes seconds
# Ray waits long for a head that is not there, and may end the process: tried where that does no harm.
TRY = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class RaySite:
    """The nodes of a cluster that are alike and have what a pass needs."""

    def __init__(self, request: Request, options: Options, say: Say) -> None:
        self.jobs = options.jobs or request.suite.jobs
        self._needs = request.suite.resources
        self._workload = request.workload
        names = (*THREAD_VARIABLES, ALLOW_CODE)
        self._variables = {name: os.environ.get(name) for name in names}
        nodes = {node.id: node for node in fitting(alive(ray.nodes()), self._needs, self.jobs)}
        known = _described(list(nodes.values()), registry.targets()[request.suite.workload], self._variables)
        _check_code(nodes, known, request.plan.version)
        chosen, others = alike({id: found.fingerprint for id, found in known.items()})
        for id, differing in others.items():
            say(f"node {nodes[id].name} is left out: it differs from the others in {listed(differing)}")
        self._nodes = [nodes[id] for id in chosen]
        self.fingerprint = known[chosen[0]].fingerprint
        say(f"cluster: {', '.join(node.name for node in self._nodes)}")

    @contextmanager
    def launcher(self, folder: Path, say: Say) -> Iterator[Launcher]:
        """Agents on the nodes; they end with the run, and with this process however it ends."""
        launcher = RayLauncher(
            self._nodes,
            self._needs,
            self.jobs,
            self.fingerprint,
            self._variables,
            self._workload,
            folder,
            say,
        )
        try:
            yield launcher
        finally:
            launcher.close()


@contextmanager
def connected(request: Request, options: Options, say: Say) -> Iterator[RaySite]:
    """A cluster, connected to until the end. Raises UserError if it cannot be had or cannot do the work."""
    address = options.address if options.address is not None else os.environ.get("RAY_ADDRESS") or "auto"
    check_answers(address)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else it warns across the live view
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        yield RaySite(request, options, say)
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raises UserError if no cluster answers at ``address``."""
    if address != "auto":
        found = re.fullmatch(r"\[?([^\s/\]]+)\]?:([0-9]{1,5})", address)
        if not found or not 0 < int(found[2]) < 65536:
            raise UserError(
                f"{address} is not the address of a cluster", hint="HOST:PORT as ray start --head says it"
            )
        try:
            socket.create_connection((found[1], int(found[2])), ANSWER_SECONDS).close()
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"no cluster answers at {address}: {error}",
                hint="see whether it runs (ray status --address=…); start one with ray start --head",
            ) from error
    command = [sys.executable, "-c", TRY, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS, check=False)
        said = done.stderr.strip().splitlines() if done.returncode else []
    except subprocess.TimeoutExpired:
        said = [f"it was silent for {CONNECT_SECONDS:g} s"]
        done = None
    if done is None or done.returncode:
        where = (
            "no cluster runs on this machine" if address == "auto" else f"no cluster can be used at {address}"
        )
        raise UserError(
            f"{where}: {said[-1] if said else 'Ray ended without a word'}",
            hint="start one with ray start --head, or join one with ray start --address=HOST:PORT; "
            "the run itself must be on one of its nodes",
        )


def _described(nodes: list[Node], target: str, variables: Any) -> dict[str, Description]:
    """What every node says of itself. Raises UserError, naming the node, if one cannot."""
    ask = ray.remote(describe)
    answers = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        answers[node.id] = ask.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(
            target, variables
        )
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=DESCRIBE_SECONDS)
    known = {}
    for node in nodes:
        try:
            known[node.id] = ray.get(answers[node.id], timeout=0)
        except GetTimeoutError:
            said = f"it has said nothing for {DESCRIBE_SECONDS:g} s"
        except RayError as error:
            said = str(error).strip().splitlines()[-1]
        if node.id not in known:
            raise UserError(
                f"node {node.name} cannot measure: {said}",
                hint="it needs the same ddposink in the same Python as here; see docs/how-to/cluster.md",
            )
    return known


def _check_code(nodes: dict[str, Node], known: dict[str, Description], version: str) -> None:
    for id, found in known.items():
        if found.version != version:
            raise UserError(
                f"the code of the workload on node {nodes[id].name} is {found.version}, here it is {version}",
                hint="bring the same commit of ddposink to every node",
            )
