"""Two processes train together for one step, and say what weights they came to.

They are started as accelerate's launcher would start them: over gloo on a CPU, or one GPU each. Most of a
fresh interpreter's time goes into imports, so where nothing forbids it they are forked instead.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.preflight.subject import NotPossible, Subject, trained_weights
from ddposink.models.denoiser import denoiser

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
        (folder / "request.json").write_text(json.dumps(trainings), encoding="utf-8")
        _run(folder, on_cpu)
        return [
            [load_file(folder / f"weights-{number}-{rank}.safetensors") for rank in range(PROCESSES)]
            for number in range(len(subjects))
        ]


def _on_cpu(subject: Subject) -> bool:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise NotPossible("this process is itself one of several: run the preflight alone")
    unet = denoiser(subject.pipeline)
    if unet.device.type == "cuda" and torch.cuda.device_count() >= PROCESSES:
        return False
    size = sum(parameter.numel() for parameter in unet.parameters())
    if size > CPU_PARAMETERS:
        raise NotPossible(f"needs {PROCESSES} GPUs: {size / 1e6:.0f}M parameters are too many for a CPU")
    return True


def _run(folder: Path, on_cpu: bool) -> None:
    """Start all, wait for all; if one fails or time is up, end the others, which would wait for it."""
    # CUDA does not survive a fork, and other systems than Linux do not offer a safe one.
    forks = on_cpu and not torch.cuda.is_available() and os.uname().sysname == "Linux"
    context = multiprocessing.get_context("fork" if forks else "spawn")
    port = _free_port()
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(folder, rank, port, on_cpu), daemon=True)  # type: ignore[attr-defined]
        for rank in range(PROCESSES)
    ]
    deadline = time.monotonic() + SECONDS
    for process in ranks:
        process.start()
    try:
        while any(process.exitcode is None for process in ranks):
            if any(process.exitcode for process in ranks) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    for rank, process in enumerate(ranks):
        errors = folder / f"error-{rank}.txt"
        if process.exitcode and errors.is_file():
            raise RuntimeError(f"process {rank} failed: {errors.read_text(encoding='utf-8')}")
    if any(process.exitcode for process in ranks):
        raise RuntimeError(f"the processes were ended, or did not finish one step in {SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(folder: Path, rank: int, port: int, on_cpu: bool) -> None:
    """What one process does; leaves the reason in a file if it cannot."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",  # else accelerate sets the number of threads
    }
    if on_cpu:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)  # the only number with which a forked process may compute
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked one's parent has it
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            _train(folder, rank, on_cpu)
        except BaseException as error:
            reason = traceback.format_exception_only(error)[-1].strip()
            (folder / f"error-{rank}.txt").write_text(reason, encoding="utf-8")
            raise SystemExit(1) from error
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _train(folder: Path, rank: int, on_cpu: bool) -> None:
    from diffusers import DiffusionPipeline

    trainings: list[dict[str, Any]] = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    index = json.loads((folder / "pipeline" / "model_index.json").read_text(encoding="utf-8"))
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3") if "tokenizer_3" in index else ())
    pipeline: Any = DiffusionPipeline.from_pretrained(folder / "pipeline", local_files_only=True, **absent)
    if not on_cpu:
        pipeline = pipeline.to(f"cuda:{rank}")
    for number, training in enumerate(trainings):
        engine = Subject(pipeline, DDPOConfig.from_dict(training["config"]), training["disabled"]).engine()
        list(engine.run(1))
        weights = {
            name: value.contiguous() for name, value in trained_weights(denoiser(engine.pipeline)).items()
        }
        save_file(weights, folder / f"weights-{number}-{rank}.safetensors")
