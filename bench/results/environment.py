"""The fingerprint of the machine and of the software: two numbers are compared only if theirs agree.

Taken in the parent before every run, so it must be quick and must not import what it describes:
versions come from the packages' metadata, GPUs from NVML, the commit from git. The fingerprint's id
covers everything, so that every record says exactly where it came from; ``comparable`` looks only at
what moves numbers (a new commit does not: the code's version is part of every cell's id already).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from bench.track import nvml
from bench.waiting import DECIDED_BY, waiting_variables
from bench.workload import Missing

T = TypeVar("T")

# What is measured, and what measures it. Not imported, only looked up.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "gguf",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "nvidia-ml-py",
    "triton",
    "datasets",
    "huggingface-hub",
    "diffusers",
    "peft",
    "trl",
    "ray",
    "ddposink",
)
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    *DECIDED_BY,
    "KMP_AFFINITY",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)
# Found in the fingerprint, but no measured number depends on them (our own code is in the cell ids).
_REPORTING = ("ddposink", "pandas", "scipy", "pyarrow", "nvidia-ml-py", "huggingface-hub", "datasets", "ray")
# Fields of the fingerprint that move numbers: sections, compared item by item, and dotted paths.
_MEASURED = ("packages", "gpus", "threads", "cpu")
_COMPARED = ("python", "os.system", "os.machine")

Fingerprint = dict[str, Any]


def fingerprint() -> Fingerprint:
    """Describe this machine as JSON data; ``["id"]`` is a hash of all the rest."""
    found, no_gpu = gpus()
    data: Fingerprint = {
        "git": _git(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "packages": _packages(),
        "cpu": _cpu(),
        "ram_bytes": _ram_bytes(),
        "gpus": found,
        "gpu_reason": no_gpu,
        "os": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "threads": _thread_variables(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "container": _container(),
    }
    return {"id": fingerprint_id(data), **data}


def _thread_variables() -> dict[str, str]:
    """Variables that say how threads work, as children will have them."""
    environment = {**os.environ, **waiting_variables(os.environ)}
    return {name: environment[name] for name in THREAD_VARIABLES if name in environment}


def fingerprint_id(data: Mapping[str, Any]) -> str:
    """First 12 hex digits of the hash over everything but the id itself (and earlier fingerprints)."""
    kept = {key: value for key, value in data.items() if key not in ("id", "earlier")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of the fields that differ and move numbers; empty when ``a`` and ``b`` may be compared.

    A GPU is compared by name and driver, not by UUID: two cards of one kind count as one.
    """
    left, right = _flat(a), _flat(b)
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for path in _COMPARED:
        value: Any = data
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        flat[path] = value
    for section in _MEASURED:
        value = data.get(section) or {}
        if section == "gpus":
            flat["gpus"] = [(gpu.get("name"), gpu.get("driver")) for gpu in value]
        else:
            flat |= {f"{section}.{key}": item for key, item in value.items()}
    return {key: item for key, item in flat.items() if key.removeprefix("packages.") not in _REPORTING}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# As `git rev-parse --local-env-vars` says, but for the settings (safe.directory may be one of them).
_LOCAL = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_DIR", "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_REPLACE_REF_BASE", "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
}  # fmt: skip


def git_environment() -> dict[str, str]:
    """The environment without what a hook of git sets: its repository, and the index of its commit."""
    return {name: value for name, value in os.environ.items() if name not in _LOCAL}


def _git(root: Path) -> dict[str, str | bool | None]:
    """Commit of our own source tree, and whether its code differs from that commit."""
    nothing: dict[str, str | bool | None] = {"commit": None, "dirty": None}
    if not (root / ".git").exists():  # installed as a package, perhaps inside somebody else's repository
        return nothing
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(
            [*command, "--", "bench", "ddposink", "pyproject.toml"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=git_environment(),
        )
    except (OSError, subprocess.SubprocessError):
        return nothing
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {
        "commit": None if commit == "(initial)" else commit,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                model = value
            elif key in ("flags", "Features"):
                flags = set(value.split())
    except OSError:  # not Linux: the model's name must do
        pass
    return {"model": model, "cores": cores(), "flags": [flag for flag in CPU_FLAGS if flag in flags]}


def cores() -> int:
    """Cores this process may use; in a container fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return os.environ.get("container")  # noqa: SIM112  (systemd spells it in lower case)


def gpus() -> tuple[list[dict[str, Any]], str | None]:
    """Every GPU in NVML's order (CUDA_VISIBLE_DEVICES does not change it), or why none is listed."""
    devices = nvml.devices()
    if isinstance(devices, Missing):
        return [], devices.reason
    driver = _known(nvml.driver_version())
    found = []
    for gpu in devices:
        memory = _known(gpu.memory())
        total = memory.total if memory else None
        found.append(
            {"name": gpu.name, "uuid": gpu.uuid, "driver": driver, "memory_bytes": total, **_limits(gpu)}
        )
    return found, None if found else "NVML lists no device"


def _limits(gpu: nvml.Gpu) -> dict[str, float | None]:
    """What the card may draw and how fast it may run: cards of one name are set up differently."""
    import pynvml

    limits: dict[str, float | None] = {"power_limit_w": None, "sm_clock_max_mhz": None}
    with suppress(pynvml.NVMLError):
        limits["power_limit_w"] = pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu.handle) / 1000
    with suppress(pynvml.NVMLError):
        limits["sm_clock_max_mhz"] = pynvml.nvmlDeviceGetMaxClockInfo(gpu.handle, pynvml.NVML_CLOCK_SM)
    return limits


def _known(answer: T | Missing) -> T | None:
    return None if isinstance(answer, Missing) else answer


if __name__ == "__main__":
    json.dump(fingerprint(), sys.stdout, indent=2)
