"""Children on a CPU wait without spinning, unless the user has said otherwise.

Between two parallel pieces of work the threads of OpenMP spin, ready to go on at once. On a quiet machine
that wins up to a tenth of a decode step, or nothing that shows; beside one busy process a thread that spins
holds the core that another one needs, and everything takes 1.3 to 2.3 times as long. Spinning for a while
(``GOMP_SPINCOUNT=5000``) wins most of the tenth and loses most of the rest: 43 ms quiet and 66 ms beside
one process, where passive waiting has 46 and 44 and active waiting 42 and 83. A time should depend on the
neighbours as little as it can.
"""

from __future__ import annotations

from collections.abc import Mapping

# Whoever sets one of these has decided how threads wait; runtimes read them once, when they are loaded.
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def waiting_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment of children, so that their threads wait passively."""
    return {} if any(name in environment for name in DECIDED_BY) else {"OMP_WAIT_POLICY": "PASSIVE"}
