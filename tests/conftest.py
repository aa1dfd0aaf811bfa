"""Whatever starts the tests may ignore signals (nohup, a background job); tests must not inherit that."""

import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep", action="store_true", help="every causal architecture of the model library")
