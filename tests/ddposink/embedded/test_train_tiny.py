"""The command line: all stages in their order end in a pipeline that a stock class loads."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.numpy import load_file
from typer.testing import CliRunner

from ddposink.assets.emoji import EmojiSet
from ddposink.embedded import train_tiny

app = typer.Typer()
app.command()(train_tiny.main)


@pytest.fixture(autouse=True)
def _emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen pictures in place of the package."""
    images = np.random.default_rng(1).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    captions = tuple(f"toy {word}" for word in "abcdefghijklmnop")
    monkeypatch.setattr(
        train_tiny, "load_emoji", lambda: EmojiSet(images, captions, captions, ("Toys",) * 16)
    )


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def test_all_stages_end_in_a_pipeline_with_a_card(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    code, said = run("all", "--small", "--out", tmp_path, "--target", tmp_path / "sd")
    assert code == 0, said
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.safety_checker is None
    assert np.asarray(pipeline("toy a", num_inference_steps=2).images[0]).shape == (64, 64, 3)
    card = (tmp_path / "sd" / "README.md").read_text()
    weights = (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in card
    assert "own picture nearest, guidance 4: %" in card
    rows = list(csv.DictReader((tmp_path / "sd" / "loss.csv").open()))
    assert [(r["stage"], r["step"]) for r in rows] == [("vae", "4"), ("decoder", "3"), ("unet", "4")]
    assert (tmp_path / "sd" / "sheet.webp").is_file()
    assert not list(tmp_path.glob(".sd*"))  # nothing half-written is left


def test_the_flow_model_is_trained_on_the_shipped_parts_and_written_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what the package holds: put together, the stock class loads it."""
    from diffusers import StableDiffusion3Pipeline

    from ddposink.models import assembled as module
    from ddposink.models.packed import unpack

    code, said = run("flow", "--small", "--out", tmp_path)
    assert code == 0, said
    written = tmp_path / "data" / "emoji-sd3"
    code, said = run("export-flow", "--small", "--out", tmp_path, "--target", written)
    assert code == 0, said
    shipped = module.DATA / "emoji-sd3"
    names = [
        {f.relative_to(folder) for f in folder.rglob("*") if f.is_file()} for folder in (written, shipped)
    ]
    assert names[0] == names[1]
    card = (written / "README.md").read_text()
    weights = [file.read_bytes() for file in written.rglob("*.packed.safetensors")]
    assert all(hashlib.sha256(data).hexdigest() in card for data in weights)
    assert "own picture nearest, guidance 3, 2 steps, weights as trained: %" in card
    monkeypatch.setattr(module, "DATA", tmp_path / "data")
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path / "cache"))
    whole = module.assembled("emoji-sd3")
    pipeline = StableDiffusion3Pipeline.from_pretrained(whole, text_encoder_3=None, tokenizer_3=None)
    packed = load_file(written / "transformer" / "diffusion_pytorch_model.packed.safetensors")
    found = pipeline.transformer.state_dict()
    for name, value in unpack(packed).items():
        assert np.array_equal(found[name].numpy(), value.astype(np.float16))


def test_an_unfinished_one_is_made_of_the_shipped_parts_and_cut_off(tmp_path: Path) -> None:
    """Its own UNet and text encoder; everything else is `emoji-sd`'s, and nothing tells where it was made."""
    from diffusers import StableDiffusionPipeline

    from ddposink.models.diffusion import EMBEDDED

    assert run("unfinished", "--small", "--out", tmp_path)[0] == 0
    code, said = run("export-unfinished", "--small", "--out", tmp_path)
    assert code == 0, said
    assert "steps: 4.0" in said
    made = tmp_path / "emoji-sd-unfinished"
    pipeline = StableDiffusionPipeline.from_pretrained(made, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert np.asarray(pipeline("toy a", num_inference_steps=2).images[0]).shape == (64, 64, 3)
    shipped = StableDiffusionPipeline.from_pretrained(EMBEDDED["emoji-sd"], dtype=torch.float32)
    ours, theirs = pipeline.vae.state_dict(), shipped.vae.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert pipeline.tokenizer("red apple").input_ids == shipped.tokenizer("red apple").input_ids
    assert pipeline.unet.config.block_out_channels != shipped.unet.config.block_out_channels
    assert all(str(Path.cwd()) not in file.read_text() for file in made.rglob("*.json"))


def test_a_stage_that_is_done_is_not_done_again_and_more_steps_go_on(tmp_path: Path) -> None:
    assert run("vae", "--small", "--out", tmp_path)[0] == 0
    first = (tmp_path / "vae.safetensors").read_bytes()
    assert run("vae", "--small", "--out", tmp_path)[0] == 0
    assert (tmp_path / "vae.safetensors").read_bytes() == first
    assert run("vae", "--small", "--out", tmp_path, "--steps", 5)[0] == 0
    assert (tmp_path / "vae.safetensors").read_bytes() != first


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vea"], "unknown stage 'vea' (did you mean 'vae'?)"),
        (["all", "--steps", "3"], "--steps is for one stage"),
        (["unet", "--small"], "train vae first"),
        (["export", "--small"], "train vae first"),
        (["export-unfinished", "--small"], "train unfinished first"),
        (["unfinished", "--steps", "3"], "--steps is for one stage"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(words: list[str], expected: str, tmp_path: Path) -> None:
    code, said = run(*words, "--out", tmp_path)
    assert code == 2
    assert expected in said.replace("│ ", "").replace(" │", "")
