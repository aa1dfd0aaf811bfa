"""A workload that misbehaves in every way a real one might, on request. Started in real children."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from bench.workload import Context, Cost, Metric, Missing, Pass, Samples, Scalar, Skip, View

KEEP_EVERY = 20  # positions

Mode = Literal[
    "ok",
    "raise",
    "abort",
    "segfault",
    "sigkill",
    "hang",
    "memory",
    "nan",
    "skip",
    "shout",
    "fork",
    "silent",
    "exit",
    "sys_exit",
    "undeclared",
    "foreign",
    "wordless_exit",
    "linger",
    "big",
    "bad_facts",
    "slow",
    "alloc_error",
    "full",
    "stubborn",
    "keep",
]


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody has collected yet has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class ToyParams(BaseModel):
    """Parameters of a toy cell."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode = "ok"
    length: int = Field(8, ge=1)
    at: int = 0  # the length at which the misbehaviour happens; 0: at the first cell
    speed: float = 0.0  # seconds per unit of length
    scratch: str = ""  # folder for traces that tests look for


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class SafetensorError(Exception):
    """Named as safetensors', which has no errno."""


class Toy:
    """Sums the numbers below ``length``; lengths share a pass."""

    name = "toy"
    Params = ToyParams
    metrics = (
        Metric("total", "total", "units", "higher", "exact", headline=True),
        Metric("nll", "mean NLL", "nats"),
        Metric("ms", "latency", "ms", klass="noisy"),
        Metric("vram", "VRAM", "bytes"),
    )
    views: tuple[View, ...] = ()
    prefix_axis = "length"
    preload: tuple[str, ...] = ("json",)

    def version(self) -> str:
        return os.environ.get("TOY_VERSION", "1")

    def label(self, params: BaseModel) -> str:
        return f"{params.mode} {params.length}"

    def columns(self, params: BaseModel) -> dict[str, Scalar]:
        return {"mode": params.mode, "length": params.length}

    def identity(self, params: BaseModel) -> dict[str, str]:
        return {"data": os.environ.get("TOY_DATA", "toy")}

    def cost(self, params: BaseModel) -> Cost:
        return Cost(params.length, "numbers")

    def published(self) -> list[dict[str, Scalar]]:
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        print("toy begins", flush=True)
        total = 0
        position = resumed_at = 0
        series = ctx.out / "series.txt"
        for cell in work.cells:
            params = ToyParams.model_validate(dict(cell.params))
            _trace(params, f"{os.getpid()} {params.mode} {params.length}")
            if params.mode == "keep" and not position:
                position = resumed_at = _kept(ctx, params.length)
                total = position * (position - 1) // 2
            elif params.mode not in ("ok", "keep") and params.length >= params.at:
                _misbehave(params, cell, ctx)
                if params.mode in ("silent", "nan", "bad_facts"):
                    continue
            while position < params.length:
                total += position
                position += 1
                if params.speed:
                    time.sleep(params.speed)
                if params.mode == "keep" and position % KEEP_EVERY == 0:
                    _keep(ctx, position)
                ctx.progress(position, work.cells[-1].params["length"], sum=float(total))
            with series.open("a") as file:
                file.write(f"{total}\n")
            samples = Samples(1.5, (1.0, 2.0))
            ctx.emit(
                cell,
                {"total": total, "nll": 0.5, "ms": samples, "vram": Missing("no GPU")},
                facts={"seen": position},
                conformance={"calls": position, "resumed_at": resumed_at} | _devices(),
                artifacts=[series] if cell is work.cells[-1] else [],
            )


def _devices() -> dict[str, str]:
    """The GPUs that this process may see, where somebody has chosen them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"cuda_visible": chosen} if chosen else {}


def _keep(ctx: Context, position: int) -> None:
    """Two files that belong together, the second one a folder away; never half of them."""
    part, whole = ctx.scratch / "position.part", ctx.scratch / f"at-{position:06}"
    (part / "below").mkdir(parents=True)
    (part / "position").write_text(str(position))
    (part / "below" / "check").write_text(str(-position))
    part.rename(whole)
    for older in ctx.scratch.glob("at-*"):
        if older < whole:
            shutil.rmtree(older)


def _kept(ctx: Context, length: int) -> int:
    """How far an earlier attempt has come; 0 if beyond ``length``, whose answer was lost with it."""
    found = sorted(ctx.scratch.glob("at-*"))
    if not found:
        return 0
    position = int((found[-1] / "position").read_text())
    assert (found[-1] / "below" / "check").read_text() == str(-position)
    return position if position <= length else 0


def _trace(params: ToyParams, text: str) -> None:
    if params.scratch:
        with open(Path(params.scratch) / "trace.txt", "a") as file:
            file.write(text + "\n")


def _misbehave(params: ToyParams, cell: object, ctx: Context) -> None:
    match params.mode:
        case "raise":
            raise ValueError("something\nwent wrong")
        case "abort":
            os.abort()
        case "segfault":
            ctypes.string_at(0)
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                pass
        case "memory":
            hog = [bytearray(1 << 26) for _ in range(1000)]
            raise AssertionError(len(hog))
        case "alloc_error":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "full":
            raise SafetensorError("No space left on device (os error 28)")
        case "stubborn":  # ignores a polite end, and leaves a child that holds the pipe
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(600)
            time.sleep(600)
        case "nan":
            ctx.emit(
                cell, {"total": 1, "nll": float("nan"), "ms": Samples(float("inf"), (1.0, float("inf")))}
            )
        case "skip":
            raise Skip("weights not available offline")
        case "shout":
            block = "x" * 1023 + "\n"
            for _ in range(40 * 1024):
                sys.stdout.write(block)
        case "fork":
            grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            _trace(params, f"grandchild {grandchild.pid}")
            if os.fork() == 0:  # this one keeps the pipe open
                _trace(params, f"grandchild {os.getpid()}")
                time.sleep(600)
        case "exit":
            os._exit(7)
        case "wordless_exit":
            os._exit(0)
        case "sys_exit":
            sys.exit("enough")
        case "undeclared":
            ctx.emit(cell, {"surprise": 1.0})
        case "foreign":
            ctx.emit(type("Cell", (), {"id": "no such cell", "label": "foreign"})(), {"total": 1})
        case "linger":
            import threading

            threading.Thread(target=time.sleep, args=(600,)).start()
        case "big":
            ctx.emit(cell, {"ms": Samples(1.0, tuple(float(i) for i in range(200_000)))})
            raise RuntimeError("after a big answer")
        case "bad_facts":
            ctx.emit(cell, {"total": 1}, facts={"nested": [1, 2]})
        case "slow":
            time.sleep(0.2)
