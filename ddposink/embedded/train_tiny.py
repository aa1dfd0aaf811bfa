"""Train the embedded pipelines on captioned emoji: ``python -m ddposink.train_tiny all`` makes `emoji-sd`.

Three trainings, each cut off and gone on with at will: the autoencoder, its decoder further, and the UNet
with its text encoder. The last two need the first only and may run side by side. ``export`` writes the
pipeline. ``flow`` and ``export-flow`` make `emoji-sd3`, on the latents and words of the shipped `emoji-sd`;
``unfinished`` and ``export-unfinished`` an `emoji-sd` that was cut off early.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from ddposink.assets.catalogue import cache_dir
from ddposink.assets.emoji import load_emoji
from ddposink.errors import Unavailable, suggest

STAGES = ("vae", "decoder", "unet")
FLOW = "flow"  # another pipeline, on what the first left: not part of ``all``
UNFINISHED = "unfinished"  # likewise
EXPORT, EXPORT_FLOW, EXPORT_UNFINISHED = "export", "export-flow", "export-unfinished"
MADE = {EXPORT: "emoji-sd", EXPORT_FLOW: "emoji-sd3", EXPORT_UNFINISHED: "emoji-sd-unfinished"}
REPORT_EVERY = 250  # steps, where the output is no terminal


def main(
    what: Annotated[
        str,
        typer.Argument(
            help="vae, decoder, unet, export, or all of them; flow, export-flow: emoji-sd3's; unfinished, "
            "export-unfinished: an emoji-sd that was cut off early"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="checkpoints; by default the cache folder's tiny/", show_default=False)
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="the pipeline; by default OUT/ and its name", show_default=False),
    ] = None,
    small: Annotated[bool, typer.Option(help="a few steps of tiny networks: tries everything")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="other than the recipe's (one stage)")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train a small Stable Diffusion on emoji; goes on where it was cut off."""
    import torch

    names = (*STAGES, EXPORT, "all", FLOW, EXPORT_FLOW, UNFINISHED, EXPORT_UNFINISHED)
    if what not in names:
        raise typer.BadParameter(f"unknown stage '{what}'{suggest(what, names)}; known: {', '.join(names)}")
    if steps is not None and what not in (*STAGES, FLOW):
        raise typer.BadParameter("--steps is for one stage: vae, decoder, unet or flow")
    torch.set_num_threads(threads)
    folder = out or cache_dir() / ("tiny-small" if small else "tiny")
    stages = (*STAGES, EXPORT) if what == "all" else (what,)
    try:
        _run(stages, folder, target or folder / MADE.get(what, "emoji-sd"), small, steps)
    except (ValueError, Unavailable) as error:
        raise typer.BadParameter(str(error)) from error


def _run(stages: Sequence[str], folder: Path, target: Path, small: bool, steps: int | None) -> None:
    from dataclasses import replace

    from ddposink.embedded.pipeline.stages import SMALL, Recipes

    recipes, console = SMALL if small else Recipes(), Console()
    emoji = load_emoji()
    for stage in stages:
        _check_needed(stage, folder)
        if stage in MADE:
            from ddposink.embedded.pipeline.export import export
            from ddposink.embedded.pipeline.flow_export import export_flow
            from ddposink.embedded.pipeline.unfinished import export_unfinished

            write = {EXPORT: export, EXPORT_FLOW: export_flow, EXPORT_UNFINISHED: export_unfinished}[stage]
            for name, value in write(emoji, recipes, folder, target, quick=small).items():
                console.print(f"{name}: {value:.1f}", highlight=False)
            console.print(f"written: {target}", highlight=False, soft_wrap=True)
            continue
        if steps is not None:
            recipe = replace(getattr(recipes, stage), steps=steps, stop=None)
            recipes = replace(recipes, **{stage: recipe})
        _train(stage, emoji, recipes, folder, console)


def _check_needed(stage: str, folder: Path) -> None:
    """Raise ValueError if a stage that comes before has left nothing."""
    alone = dict.fromkeys(("vae", FLOW, UNFINISHED), ())
    needed = {EXPORT: STAGES, EXPORT_FLOW: (FLOW,), EXPORT_UNFINISHED: (UNFINISHED,)}
    before: tuple[str, ...] = (alone | needed).get(stage, ("vae",))
    for name in before:
        if not (folder / f"{name}.safetensors").is_file():
            raise ValueError(
                f"{stage} needs '{folder / name}.safetensors', which is missing: train {name} first"
            )


def _train(stage: str, emoji: object, recipes: object, folder: Path, console: Console) -> None:
    from ddposink.embedded.pipeline.stages import BEGIN
    from ddposink.embedded.pipeline.training import train

    state, loss = BEGIN[stage](emoji, recipes, folder)  # type: ignore[arg-type]
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(stage, total=state.recipe.last, completed=state.step, note="")
        for point in train(state, loss, folder / f"{stage}.safetensors"):
            bar.update(task, completed=state.step, note=f"loss {point['loss']:.4f}")
            if not console.is_terminal and state.step % REPORT_EVERY == 0:
                note = f"{stage} step {state.step} of {state.recipe.last}, loss {point['loss']:.4f}"
                console.print(note, highlight=False)
