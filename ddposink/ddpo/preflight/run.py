"""What must hold before a DDPO training is worth starting, checked in seconds on the very pipeline.

A wrong log-probability, gradients that are not shared, a resumed training that no longer learns: none of
them stops a training, and all of them waste it. Each is shown here on a few samples, by either engine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ddposink.ddpo import checks
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.engine import kind_of
from ddposink.ddpo.preflight.checks import CHECKS, applies, batch_arithmetic
from ddposink.ddpo.preflight.subject import Finding, NotPossible, Subject, reduced
from ddposink.ddpo.trl.repairs import REPAIRS
from ddposink.devices import check_device
from ddposink.errors import Unavailable
from ddposink.models.denoiser import PARTS, denoiser
from ddposink.models.pipeline_kinds import refused_kernel

SMALL = 20e6  # parameters of a UNet


@dataclass(frozen=True)
class Check:
    """One answer. ``ok`` is None where there is only something to know: the note says what."""

    name: str
    ok: bool | None
    value: str
    limit: str
    note: str
    seconds: float


def preflight(
    pipeline: Any,
    config: DDPOConfig | Mapping[str, Any],
    *,
    device: str = "cpu",
    disabled: Sequence[str] = (),
    started: Callable[[str], None] = lambda name: None,
) -> list[Check]:
    """Examine ``pipeline`` (a PipelineRef, its text, or one already loaded) under ``config``.

    Batch sizes and denoising steps are cut down first, so the time hardly depends on them. ``started``
    hears the name of each check. What goes wrong inside a check fails it. Raises ValueError for an
    unknown pipeline or one that does not denoise by the kernel, and Unavailable for one, or an engine,
    that cannot be had here.
    """
    with quiet():
        loaded = _load(pipeline, device)
        started("batch arithmetic")
        first = _check("batch arithmetic", partial(batch_arithmetic, config))
        if not first.ok:
            return [first]
        given = config if isinstance(config, DDPOConfig) else DDPOConfig.from_dict(dict(config))
        if (kind := kind_of(loaded)) and (why := refused_kernel(kind, given.sample_kernel, given.engine)):
            raise ValueError(why)
        subject, found = Subject(loaded, reduced(given), disabled), [first]
        with _one_thread_if_small(denoiser(loaded)):
            for name, question in CHECKS.items():
                if not applies(name, given):
                    continue
                started(name)
                found.append(_check(name, partial(question, subject)))
        return found


def main(
    pipeline: str,
    *,
    engine: str = "native",
    precision: str = "no",
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    unrepaired: bool = False,
) -> int:
    """Print the preflight of ``pipeline``; ``settings`` are further fields of `DDPOConfig`.

    Returns 0 if nothing failed, 3 if a check did, 2 if something asked for does not exist or cannot be had.
    ``unrepaired`` runs TRL as it was released: the preflight must fail.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = {"engine": "trl" if unrepaired else engine, "mixed_precision": precision}
    try:
        DDPOConfig.from_dict(chosen)  # what is wrong with these is no finding
        checks.check_names(settings or {}, [field.name for field in fields(DDPOConfig)])
        with console.status("loading …") as status:
            found = preflight(
                pipeline,
                chosen | dict(settings or {}),
                device=device,
                disabled=tuple(REPAIRS) if unrepaired else (),
                started=lambda name: status.update(f"checking: {name} …"),
            )
    except (ValueError, Unavailable) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        return 2
    title = f"{pipeline} · engine {chosen['engine']}{', unrepaired' if unrepaired else ''} · {precision}"
    return show(found, console, title.removesuffix(" · no"))


def show(found: Sequence[Check], console: Console, title: str) -> int:
    """Print what was ``found`` as a table; 0 if none failed, else 3."""
    marks = {True: "[green]ok[/]", None: "[yellow]note[/]", False: "[bold red]FAILED[/]"}
    table = Table(title=escape(f"preflight: {title}"))
    for column in ("check", "", "found", "limit", "seconds", "note"):
        table.add_column(column, justify="right" if column in ("found", "limit", "seconds") else "left")
    for check in found:
        words = (escape(word) for word in (check.value, check.limit))
        table.add_row(check.name, marks[check.ok], *words, f"{check.seconds:.1f}", escape(check.note))
    console.print(table)
    failed = [check.name for check in found if check.ok is False]
    if failed:
        console.print(f"[bold red]do not train[/]: {', '.join(failed)} failed", highlight=False)
        return 3
    console.print("[bold green]ready[/]: this pipeline can be trained with this engine", highlight=False)
    return 0


@contextmanager
def _one_thread_if_small(unet: Any) -> Iterator[None]:
    """On a busy CPU a second thread makes tiny networks many times slower, not faster."""
    threads = torch.get_num_threads()
    if unet.device.type == "cpu" and sum(parameter.numel() for parameter in unet.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load(pipeline: Any, device: str) -> Any:
    """A loaded pipeline from its text form or reference, or as it is."""
    if any(hasattr(pipeline, part) for part in PARTS):
        return pipeline
    from ddposink.models.diffusion import PipelineRef, load_pipeline

    check_device(device)
    return load_pipeline(
        PipelineRef.parse(pipeline) if isinstance(pipeline, str) else pipeline, device=device
    )


def _check(name: str, question: Callable[[], Finding]) -> Check:
    begun = time.perf_counter()
    try:
        found = question()
    except Unavailable:
        raise
    except NotPossible as reason:
        found = Finding(None, "not checked", "", str(reason))
    except Exception as error:  # whatever it is, it would have stopped the training
        lines = str(error).strip().splitlines() or ["no message"]
        found = Finding(False, type(error).__name__, "", lines[0])
    return Check(name, *found, time.perf_counter() - begun)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no warnings about parts that a pipeline need not have."""
    from transformers.utils import logging as transformers

    libraries, before = [transformers], []
    before.append((transformers.get_verbosity(), transformers.is_progress_bar_enabled()))
    transformers.set_verbosity_error()  # diffusers' import already warns through it
    from diffusers.utils import logging as diffusers

    libraries.append(diffusers)
    before.append((diffusers.get_verbosity(), diffusers.is_progress_bar_enabled()))
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
