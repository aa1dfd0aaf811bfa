"""What must hold before a DDPO training is worth starting, checked in seconds on the very pipeline.

A wrong log-probability, gradients that are not shared, a resumed training that no longer learns: none of
them stops a training, and all of them waste it. Each is shown here on a few samples, by either engine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.preflight_checks import CHECKS, Finding, NotPossible, Subject, batch_arithmetic, reduced
from ddposink.errors import Unavailable


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
    """Examine ``pipeline`` (a PipelineRef, its text, or a loaded StableDiffusionPipeline) under ``config``.

    Batch sizes and denoising steps are cut down first, so the time hardly depends on them. ``started``
    hears the name of each check. What goes wrong inside a check fails it. Raises ValueError for an
    unknown pipeline and Unavailable for one, or an engine, that cannot be had here.
    """
    loaded = _load(pipeline, device)
    started("batch arithmetic")
    first = _check("batch arithmetic", lambda: batch_arithmetic(config))
    if not first.ok:
        return [first]
    given = config if isinstance(config, DDPOConfig) else DDPOConfig.from_dict(dict(config))
    subject = Subject(loaded, reduced(given), disabled)
    found = [first]
    with _quiet():
        for name, question in CHECKS.items():
            started(name)
            found.append(_check(name, partial(question, subject)))
    return found


def main(pipeline: str, settings: Mapping[str, Any], *, unrepaired: bool = False, device: str = "cpu") -> int:
    """Print the preflight of ``pipeline`` under ``settings`` of `DDPOConfig`.

    Returns 0 if nothing failed, 3 if a check did, 2 if pipeline or engine cannot be had. ``unrepaired``
    runs TRL as it was released: the preflight must fail.
    """
    console = Console()
    disabled: tuple[str, ...] = ()
    if unrepaired:
        from ddposink.ddpo.trl_repairs import REPAIRS

        disabled = tuple(REPAIRS)
    try:
        with console.status("loading …") as status:
            checks = preflight(
                pipeline,
                settings,
                device=device,
                disabled=disabled,
                started=lambda name: status.update(f"checking: {name} …"),
            )
    except (ValueError, Unavailable) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        return 2
    engine = settings.get("engine", "native")
    return show(checks, console, f"{pipeline} · engine {engine}{' · unrepaired' if unrepaired else ''}")


def show(checks: Sequence[Check], console: Console, title: str) -> int:
    """Print ``checks`` as a table; 0 if none failed, else 3."""
    marks = {True: "[green]ok[/]", None: "[yellow]note[/]", False: "[bold red]FAILED[/]"}
    table = Table(title=escape(f"preflight: {title}"))
    for column in ("check", "", "found", "limit", "seconds", "note"):
        table.add_column(column, justify="right" if column in ("found", "limit", "seconds") else "left")
    for check in checks:
        words = (escape(word) for word in (check.value, check.limit))
        table.add_row(check.name, marks[check.ok], *words, f"{check.seconds:.1f}", escape(check.note))
    console.print(table)
    failed = [check.name for check in checks if check.ok is False]
    if failed:
        console.print(f"[bold red]do not train[/]: {', '.join(failed)} failed", highlight=False)
        return 3
    console.print("[bold green]ready[/]: this pipeline can be trained with this engine", highlight=False)
    return 0


def _load(pipeline: Any, device: str) -> Any:
    """A loaded pipeline from its text form or reference, or as it is."""
    if hasattr(pipeline, "unet"):
        return pipeline
    from ddposink.pipelines import PipelineRef, load_pipeline

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
def _quiet() -> Iterator[None]:
    """Loading a LoRA warns of the text encoder's, which was never meant to have one."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
