"""Commands that look at the machine, the suite format and a model before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import ResultsOption, console


def doctor(
    results: ResultsOption = Path("results"),
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also measure float32 against bfloat16, and what waiting threads cost."),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask whether the hub can be reached.")
    ] = False,
    ddpo: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE",
            help="Check instead that this diffusion pipeline can be trained, e.g. emoji-sd or path:DIR.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="With --ddpo: native, or trl (the reference).")] = "native",
    precision: Annotated[str, typer.Option(help="With --ddpo: no (fp32), bf16 or fp16.")] = "no",
    device: Annotated[str, typer.Option(help="With --ddpo: cpu, cuda or cuda:1.")] = "cpu",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --ddpo: another training setting; may be repeated."
        ),
    ] = None,
    unrepaired: Annotated[bool, typer.Option("--unrepaired", hidden=True)] = False,
) -> None:
    """Say what this machine can run, what is missing, and how to get it.

    Example: [bold]python -m bench doctor --probe[/]

    Before a DDPO training, [bold]python -m bench doctor --ddpo emoji-sd --engine trl[/] trains for a few
    steps and checks that learning sees the policy that sampled, that processes share their gradients,
    that a resumed training goes on as if uninterrupted, and that what is saved draws the same pictures.
    Exit codes then: 0 ready to train, 2 something is wrong with the request, 3 a check failed.
    """
    from bench import doctor as physician

    if ddpo is None:
        idle = {"--engine": engine != "native", "--precision": precision != "no", "--device": device != "cpu"}
        physician.refuse_idle(False, idle | {"--set": bool(set_)})
        physician.show(physician.examine(results, probe=probe, network=not offline), console())
        return
    from bench.suite.settings import parse_settings

    physician.refuse_idle(True, {"--probe": probe, "--offline": offline})
    settings = parse_settings(set_ or [])
    raise typer.Exit(
        physician.preflight(
            ddpo,
            engine=engine,
            precision=precision,
            device=device,
            settings=settings,
            unrepaired=unrepaired,
        )
    )


def schema(
    write: Annotated[
        bool, typer.Option("--write", help="Write suites/schema.json instead of printing.")
    ] = False,
) -> None:
    """Print the JSON Schema of suites, from which editors complete and check them.

    Example: [bold]python -m bench schema --write[/]
    """
    import json

    from bench import registry
    from bench.suite.schema import suite_schema

    # A line for each key, so that changes can be read, but no indentation: that is half of the bytes.
    text = json.dumps(suite_schema(registry.load(name) for name in registry.targets()), indent=0) + "\n"
    if not write:
        typer.echo(text, nl=False)
        return
    from bench.results.store import write_atomic

    write_atomic(Path("suites/schema.json"), text)
    typer.echo("wrote suites/schema.json")


def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model as a suite names it, e.g. smollm2-135m or path:DIR."),
    ],
    policy: Annotated[str, typer.Option(help="Cache policy to check.")] = "sink 4+28",
    tokens: Annotated[int, typer.Option(min=2, help="Length of the check.")] = 256,
    corpus: Annotated[str | None, typer.Option(help="Text to read; default: random tokens.")] = None,
) -> None:
    """Check on this very model that evaluation, decode and an independent yardstick agree on every token.

    The yardstick of a bounded policy feeds every token once at each place of the cache: its cost grows with
    the budget, so keep that small. Example: [bold]python -m bench verify smollm2-135m --policy 'sink 4+28'[/]
    """
    from ddposink.streaming.verify import main as check

    raise typer.Exit(check(model, policy=policy, tokens=tokens, corpus=corpus) or 0)
