"""Commands about single pictures: draw some with a fine-tuned pipeline, choose between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import ResultsOption, console


def generate(
    cell: Annotated[
        str,
        typer.Argument(metavar="RUN/CELL", help="A run folder or suite, and a cell's id, label or pattern."),
    ],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.")],
    results: ResultsOption = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Pictures per prompt.")] = 4,
    denoising_steps: Annotated[
        int | None, typer.Option(min=2, help="Default: as in training.", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=1.0, help="Guidance scale; default: as in training.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw prompts with a fine-tuned pipeline, the base model beside it, same noise.

    Example: [bold]python -m bench generate 'ddpo/*brisque*50' "red apple" "tiger face"[/]
    """
    from ddposink.workloads.ddpo_generate import main as draw

    paths = draw(
        cell, prompts, results=results, out=out, seeds=seeds,
        denoising_steps=denoising_steps, guidance=guidance, device=device,
    )  # fmt: skip
    console().print(f"{len(paths) - 1} pictures and {paths[-1]}", soft_wrap=True, highlight=False)


def label(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="DIR/PROMPT/*.png, or a manifest.csv (prompt, image) in DIR."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of choices; default: DIR/choices.csv.", show_default=False),
    ] = None,
    judge: Annotated[str, typer.Option(help="Who chooses; kept beside every choice.")] = "",
    seed: Annotated[int, typer.Option(help="Of order and sides; the same one resumes.")] = 0,
    per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Pairs per prompt at most.", show_default=False)
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Pick the better of two pictures on a local page; the choices train a reward, or a model.

    Example: [bold]python -m bench label pictures[/], then
    [bold]python -m ddposink.rewards.preference train pictures/choices.csv --out my-reward[/],
    or [bold]dpo_pairs: pictures/choices.csv[/] in a suite whose algorithm is dpo
    """
    from bench.errors import UserError
    from ddposink.label import main as serve

    try:
        serve(folder, out, judge=judge, seed=seed, per_prompt=per_prompt, browser=browser, tell=typer.echo)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
