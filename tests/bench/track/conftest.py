"""A stand-in for the NVIDIA driver library, compiled here and loaded by the real pynvml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
Ask = Callable[..., Any]

# Missing becomes {"missing": reason}; handles are left out. Everything else is plain data.
PRELUDE = """
import dataclasses, json, os, sys, types
from bench.track import nvml
from bench.track.memory import MemoryTracker
from bench.track.power import EnergyMeter
from bench.workload import Missing

def plain(value):
    if isinstance(value, Missing):
        return {"missing": value.reason}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "handle"]
        return {name: plain(getattr(value, name)) for name in names}
    return value

def answer(value):
    print(json.dumps(plain(value)))
"""

# What the trackers use of torch.cuda, for a machine that has no GPU: devices in CUDA's order.
PRETEND_TORCH = """
class PretendCuda(types.SimpleNamespace):
    def __init__(self, *uuids):
        self.uuids, self.reserved, self.allocated, self.waits = uuids, 0, 0, 0
    def is_available(self): return True
    def init(self): pass
    def current_device(self): return 0
    def get_device_properties(self, index): return types.SimpleNamespace(uuid=self.uuids[index])
    def reset_peak_memory_stats(self, device): pass
    def memory_reserved(self, device): return self.reserved
    def max_memory_reserved(self, device): return self.reserved
    def max_memory_allocated(self, device): return self.allocated
    def synchronize(self, device): self.waits += 1

def pretend_cuda(*uuids):
    sys.modules["torch"] = types.SimpleNamespace(cuda=PretendCuda(*uuids))
    return sys.modules["torch"].cuda
"""


def _build(folder: Path, *flags: str) -> Path:
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        pytest.skip("no C compiler to build the stand-in NVML library with")
    source = Path(__file__).with_name("standin_nvml.c")
    target = folder / "libnvidia-ml.so.1"
    command = [gcc, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(target), str(source)]
    subprocess.run(command, check=True)
    return folder


def _asker(folder: Path) -> Ask:
    def ask(code: str, *, prefix: tuple[str, ...] = (), **script: str) -> Any:
        """Run ``code`` in a fresh Python that finds the stand-in; what it passes to ``answer`` comes back."""
        env = {
            **{key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"},
            "LD_LIBRARY_PATH": str(folder),
            "PYTHONPATH": str(ROOT),
            **script,
        }
        program = PRELUDE + PRETEND_TORCH + textwrap.dedent(code)
        done = subprocess.run(
            [*prefix, sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Ask a current driver."""
    return _asker(_build(tmp_path_factory.mktemp("driver")))


@pytest.fixture(scope="session")
def ask_old(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Ask a driver that has no version 2 of the memory query."""
    return _asker(_build(tmp_path_factory.mktemp("old_driver"), "-DOLD_DRIVER"))


@pytest.fixture(scope="session")
def ask_nobody(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Ask where the driver's library is a file that cannot be loaded, as good as none."""
    folder = tmp_path_factory.mktemp("no_driver")
    (folder / "libnvidia-ml.so.1").write_text("not a library")
    return _asker(folder)
