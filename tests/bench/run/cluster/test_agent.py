"""What an agent reports while others write into the folder of what its pass keeps."""

import os
import threading
from types import SimpleNamespace

import pytest

from bench.results.record import Status
from bench.run.child import End
from bench.run.cluster import agent as module
from bench.run.cluster import scratch
from bench.run.cluster.agent import NEVER_AT_REST, Agent
from bench.run.cluster.scratch import Watch
from bench.run.context import SCRATCH

ANSWER = {"event": "cell", "cell": "c"}


@pytest.fixture
def agent(tmp_path):
    """Of a pass whose child is made up."""
    (tmp_path / SCRATCH / "p").mkdir(parents=True)
    made = Agent.__new__(Agent)
    made._root, made._changed, made._events = tmp_path, threading.Condition(), []
    made._job = SimpleNamespace(log=tmp_path / "log")
    made._running = SimpleNamespace(end=None, usage=dict)
    made._pump = SimpleNamespace(is_alive=lambda: made._running.end is None)
    made._watch, made._stopping = Watch(tmp_path, "p"), False
    made._covered, made._told, made._held_since = 0, 0, None
    return made


@pytest.fixture
def restless(agent, monkeypatch):
    """A file in the folder changes whenever somebody looks."""
    path, numbers = agent._root / SCRATCH / "p" / "a", iter(range(10**6))
    real = scratch.listing

    def write():
        with open(path, "a") as file:
            file.write("x")
        os.utime(path, ns=(number := next(numbers), number))

    def listing(folder):
        write()
        return real(folder)

    monkeypatch.setattr(scratch, "listing", listing)


def test_a_pass_that_is_over_ends_whoever_still_writes(agent, restless, monkeypatch):
    agent._running.end = End(Status.TIMEOUT, "timed out")
    assert agent.report(0, 0, 0, 0).end == agent._running.end


def test_after_its_end_a_pass_gives_one_more_moment_of_what_it_keeps(agent):
    path = agent._root / SCRATCH / "p" / "a"
    path.write_text("1")
    agent._events, agent._running.end = [ANSWER], End(Status.TIMEOUT, "timed out")
    first = agent.report(0, 0, 0, 0)
    assert (first.events, first.end) == ([ANSWER], None)
    assert first.kept is not None
    path.write_text("22")
    second = agent.report(1, 0, first.kept.number, 0)
    assert (second.events, second.kept, second.end) == ([], None, agent._running.end)


@pytest.mark.parametrize("over", [False, True])
def test_answers_that_nothing_kept_goes_with_are_held_back_and_end_the_pass_at_last(
    agent, restless, monkeypatch, over
):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    agent._events = [{"event": "progress"}, ANSWER]
    agent._running.end = End(None, None) if over else None
    found = agent.report(0, 0, 0, 0)
    assert (found.events, found.kept, found.end) == ([{"event": "progress"}], None, None)
    clock[0] += module.BUSY_SECONDS
    assert agent.report(1, 0, 0, 0).end is None
    clock[0] += 1
    last = agent.report(1, 0, 0, 0)
    assert (last.events, last.end) == ([], NEVER_AT_REST)
    assert agent._stopping


def test_a_moment_that_is_told_again_does_not_cover_a_later_answer(agent):
    """The first reply was lost on its way."""
    path = agent._root / SCRATCH / "p" / "a"
    path.write_text("1")
    agent._events = [ANSWER]
    first = agent.report(0, 0, 0, 0)
    path.write_text("22")
    agent._events = [ANSWER, ANSWER]
    again = agent.report(0, 0, 0, 0)
    assert (again.kept, again.events) == (first.kept, [ANSWER])
    last = agent.report(1, 0, 1, 0)
    assert last.events == [ANSWER]
    assert [kept.bytes for kept in last.kept.files] == [2]
