"""A real cluster of three raylets on the loopback, in a folder of its own, that ends with the test."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

TESTS = Path(__file__).parents[1]
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
# A node that is gone should be missed within seconds.
HASTY = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
STORE = 80 * 2**20  # bytes; the smallest that Ray takes is 75 MB
START_SECONDS = 90.0
PR_SET_PDEATHSIG = 1


class RayCluster:
    """Nodes of one CPU each (``cpus``); all that is started is known by a mark in its environment."""

    def __init__(self, nodes: int = 3, cpus: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a short one, for sockets
        self.mark = self.folder.name
        self.cpus = cpus
        self.address = f"127.0.0.1:{free_port()}"
        self.raylets: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(nodes):  # one after the other: those of one address trip over each other
                self.add()
        except BaseException:
            self.close()
            raise

    def environment(self) -> dict[str, str]:
        """For whatever has to do with this cluster, its driver too."""
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        own = {"PYTHONPATH": paths, "RAY_CLUSTER_MARK": self.mark, "TMPDIR": str(self.temporary)}
        return os.environ | QUIET | HASTY | own

    @property
    def temporary(self) -> Path:
        """Where agents keep what they do not need for long."""
        path = self.folder / "t"
        path.mkdir(exist_ok=True)
        return path

    def add(self, *words: str, **environment: str) -> int:
        """Start a node and wait for it; its number."""
        where = ["--address", self.address]
        if not self.raylets:
            where = ["--head", "--port", self.address.rpartition(":")[2], "--include-dashboard=false"]
            where += ["--temp-dir", str(self.folder / "r")]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where]
        command += ["--node-ip-address", "127.0.0.1", "--num-cpus", str(self.cpus), "--num-gpus", "0"]
        command += ["--object-store-memory", str(STORE), "--disable-usage-stats", *words]
        with open(self.folder / f"node{len(self.raylets)}.log", "wb") as log:
            started = subprocess.Popen(
                command,
                env=self.environment() | environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
        self.raylets.append(started)
        number = len(self.raylets) - 1
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in (self.folder / f"node{number}.log").read_bytes():
            assert self.raylets[number].poll() is None, "a node ended while it started"
            assert time.monotonic() < deadline, "a node does not start"
            time.sleep(0.1)
        return number

    def end(self, number: int) -> None:
        """End a node as `ray stop` does, and wait until nothing of it is left."""
        node = psutil.Process(self.raylets[number].pid)
        all_of_it = [node, *node.children(recursive=True)]
        node.terminate()
        psutil.wait_procs(all_of_it, timeout=START_SECONDS)

    def family(self) -> list[psutil.Process]:
        """Everything that was started for this cluster and is alive."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("RAY_CLUSTER_MARK") == self.mark:
                    found.append(process)
        return found

    def raylet(self, number: int) -> psutil.Process:
        """The raylet of a node."""
        for process in psutil.Process(self.raylets[number].pid).children(recursive=True):
            if process.name() == "raylet":
                return process
        raise AssertionError("this node has no raylet")

    def close(self) -> None:
        """End all of it."""
        for started in self.raylets:
            started.send_signal(signal.SIGTERM)
        for started in self.raylets:
            with suppress(subprocess.TimeoutExpired):
                started.wait(10)
        for process in self.family():
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def passes_left(cluster: RayCluster) -> list[psutil.Process]:
    """Children of passes that are still there, and their fork servers."""
    return [process for process in cluster.family() if "multiprocessing.forkserver" in words(process)]


def die_with_parent() -> None:
    """In a new process: be told to end when the tests are gone, however they went (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def words(process: psutil.Process) -> str:
    """Its command line; empty for one that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
