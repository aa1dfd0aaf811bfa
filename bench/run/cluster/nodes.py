"""What a cluster has, and how its nodes are shared out among passes. Nothing here talks to it.

What measures time runs alone: a pass takes a whole node, unless ``jobs`` lets several share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import UserError
from bench.results.environment import Fingerprint, comparable
from bench.suite.model import Resources
from bench.text import plural

GIB = 2**30


@dataclass(frozen=True)
class Node:
    """A node and all that it has, free or not, by Ray's names (``CPU``, ``GPU``, ``memory`` in bytes)."""

    id: str
    host: str
    address: str
    has: Mapping[str, float]

    @property
    def name(self) -> str:
        """For people; several nodes may be on one host."""
        return f"{self.host} ({self.id[:6]})"


def alive(listed: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The nodes of ``ray.nodes()`` that are there, always in the same order."""
    found = (
        Node(
            str(n["NodeID"]),
            str(n["NodeManagerHostname"]),
            str(n["NodeManagerAddress"]),
            dict(n["Resources"]),
        )
        for n in listed
        if n["Alive"]
    )
    return sorted(found, key=lambda node: (node.address, node.id))


def wanted(needs: Resources) -> dict[str, float]:
    """What a pass needs, by Ray's names."""
    known = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory}
    return {name: float(value) for name, value in {**known, **needs.custom}.items() if value}


def places_on(node: Node, needs: Resources, jobs: int) -> int:
    """How many passes a node takes side by side: at most ``jobs``, and each with all that it needs."""
    room = (math.floor(node.has.get(name, 0.0) / amount) for name, amount in wanted(needs).items())
    return min(jobs, *room) if node.has.get("CPU") else 0


def share(node: Node, needs: Resources, places: int) -> dict[str, float]:
    """What each of ``places`` passes takes of a node: its part of all CPUs, so that nobody else gets in."""
    part = node.has["CPU"] / places
    part = float(math.floor(part)) if part >= 1 else math.floor(part * 1e4) / 1e4  # Ray takes no other
    return {**wanted(needs), "CPU": part}


def fitting(nodes: Sequence[Node], needs: Resources, jobs: int) -> list[Node]:
    """The nodes on which a pass can run. Raises UserError if there is none."""
    found = [node for node in nodes if places_on(node, needs, jobs)]
    if not found:
        most = {name: max((n.has.get(name, 0.0) for n in nodes), default=0.0) for name in wanted(needs)}
        has = ", ".join(_amount(name, value) for name, value in most.items()) or "no CPU"
        raise UserError(
            f"no node of the cluster has what a pass needs ({_needed(needs)}); "
            f"of {plural(len(nodes), 'node')} none has more than {has}",
            hint="ask for less under resources: in the suite, or add a node (ray start --address=…)",
        )
    return found


def alike(nodes: Mapping[str, Fingerprint]) -> tuple[list[str], dict[str, list[str]]]:
    """The most nodes whose numbers may stand beside each other, and by what each of the others differs.

    ``nodes`` are fingerprints by node; of groups of one size the first counts.
    """
    groups: list[list[str]] = []
    for name, fingerprint in nodes.items():
        for group in groups:
            if not comparable(nodes[group[0]], fingerprint):
                group.append(name)
                break
        else:
            groups.append([name])
    largest = max(groups, key=len)
    others = [name for name in nodes if name not in largest]
    return largest, {name: comparable(nodes[largest[0]], nodes[name]) for name in others}


def _needed(needs: Resources) -> str:
    return ", ".join(_amount(name, value) for name, value in wanted(needs).items()) or "a CPU"


def _amount(name: str, value: float) -> str:
    return f"{value / GIB:.1f} GiB memory" if name == "memory" else f"{value:g} {name}"
