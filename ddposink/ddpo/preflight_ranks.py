"""Two processes train together for one step, and say what weights they came to.

Each is this module run as a script, started as accelerate's launcher would start it: over gloo on a CPU,
or one GPU each.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.preflight_checks import NotPossible, Subject, trained_weights

PROCESSES = 2
SECONDS = 300.0
CPU_PARAMETERS = 100e6  # a UNet larger than this takes minutes on a CPU


def weights_of_processes(subjects: Sequence[Subject]) -> list[list[dict[str, Tensor]]]:
    """For each subject the learnt weights of each process after one step.

    All are of one pipeline and train one after the other: starting the processes takes longer. Raises
    NotPossible where two processes cannot be had, RuntimeError with its last line if one fails.
    """
    on_cpu = _on_cpu(subjects[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects[0].pipeline.save_pretrained(folder / "pipeline")
        trainings = [{"config": s.config.to_dict(), "disabled": list(s.disabled)} for s in subjects]
        request = {"cpu": on_cpu, "trainings": trainings}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        port = _free_port()
        _wait([_start(folder, rank, port, on_cpu) for rank in range(PROCESSES)], folder)
        return [
            [load_file(folder / f"weights-{number}-{rank}.safetensors") for rank in range(PROCESSES)]
            for number in range(len(subjects))
        ]


def _on_cpu(subject: Subject) -> bool:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise NotPossible("this process is itself one of several: run the preflight alone")
    unet = subject.pipeline.unet
    if unet.device.type == "cuda" and torch.cuda.device_count() >= PROCESSES:
        return False
    size = sum(parameter.numel() for parameter in unet.parameters())
    if size > CPU_PARAMETERS:
        raise NotPossible(f"needs {PROCESSES} GPUs: {size / 1e6:.0f}M parameters are too many for a CPU")
    return True


def _start(folder: Path, rank: int, port: int, on_cpu: bool) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // PROCESSES)),
        "PYTHONWARNINGS": "ignore",
    }
    if on_cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "ddposink.ddpo.preflight_ranks", str(folder), str(rank)]
    with (folder / f"errors-{rank}.txt").open("wb") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait for all; if one fails or time is up, end the others, which would wait for it."""
    deadline = time.monotonic() + SECONDS
    try:
        while any(process.poll() is None for process in processes):
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, process in enumerate(processes):
        if process.returncode > 0:
            lines = (folder / f"errors-{rank}.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"process {rank} failed: {(lines or ['no message'])[-1]}")
    if any(process.returncode for process in processes):
        raise RuntimeError(f"the processes did not finish one step in {SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(folder: Path, rank: int) -> None:
    """What one process does."""
    from diffusers import StableDiffusionPipeline

    request: dict[str, Any] = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", local_files_only=True)
    if not request["cpu"]:
        pipeline = pipeline.to(f"cuda:{rank}")
    for number, training in enumerate(request["trainings"]):
        engine = Subject(pipeline, DDPOConfig.from_dict(training["config"]), training["disabled"]).engine()
        list(engine.run(1))
        weights = {name: value.contiguous() for name, value in trained_weights(engine.pipeline.unet).items()}
        save_file(weights, folder / f"weights-{number}-{rank}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]))
