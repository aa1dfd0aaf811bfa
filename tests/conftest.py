"""Whatever starts the tests may ignore signals (nohup, a background job); tests must not inherit that.

Tests side by side (``-n``) compute with one thread each: the threads of several would wait for each other.
"""

import os
import random
import signal
from collections import Counter

import pytest

try:
    from hypothesis import settings
except ImportError:  # a machine that has what tests/gpu needs, and no more
    pass
else:  # how long an example takes says something of the machine: no test fails of it
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the fault campaign (tests/faults)")
    group.addoption(
        "--faults", type=int, default=0, metavar="N", help="N random faults instead of one a kind"
    )
    group.addoption("--fault-seed", type=int, default=random.randrange(10_000), help="repeats a campaign")
    parser.addoption("--whole-suites", action="store_true", help="measure whole suites on a cluster")
    parser.addoption("--sweep", action="store_true", help="every causal architecture of the model library")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many faults of each kind there were, how many kills, and how many were not survived."""
    faults, kills, failed = Counter[str](), Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            known = dict(getattr(report, "user_properties", ()))
            if report.when == "call" and "fault" in known:
                name = known["fault"]
                faults[name] += 1
                kills[name] += known["kills"]
                failed[name] += outcome == "failed"
    if not faults:
        return
    seed = f" (--fault-seed {config.getoption('--fault-seed')})" if config.getoption("--faults") else ""
    terminalreporter.section(f"faults{seed}")
    for name in [*sorted(faults), "all"]:
        counts = [sum(c.values()) if name == "all" else c[name] for c in (faults, kills, failed)]
        line = "{:20} {:4} faults {:4} kills -9 {:3} not survived".format(name, *counts)
        terminalreporter.write_line(line)
