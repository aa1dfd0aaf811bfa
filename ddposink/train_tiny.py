"""Train the embedded pipeline `emoji-sd` from the emoji package, on one CPU core."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from ddposink.emoji import load_emoji
from ddposink.tiny.training import State, load_average, load_state, new_state, train
from ddposink.tiny.export import SHOWN, assemble, draw, replace_folder, sheet
from ddposink.tiny.latents import encode_images, normalise, weights_of
from ddposink.tiny.text import make_tokenizer
from ddposink.tiny.unet import Denoiser, Examples, UnetRecipe, make_scheduler, unet_loss
from ddposink.tiny.vae import DecoderRecipe, VaeRecipe, decoder_loss, draw_batch, freeze_encoder, make_vae, quality, vae_loss

app = typer.Typer(add_completion=False, help=__doc__)


def _images() -> torch.Tensor:
    return torch.from_numpy(load_emoji().images).permute(0, 3, 1, 2).contiguous()


def _train(state: State, loss_of, file: Path, what: str) -> None:
    if file.is_file():
        load_state(state, file)
    console = Console()
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(what, total=state.recipe.last, completed=state.step, note="")
        for entry in train(state, loss_of, file):
            bar.update(task, completed=state.step, note=f"loss {entry['loss']:.4f}")
            if not console.is_terminal and state.step % 250 == 0:
                print(f"{what} step {state.step} {entry['seconds']:.0f} s loss {entry['loss']:.4f}", flush=True)


@app.command()
def vae(out: Path) -> None:
    """Train the autoencoder."""
    recipe = VaeRecipe()
    images, model = _images(), make_vae(recipe)
    state = new_state(recipe, model)
    _train(state, lambda step, g: vae_loss(model, recipe, draw_batch(images, recipe, step, g), g), out / "vae.safetensors", "vae")
    load_average(model, out / "vae.safetensors")
    print(f"{quality(model, images[::11]):.2f} dB")


@app.command()
def decoder(out: Path, steps: int = 8000) -> None:
    """Train the decoder further."""
    recipe = DecoderRecipe(steps=steps)
    images, model = _images(), make_vae(VaeRecipe())
    load_average(model, out / "vae.safetensors")
    print(quality(model, images[::11]))
    latents = encode_images(model, images)
    state = new_state(recipe, freeze_encoder(model))
    _train(state, lambda step, g: decoder_loss(model, recipe, images, latents, g), out / "decoder.safetensors", "decoder")


def _parts(out: Path, vae_file: Path):
    emoji, images = load_emoji(), _images()
    model = make_vae(VaeRecipe())
    load_average(model, vae_file)
    normalise(model, images)
    tokenizer = make_tokenizer([*emoji.captions, *emoji.others])
    return emoji, images, model.eval(), tokenizer


@app.command()
def unet(out: Path, steps: int = 5000, lr: float = 1.5e-3, name: str = "unet") -> None:
    """Train UNet and text encoder."""
    recipe = UnetRecipe(steps=steps, learning_rate=lr)
    emoji, images, vae, tokenizer = _parts(out, out / "vae.safetensors")
    latents = encode_images(vae, images)
    print(latents.shape, latents.mean(), latents.std((0, 2, 3)))
    data = Examples.make(latents, tokenizer, emoji.captions, emoji.others, weights_of(emoji))
    model, scheduler = Denoiser(recipe, tokenizer), make_scheduler()
    state = new_state(recipe, model)
    _train(state, lambda step, g: unet_loss(model, recipe, scheduler, data, g), out / f"{name}.safetensors", "unet")


@app.command()
def export(out: Path, target: Path) -> None:
    """Interim pipeline."""
    vae_file = out / "decoder.safetensors"
    _, images, vae, tokenizer = _parts(out, vae_file if vae_file.is_file() else out / "vae.safetensors")
    denoiser = Denoiser(UnetRecipe(), tokenizer)
    print(load_average(denoiser, out / "unet.safetensors")["step"], quality(vae, images[::11]))
    pipeline = assemble(vae, denoiser.eval(), tokenizer)
    rows = [(f"cfg {g} T {t}", draw(pipeline, SHOWN, g, t)) for g, t in ((1.0, 25), (2.5, 25), (4.0, 25), (4.0, 10))]
    sheet(rows, SHOWN, 1).save(out / "sheet.png")
    pipeline.to(torch.float16).save_pretrained(target.with_name(target.name + ".new"), safe_serialization=True)
    replace_folder(target.with_name(target.name + ".new"), target)


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
