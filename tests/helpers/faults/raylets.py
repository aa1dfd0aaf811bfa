"""A node of a cluster that dies. The cluster is started once for a campaign, and ends with it."""

from __future__ import annotations

import atexit
import random
import time
from functools import lru_cache
from typing import Any

import psutil
import pytest

from helpers.faults.kinds import kind
from helpers.faults.place import PASSES, Place
from helpers.toyruns import eventually

RUN_SECONDS = 180.0  # Ray starts slowly, and takes some time to miss a node
SPEED = 0.05  # a pass takes seconds, so that a node dies in the middle of one


@lru_cache
def _cluster() -> Any:
    from helpers.raycluster import RayCluster

    made = RayCluster(nodes=2)  # one is added for every fault
    atexit.register(made.close)
    return made


@kind(1)
def kill_raylet(place: Place, chance: random.Random) -> None:
    """Kill -9 of a node's raylet or of one of its workers while its passes begin or are measured."""
    pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
    from helpers.raycluster import HASTY, QUIET, passes_left

    cluster = _cluster()
    number = cluster.add()
    place.more, place.seconds = QUIET | HASTY, RUN_SECONDS
    place.words = ("--launcher", "ray", "--address", cluster.address)
    place.write_suite(defaults={"speed": SPEED})
    run = place.start()
    node = psutil.Process(cluster.raylets[number].pid)
    busy = eventually(lambda: run.poll() is not None or _agents(node), RUN_SECONDS)
    assert busy, "the node has begun nothing"
    time.sleep(chance.uniform(0, 4))
    raylet = cluster.raylet(number)
    victims = [raylet, *_agents(node)]
    place.kill(chance.choice(victims))
    said = place.end(run, 0)
    newest = {record.cell: record for record in place.records()}
    assert len(newest) == PASSES * 3, said
    assert eventually(lambda: not passes_left(cluster), 10), passes_left(cluster)
    if raylet.is_running():  # a campaign does not gather nodes
        raylet.kill()
    assert "nothing to do" in place.run()


def _agents(node: psutil.Process) -> list[psutil.Process]:
    """Workers below ``node`` that have been given the work of an agent."""
    found = []
    for process in node.children(recursive=True):
        try:
            if "ray::Agent" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found
