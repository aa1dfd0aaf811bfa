"""Starts passes on the nodes of a cluster: one at a time a node, or as many as ``jobs`` says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bench.errors import UserError
from bench.results.environment import Fingerprint, comparable
from bench.results.folder import keep_fingerprint
from bench.run.child import Place
from bench.run.cluster.agent import Agent, Hello, Variables
from bench.run.cluster.nodes import Node, alive, places_on, share
from bench.run.cluster.running import Contact, RayRunning
from bench.run.launch import Refused, Running
from bench.run.meaning import OtherDataError, meaning
from bench.run.worker import Job
from bench.suite.model import Resources
from bench.workload import Workload

LOOK_SECONDS = 2.0  # how often the cluster is asked which nodes there are
GIVE_UP = 4  # workers that may go away unasked before a place is used no more
CLOSE_SECONDS = 10.0  # for agents to tidy up in

Say = Callable[[str], None]


@dataclass
class Slot:
    """Room for one pass on a node, and the agent there, if one has been started."""

    node: Node
    beside: int  # passes on this node, this one included
    takes: dict[str, float]  # of the node, by Ray's names
    agent: Any = None
    hello: Any = None
    running: RayRunning | None = None
    told: bool = False  # whether the user knows that the node is not free
    losses: int = 0  # agents that went away unasked

    @property
    def free(self) -> bool:
        """Whether a pass can be started here."""
        return self.running is None or self.running.end is not None

    def drop(self) -> None:
        """The agent is gone; the next pass gets a new one."""
        self.agent = self.hello = None
        if self.running is not None and self.running.end is not None:
            self.losses += self.running.end.lost


class RayLauncher:
    """See ``bench.run.launch.Launcher``. ``nodes`` are alike, with ``fingerprint`` for all of them."""

    def __init__(
        self,
        nodes: list[Node],
        needs: Resources,
        jobs: int,
        fingerprint: Fingerprint,
        variables: Variables,
        workload: Workload,
        folder: Path,
        say: Say,
    ) -> None:
        self._slots: list[Slot] = []
        for node in nodes:
            count = places_on(node, needs, jobs)
            self._slots += [Slot(node, count, share(node, needs, count)) for _ in range(count)]
        self._fingerprint, self._variables, self._workload = fingerprint, variables, workload
        self._folder, self._say = folder, say
        self._looked = time.monotonic()
        self._kept: dict[str, str] = {}

    def await_ready(self) -> None:
        """Nothing to wait for: a pass waits for its node by itself."""

    def places(self) -> int:
        """How many passes can be on their way now. Raises UserError if all nodes have gone."""
        self._look()
        if not self._slots:
            raise UserError(
                "no node is left of those that the passes ran on",
                hint="start the nodes again (ray start --address=…) and run the same command: it goes on",
            )
        return len(self._slots)

    def launch(self, job: Job) -> Running:
        """Start ``job`` where there is room, and rather where an agent is waiting."""
        try:
            known = meaning(self._workload, job.work.cells[0])
        except OtherDataError as error:
            return Refused(str(error))
        self._look()
        free = [slot for slot in self._slots if slot.free]
        if not free:  # its node went away since `places` was asked
            raise UserError(
                "the cluster has no room left for a pass: nodes have gone",
                hint="run the same command: it goes on",
            )
        slot = min(free, key=lambda one: (one.losses, one.agent is None))  # a node may be going away
        if slot.agent is None:
            slot.agent = self._new_agent(slot)
            slot.hello = slot.agent.hello.remote()
        contact = Contact(
            agent=slot.agent,
            hello=slot.hello,
            node=slot.node.name,
            place_of=lambda hello: self._place(slot, hello),
            lost=slot.drop,
            waiting=lambda: self._tell(slot),
            say=self._say,
            meaning=known,
        )
        slot.running = RayRunning(contact, job)
        return slot.running

    def close(self) -> None:
        """Let every agent tidy up and go, for at most some seconds."""
        agents = [slot.agent for slot in self._slots if slot.agent is not None]
        with suppress(RayError):
            ray.wait(
                [a.close.remote() for a in agents], num_returns=max(len(agents), 1), timeout=CLOSE_SECONDS
            )
        for agent in agents:
            with suppress(RayError):
                ray.kill(agent)
        self._slots.clear()

    def _new_agent(self, slot: Slot) -> Any:
        more = {name: amount for name, amount in slot.takes.items() if name not in ("CPU", "GPU", "memory")}
        options = {
            "num_cpus": slot.takes["CPU"],
            "num_gpus": slot.takes.get("GPU", 0),
            "memory": slot.takes.get("memory") or None,
            "resources": more or None,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node.id, soft=False),
        }
        return (
            ray.remote(Agent)
            .options(**options)
            .remote(self._variables, tuple(self._workload.preload), os.getcwd())
        )

    def _place(self, slot: Slot, hello: Hello) -> Place:
        """What records say of passes there. The fingerprint is kept before any record names it."""
        if differing := comparable(self._fingerprint, hello.fingerprint):
            raise UserError(
                f"node {slot.node.name} has another {', '.join(differing)} than when it was asked",
                hint="is somebody changing it? run the same command again",
            )
        env = hello.fingerprint["id"]
        if env not in self._kept:
            keep_fingerprint(self._folder, hello.fingerprint)
            self._kept[env] = slot.node.id
        facts: dict[str, str | int] = {"node": slot.node.name}
        if hello.devices:
            facts["node_devices"] = ",".join(hello.devices)
        if slot.beside > 1:
            facts["passes_side_by_side"] = slot.beside
        return Place(env, facts)

    def _look(self) -> None:
        """Give up the slots of nodes that have gone."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        there = {node.id for node in alive(ray.nodes())}
        for slot in [slot for slot in self._slots if slot.free]:
            gone = slot.node.id not in there
            if gone or slot.losses >= GIVE_UP:
                self._slots.remove(slot)
                why = "has gone away" if gone else f"is given up: {slot.losses} of its workers went away"
                self._say(f"node {slot.node.name} {why}")

    def _tell(self, slot: Slot) -> None:
        if not slot.told:
            slot.told = True
            self._say(f"waiting for node {slot.node.name}: others use it, or its worker is slow to start")
