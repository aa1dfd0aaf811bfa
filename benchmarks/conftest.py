"""Side by side: ours and the peer alternate in one run, and the ratio is what is reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

_duels: list[tuple[str, str, str, float, float, float]] = []


@dataclass
class Duel:
    """Runs peer, ours, peer, ours, …; ``work`` is what both do once, e.g. tokens."""

    benchmark: Any
    name: str

    def __call__(
        self,
        ours: Callable[[], Any],
        peer: Callable[[], Any],
        *,
        against: str,
        work: float,
        unit: str,
        rounds: int = 3,
        warm_up: int = 1,
    ) -> float:
        """Peer's median time over ours: how many times faster ours is."""
        peers: list[float] = []

        def timed_peer() -> None:
            begun = time.perf_counter()
            peer()
            peers.append(time.perf_counter() - begun)

        self.benchmark.pedantic(ours, setup=timed_peer, rounds=rounds, warmup_rounds=warm_up)
        mine, other = self.benchmark.stats.stats.median, statistics.median(peers[warm_up:])
        self.benchmark.extra_info |= {
            "against": against,
            "peer_median_s": other,
            "ratio": other / mine,
            "ours_per_s": work / mine,
            "peer_per_s": work / other,
            "unit": unit,
        }
        _duels.append((self.name, against, unit, work / mine, work / other, other / mine))
        return other / mine


@pytest.fixture
def duel(benchmark: Any, request: pytest.FixtureRequest) -> Duel:
    return Duel(benchmark, request.node.name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _duels:
        return
    terminalreporter.section("ours beside the peer (medians, alternating)")
    for name, against, unit, ours, peer, ratio in _duels:
        terminalreporter.write_line(
            f"{name}: {ours:,.1f} {unit} against {peer:,.1f} {unit} of {against}: {ratio:.2f} x"
        )
