"""What becomes of a pass whose agent gives no answer."""

import pytest

from bench.results.record import Status

pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RayTaskError,
)

from bench.run.cluster.running import end_of


def raised(error):
    """An exception of the agent's own, as it arrives."""
    return RayTaskError("report", f"Traceback\n{error!r}", error)


@pytest.mark.parametrize(
    ("error", "status", "lost", "words"),
    [
        (ActorDiedError(), Status.ERROR, True, "the worker on node n1 went away"),
        (NodeDiedError("node 10.0.0.2 is dead"), Status.ERROR, True, "the worker on node n1 went away"),
        (RaySystemError("gcs"), Status.ERROR, True, "the worker on node n1 went away"),
        (OutOfMemoryError("killed"), Status.OOM, False, "killed by Ray: node n1 ran out of memory"),
        (
            RayActorError(None, "The node was running low on memory: 1 worker killed"),
            Status.OOM,
            False,
            "killed by Ray: node n1 ran out of memory",
        ),
        (raised(MemoryError()), Status.OOM, False, "MemoryError (on node n1)"),
        (
            raised(OSError(28, "No space left on device")),
            Status.ERROR,
            False,
            "the disk is full: OSError: [Errno 28] No space left on device (on node n1)",
        ),
        (
            ActorDiedError.from_task_error(raised(ValueError("no server"))),
            Status.ERROR,
            False,
            "node n1 cannot start passes: ",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_only_what_went_away_unasked_is_lost(error, status, lost, words):
    end = end_of(error, "n1")
    assert (end.status, end.lost) == (status, lost)
    assert end.reason.startswith(words)
