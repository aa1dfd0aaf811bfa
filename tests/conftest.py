"""Whatever starts the tests may ignore signals (nohup, a background job); tests must not inherit that.

Tests side by side (``-n``) compute with one thread each: the threads of several would wait for each other.
"""

import os
import signal

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
    parser.addoption("--sweep", action="store_true", help="every causal architecture of the model library")
