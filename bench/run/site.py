"""Where a run's passes are measured: this machine, or a cluster. Chosen once, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from bench.errors import UserError
from bench.results import environment
from bench.results.environment import Fingerprint
from bench.run.launch import Launcher, LocalLauncher, check_system
from bench.suite.request import Options, Request

Say = Callable[[str], None]
ENGINES = {"ray": ("ray", "Ray"), "slurm": ("submitit", "submitit")}  # package and what people call it


class Site(Protocol):
    """A place where passes can be measured."""

    fingerprint: Fingerprint  # of the machine, or of machines that are alike
    jobs: int  # passes side by side on a machine

    def launcher(self, folder: Path, say: Say) -> AbstractContextManager[Launcher]:
        """What starts passes of the run in ``folder``; nothing of it is left afterwards."""


class LocalSite:
    """This machine."""

    def __init__(self, request: Request, options: Options) -> None:
        check_system()
        self.jobs = options.jobs or request.suite.jobs
        self.fingerprint = environment.fingerprint()
        self._preload = tuple(request.workload.preload)

    @contextmanager
    def launcher(self, folder: Path, say: Say) -> Iterator[Launcher]:
        """Children of this process."""
        yield LocalLauncher(self._preload, folder / "logs" / "server.log", self.jobs)


@contextmanager
def open_site(request: Request, options: Options, say: Say) -> Iterator[Site]:
    """Where ``options`` want the passes to run. Raises UserError, soon, if they cannot run there."""
    if options.launcher != "ray" and options.address is not None:
        raise UserError("--address is of a cluster", hint="add --launcher ray, or leave it out")
    if options.launcher == "local":
        yield LocalSite(request, options)
        return
    package, name = ENGINES[options.launcher]
    if find_spec(package) is None:
        raise UserError(
            f"--launcher {options.launcher} needs {name}, which is not installed",
            hint=f"pip install 'ddposink[{options.launcher}]'",
        )
    if options.launcher == "slurm":
        from bench.run.slurm.site import connected
    else:
        from bench.run.cluster.site import connected  # type: ignore[assignment]
    with connected(request, options, say) as site:
        yield site
