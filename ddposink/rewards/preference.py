"""A reward learnt from people's choices, and the command that learns it.

``preference`` (= ``preference:synthetic``) comes with the package and was trained on the choices of a made-up
judge: it shows the way, not human taste. ``preference:path:DIR`` is one's own, from ``python -m
ddposink.rewards.preference train FILE --out DIR``, where FILE may come from ``python -m bench label``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddposink.errors import Unavailable, suggest
from ddposink.models.contrastive import encoder_sha256, load_encoder
from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind

if TYPE_CHECKING:
    from torch import Tensor

BUNDLED = Path(__file__).parent.parent / "data" / "preferences"
FILES = ("head.safetensors", "preference.json")
BATCH = 64


class Preference(RewardKind):
    """Bradley–Terry logits; the zero is arbitrary."""

    info = RewardInfo(
        range=(-10.0, 10.0),
        unit="logit",
        needs="nothing, or a folder of your own",
        licence="that of the comparisons (the bundled set: Apache-2.0)",
        source="Bradley and Terry 1952; ddposink/data/preferences",
        differentiable=True,
    )

    def parse(self, argument: str) -> str:
        """Empty, the name of a bundled model, or ``path:DIR``."""
        if argument.startswith("path:"):
            folder = Path(argument.removeprefix("path:"))
            if missing := [name for name in FILES if not (folder / name).is_file()]:
                raise ValueError(f"'{folder}' holds no preference model: {missing[0]} is missing")
            return argument
        known = sorted(path.parent.name for path in BUNDLED.glob("*/preference.json"))
        if argument and argument not in known:
            raise ValueError(
                f"unknown preference model '{argument}'{suggest(argument, known)}; known: "
                f"{', '.join(known)}; or path:DIR"
            )
        return argument

    def identity(self, argument: str) -> dict[str, str]:
        """Hashes of head and encoder. Raises Unavailable if they are missing."""
        digest, folder = hashlib.sha256(), _folder(argument)
        try:
            for name in FILES:
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        except OSError as error:
            raise Unavailable(f"the preference model in '{folder}' is missing: {error.strerror}") from error
        return {"sha256": digest.hexdigest(), "encoder": encoder_sha256()}

    def load(self, argument: str, device: str) -> RewardFunction:
        """Encoder and head."""
        import torch

        from ddposink.rewards.preference_fit import features, load_head

        folder = _folder(argument)
        head, card = load_head(folder)
        if card.encoder_sha256 != encoder_sha256():
            raise Unavailable(
                f"the preference model in '{folder}' was trained on another encoder: train it again"
            )
        encoder = load_encoder(device=device)
        weights = torch.from_numpy(head.weights / head.scale).to(device)
        offset = float(head.mean @ (head.weights / head.scale))

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            return (features(encoder, images, prompts).double() @ weights - offset).float()

        return reward


preference = Preference()


def _folder(argument: str) -> Path:
    if argument.startswith("path:"):
        return Path(argument.removeprefix("path:"))
    return BUNDLED / (argument or "synthetic")


def train(
    source: str, out: Path, split: str, limit: int | None, held_out: float, seed: int
) -> dict[str, Any]:
    """Fit, judge on held-out prompts and save; returns the card. Raises ValueError, Unavailable."""
    import numpy as np

    from ddposink.comparisons import read_comparisons
    from ddposink.rewards import preference_fit as fitting

    found = list(_read(read_comparisons(source, split, limit)))
    if not found:
        raise ValueError(f"'{source}' has no comparisons")
    a, b = (np.array([row[side] for row in found], np.float64) for side in (0, 1))
    choices, prompts = np.array([row[2] for row in found]), [row[3] for row in found]
    apart = fitting.split_by_prompt(prompts, held_out, seed)
    names = np.array(prompts)
    penalty = fitting.choose_penalty(a[~apart], b[~apart], choices[~apart], names[~apart], seed)
    head = fitting.fit_head(a[~apart], b[~apart], choices[~apart], penalty)
    result = fitting.accuracy(head(a[apart]) - head(b[apart]), choices[apart], list(names[apart]), seed)
    file = Path(source)
    card = fitting.Card(
        source=file.name if file.is_file() else source,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "",
        judges=sorted({row[4] for row in found if row[4]}),
        comparisons=len(found),
        prompts=len(set(prompts)),
        held_out=result,
        encoder_sha256=encoder_sha256(),
        penalty=penalty,
        seed=seed,
    )
    fitting.save_head(head, card, out)
    return vars(card)


def _read(comparisons: Iterator[Any]) -> Iterator[tuple[Any, Any, float, str, str]]:
    """Features of a and b, choice, prompt and judge of every comparison; a picture is looked at once."""
    import torch

    from ddposink.comparisons import decode
    from ddposink.rewards.preference_fit import features

    encoder, known = load_encoder(), {}

    def look(picture: Path | bytes, prompt: str, where: str) -> Any:
        key = (picture if isinstance(picture, Path) else hashlib.sha256(picture).digest(), prompt)
        if key not in known:
            pixels = torch.from_numpy(decode(picture, where).copy()).permute(2, 0, 1)[None].float() / 255
            known[key] = features(encoder, pixels, [prompt])[0].numpy()
        return known[key]

    for c in comparisons:
        yield look(c.a, c.prompt, c.where), look(c.b, c.prompt, c.where), c.choice, c.prompt, c.judge


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _app() -> None:
    """Reward models from pairwise choices."""


@app.command("train")
def train_command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A .csv, a .parquet or ORG/NAME@COMMIT.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    split: Annotated[str, typer.Option(help="Split of a hub set.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Read so many comparisons at most.")] = None,
    held_out: Annotated[float, typer.Option(min=0.01, max=0.9, help="Part of the prompts held out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split and the bootstrap.")] = 0,
) -> None:
    """Train a reward on choices, and say how often it agrees with choices about prompts it has not seen."""
    try:
        card = train(source, out, split, limit, held_out, seed)
    except (ValueError, Unavailable) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    held = card["held_out"]
    typer.echo(
        f"{card['comparisons']} comparisons, {card['prompts']} prompts; held-out accuracy "
        f"{held['accuracy']:.3f} [{held['bootstrap_low']:.3f}, {held['bootstrap_high']:.3f}] "
        f"({held['comparisons']} comparisons, {held['prompts']} prompts)\nuse it as preference:path:{out}"
    )
    typer.echo(json.dumps(card))


if __name__ == "__main__":
    app()
