"""Children on a CPU wait without spinning, unless the user has said otherwise.

Between two parallel pieces of work the threads of OpenMP spin, ready to go on at once. Beside one busy
process a thread that spins holds the core that another one needs, and everything takes 1.3 to 2.3 times as
long; beside one that keeps to its core, on a machine of two, a decode step of SmolLM2-135M took 2,670 ms for
41, where threads that wait passively took 68. What passive waiting costs on a quiet machine depends on how
long that machine takes to wake a sleeping core: the same step took as long on one, a tenth longer on another
(46 ms against 42), and twice as long on a third (81 ms against 41). Spinning for a while
(``GOMP_SPINCOUNT``) is no way between: on the third 5,000 rounds took 39 ms quiet and 106 ms beside one
process, 1,000 rounds 58 ms quiet. A time should depend on the neighbours as little as it can, so passive it
is; ``bench doctor --probe`` measures what that costs, and who has the machine alone can say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

# Whoever sets one of these has decided how threads wait; runtimes read them once, when they are loaded.
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def waiting_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment of children, so that their threads wait passively."""
    return {} if any(name in environment for name in DECIDED_BY) else {"OMP_WAIT_POLICY": "PASSIVE"}
