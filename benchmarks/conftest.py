"""Side by side: ours and the peer alternate in one run, and the ratio is what is reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

_duels: list[tuple[str, str, str, float, float, float, float]] = []


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
        """Peer's median time over ours: how many times faster ours is.

        The same ratio of CPU seconds stands beside it: with one thread (``OMP_NUM_THREADS=1``) it hardly
        minds other work on the machine.
        """
        peers: list[float] = []
        cpu: dict[str, list[float]] = {"ours": [], "peer": []}

        def on_cpu(name: str, run: Callable[[], Any]) -> None:
            begun = time.process_time()
            run()
            cpu[name].append(time.process_time() - begun)

        def timed_peer() -> None:
            begun = time.perf_counter()
            on_cpu("peer", peer)
            peers.append(time.perf_counter() - begun)

        self.benchmark.pedantic(
            lambda: on_cpu("ours", ours), setup=timed_peer, rounds=rounds, warmup_rounds=warm_up
        )
        cpu_ratio = statistics.median(cpu["peer"][warm_up:]) / statistics.median(cpu["ours"][warm_up:])
        mine, other = self.benchmark.stats.stats.median, statistics.median(peers[warm_up:])
        self.benchmark.extra_info |= {
            "against": against,
            "peer_median_s": other,
            "ratio": other / mine,
            "cpu_ratio": cpu_ratio,
            "ours_per_s": work / mine,
            "peer_per_s": work / other,
            "unit": unit,
        }
        _duels.append((self.name, against, unit, work / mine, work / other, other / mine, cpu_ratio))
        return other / mine


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def duel(benchmark: Any, request: pytest.FixtureRequest) -> Duel:
    return Duel(benchmark, request.node.name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _duels:
        return
    terminalreporter.section("ours beside the peer (medians, alternating)")
    for name, against, unit, ours, peer, ratio, cpu_ratio in _duels:
        terminalreporter.write_line(
            f"{name}: {ours:,.1f} {unit} against {peer:,.1f} {unit} of {against}: "
            f"{ratio:.2f} x (CPU seconds {cpu_ratio:.2f} x)"
        )
