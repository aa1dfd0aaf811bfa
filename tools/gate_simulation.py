"""How often does the gate's rule cry wolf, and what does it miss? A seeded simulation.

    python tools/gate_simulation.py [--gates 2000] [--write]

A session of a machine is simulated as what a benchmark sees: every process scatters, the machine drifts
while it works, and two sessions start from different levels (temperature, neighbours, memory layout).
One gate looks at eight cells. Without a true change every ``regressed`` is a false alarm; with one cell
slowed down, its ``regressed`` is a detection. Beside the gate's rule stand the rules that others use.
``--write`` puts the table into docs/explanation/gate.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.gate.against import schedule
from bench.gate.rule import Evidence, Rule, Verdict, decide

CELLS = 8
EFFECT = 0.05  # the minimum effect that metrics declare
DOC = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "gate.md"
BEGIN, END = "<!-- simulation: begin -->", "<!-- simulation: end -->"

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Machine:
    """Relative scatter of processes, drift between them (random walk), and shift of a session."""

    name: str
    scatter: float
    drift: float
    session: float
    heavy: bool = False  # Student's t with 3 degrees of freedom, for occasional outliers

    def noise(self, rng: np.random.Generator, size: int) -> Values:
        """Scatter of ``size`` processes."""
        draw = rng.standard_t(3, size) / np.sqrt(3) if self.heavy else rng.standard_normal(size)
        return self.scatter * draw

    def interleaved(self, rng: np.random.Generator, pairs: int, slower: float) -> tuple[Values, Values]:
        """Logs of base and head measured A B B A …: both share the level and the drift."""
        level = np.cumsum(self.drift * rng.standard_normal(2 * pairs)).reshape(pairs, 2)
        level[1::2] = level[1::2, ::-1]  # every second pair begins with head
        base, head = level[:, 0] + self.noise(rng, pairs), level[:, 1] + self.noise(rng, pairs)
        return base, head + np.log1p(slower)

    def stored(self, rng: np.random.Generator, runs: int, slower: float) -> tuple[Values, Values]:
        """Logs of a run of another day and one of today."""
        sides = []
        for shift in (0.0, np.log1p(slower)):
            drift = np.cumsum(self.drift * rng.standard_normal(runs))
            sides.append(self.session * rng.standard_normal() + drift + self.noise(rng, runs) + shift)
        return sides[0], sides[1]


MACHINES = (
    Machine("quiet GPU", 0.01, 0.002, 0.02),
    Machine("shared CPU", 0.05, 0.01, 0.06),
    Machine("noisy neighbour", 0.10, 0.03, 0.12, heavy=True),
)
Gate = Callable[[np.random.Generator, Machine, Values], list[Verdict]]  # slowdowns of the cells → verdicts


def one_run(rng: np.random.Generator, machine: Machine, slower: Values) -> list[Verdict]:
    """A stored run, one process a cell, and a threshold of 5 %: the usual script."""
    found = []
    for amount in slower:
        base, head = machine.stored(rng, 1, float(amount))
        found.append(Verdict.REGRESSED if head[0] - base[0] > np.log1p(EFFECT) else Verdict.PASS)
    return found


def rank_test(rng: np.random.Generator, machine: Machine, slower: Values) -> list[Verdict]:
    """A stored run, six processes a side, Mann-Whitney at 5 % in every cell."""
    found = []
    for amount in slower:
        base, head = machine.stored(rng, 6, float(amount))
        p = stats.mannwhitneyu(head, base, alternative="greater").pvalue
        found.append(Verdict.REGRESSED if p < 0.05 else Verdict.PASS)
    return found


def ours_stored(rng: np.random.Generator, machine: Machine, slower: Values) -> list[Verdict]:
    """``--baseline``, six processes a side; the new run is measured twice."""
    pairs = [machine.stored(rng, 6, float(amount)) for amount in slower]
    heads = [[head for _, head in pairs], [machine.stored(rng, 6, float(amount))[1] for amount in slower]]
    sessions = []
    for found in heads:
        sides = [(base, head) for (base, _), head in zip(pairs, found, strict=True)]
        family = [Evidence(tuple(base), tuple(head), EFFECT, paired=False) for base, head in sides]
        sessions.append([decision.verdict for decision in decide(family, Rule())])
    return confirmed(sessions[0], sessions[1])


def ours(rng: np.random.Generator, machine: Machine, slower: Values) -> list[Verdict]:
    """``--against``, six pairs."""
    return _against(rng, machine, slower, schedule(6, 6))


def until_decided(rng: np.random.Generator, machine: Machine, slower: Values) -> list[Verdict]:
    """``--against --until-decided``, up to 24 pairs."""
    return _against(rng, machine, slower, schedule(6, 24))


def confirmed(first: list[Verdict], second: list[Verdict]) -> list[Verdict]:
    """What has regressed in one session alone is inconclusive."""
    return [
        Verdict.INCONCLUSIVE if one is Verdict.REGRESSED and again is not one else one
        for one, again in zip(first, second, strict=True)
    ]


def _against(rng: np.random.Generator, machine: Machine, slower: Values, looks: list[int]) -> list[Verdict]:
    first = _session(rng, machine, slower, looks)
    suspects = [i for i, verdict in enumerate(first) if verdict is Verdict.REGRESSED]
    second = list(first)
    again = _session(rng, machine, slower[suspects], looks) if suspects else []
    for i, verdict in zip(suspects, again, strict=True):
        second[i] = verdict
    return confirmed(first, second)


def _session(rng: np.random.Generator, machine: Machine, slower: Values, looks: list[int]) -> list[Verdict]:
    data = [machine.interleaved(rng, looks[-1], float(amount)) for amount in slower]
    verdicts = [Verdict.INCONCLUSIVE] * len(slower)
    for pairs in looks:
        family = [Evidence(tuple(base[:pairs]), tuple(head[:pairs]), EFFECT) for base, head in data]
        for i, decision in enumerate(decide(family, Rule(looks=len(looks)))):
            if verdicts[i] is Verdict.INCONCLUSIVE:
                verdicts[i] = decision.verdict
        if Verdict.INCONCLUSIVE not in verdicts:
            break
    return verdicts


RULES: dict[str, Gate] = {
    "stored run, 1 process, 5 % threshold": one_run,
    "stored run, 6 processes, Mann–Whitney": rank_test,
    "gate --baseline, 6 processes": ours_stored,
    "gate --against, 6 pairs": ours,
    "gate --against --until-decided, ≤ 24 pairs": until_decided,
}


@dataclass(frozen=True)
class Rates:
    """Shares of gates: false alarms, detections of a slowdown of 10 and 20 %, and undecided cells."""

    false_alarms: float
    detected_10: float
    detected_20: float
    undecided: float


def rates(gate: Gate, machine: Machine, gates: int, seed: int = 0) -> Rates:
    """Simulate ``gates`` gates without a change and as many with one cell slowed down, twice."""
    rng = np.random.default_rng(seed)
    still = [gate(rng, machine, np.zeros(CELLS)) for _ in range(gates)]
    found = []
    for slower in (0.10, 0.20):
        changed = np.zeros(CELLS)
        changed[0] = slower
        hits = [gate(rng, machine, changed)[0] is Verdict.REGRESSED for _ in range(gates)]
        found.append(sum(hits) / gates)
    alarms = sum(Verdict.REGRESSED in verdicts for verdicts in still) / gates
    undecided = sum(verdicts.count(Verdict.INCONCLUSIVE) for verdicts in still) / gates / CELLS
    return Rates(alarms, found[0], found[1], undecided)


def table(gates: int) -> str:
    """The Markdown table of the documentation."""
    lines = [
        f"{gates:,} simulated gates of {CELLS} cells per figure, minimum effect {EFFECT:.0%}, seed 0.",
        "",
        "| machine | rule | false alarms | finds 10 % | finds 20 % | undecided cells |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for machine in MACHINES:
        for name, gate in RULES.items():
            found = rates(gate, machine, gates)
            shares = (found.false_alarms, found.detected_10, found.detected_20, found.undecided)
            cells = " | ".join(f"{share:.1%}" for share in shares)
            lines.append(f"| {machine.name} | {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOC.name}")
    wanted = parser.parse_args()
    found = table(wanted.gates)
    print(found)
    if wanted.write:
        text = DOC.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        DOC.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
