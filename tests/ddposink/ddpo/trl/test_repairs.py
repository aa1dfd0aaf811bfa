"""Each breakage of TRL 0.23.1 is shown on TRL itself, and then that its repair, and no more, mends it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from ddposink.ddpo.trl.repairs import REPAIRS, repaired, require_trl
from ddposink.errors import Unavailable
from helpers.tiny import tiny_pipeline

SMALL = {
    "sample_num_steps": 2,
    "sample_batch_size": 2,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 2,
    "train_learning_rate": 1e-2,
    "mixed_precision": "no",
}
LORA = "pytorch_lora_weights.safetensors"


def brightness(images: torch.Tensor, prompts: tuple[str, ...], _: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    return images.float().mean(dim=(1, 2, 3)), {}


def trainer(folder: Path, *disabled: str, reward: Any = brightness, hook: Any = None, **settings: Any) -> Any:
    """TRL's trainer of the pipeline in ``folder``, under all repairs but the ``disabled``."""
    classes = repaired(disabled)
    random.seed(0)
    pipeline = classes.pipeline(str(folder))
    config = classes.config(**SMALL | settings)
    made = classes.trainer(config, reward, lambda: (random.choice(["cat", "dog"]), {}), pipeline, hook)
    pipeline.set_progress_bar_config(disable=True)
    return made


def unet_output(pipeline: Any) -> torch.Tensor:
    """What the UNet, live, makes of a fixed input."""
    unet = pipeline.unet.float().eval()
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 12, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(sample, 500, text).sample


def lora(made: Any) -> dict[str, torch.Tensor]:
    named = made.sd_pipeline.unet.named_parameters()
    return {name: value.detach().clone() for name, value in named if "lora" in name}


def test_process_state(saved_pipeline: Path) -> None:
    with pytest.raises(RuntimeError, match="initialize the accelerate state"):
        trainer(saved_pipeline, "process-state")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert trainer(saved_pipeline).step(0, 0) == 1


def _two_processes(
    rank: int, port: int, saved_pipeline: Path, disabled: tuple[str, ...], answers: Any
) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    made = trainer(saved_pipeline, *disabled)
    made.step(0, 0)
    answers.put((rank, {name: value.numpy() for name, value in lora(made).items()}))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="forks, which CUDA does not survive")
@pytest.mark.parametrize(("disabled", "equal"), [(("gradient-sync",), False), ((), True)])
def test_gradient_sync(saved_pipeline: Path, disabled: tuple[str, ...], equal: bool) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    work = [
        context.Process(target=_two_processes, args=(rank, port, saved_pipeline, disabled, answers))
        for rank in (0, 1)
    ]
    for process in work:
        process.start()
    weights = dict(answers.get(timeout=60) for _ in work)
    for process in work:
        process.join(timeout=60)
    assert len(weights[0]) > 0
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0]) == equal


def test_lora_resume(saved_pipeline: Path, tmp_path: Path) -> None:
    first = trainer(saved_pipeline)
    first.step(0, 0)
    saved = lora(first)
    first.accelerator.save_state(str(tmp_path))

    broken = trainer(saved_pipeline, "lora-resume")
    broken.accelerator.load_state(str(tmp_path))
    assert broken.sd_pipeline.unet.active_adapters() == ["default_1"]  # not the optimizer's
    before = unet_output(broken.sd_pipeline)
    broken.step(1, 1)
    assert torch.equal(unet_output(broken.sd_pipeline), before)  # nothing is learnt

    mended = trainer(saved_pipeline)
    mended.accelerator.load_state(str(tmp_path))
    assert mended.sd_pipeline.unet.active_adapters() == ["default"]
    assert all(torch.equal(value, saved[name]) for name, value in lora(mended).items())
    before = unet_output(mended.sd_pipeline)
    mended.step(1, 1)
    assert not torch.equal(unet_output(mended.sd_pipeline), before)


def test_lora_resume_refuses_weights_of_another_model(saved_pipeline: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    made = trainer(saved_pipeline)
    made.accelerator.save_state(str(tmp_path))
    state = load_file(tmp_path / LORA)
    name = min(state)
    save_file({**state, name: state[name][:, :1].contiguous()}, tmp_path / LORA)
    with pytest.raises(ValueError, match=r"is \(\d+, 1\), not"):
        made.accelerator.load_state(str(tmp_path))
    del state[name]
    save_file(state, tmp_path / LORA)
    with pytest.raises(ValueError, match="not this model's: 1 differ"):
        made.accelerator.load_state(str(tmp_path))


def test_lora_folder(saved_pipeline: Path, tmp_path: Path) -> None:
    first = trainer(saved_pipeline)
    first.step(0, 0)
    trained = unet_output(first.sd_pipeline)
    untrained = unet_output(tiny_pipeline())
    assert not torch.equal(trained, untrained)
    first.save_model(tmp_path)

    broken = trainer(tmp_path, "lora-folder")
    assert broken.sd_pipeline.unet.active_adapters() == ["default"]  # the fresh one
    torch.testing.assert_close(unet_output(broken.sd_pipeline), untrained, rtol=0, atol=1e-6)

    mended = trainer(tmp_path)
    torch.testing.assert_close(unet_output(mended.sd_pipeline), trained, rtol=0, atol=1e-6)
    mended.step(0, 0)
    assert list(mended.sd_pipeline.unet.peft_config) == ["default"]
    assert (unet_output(mended.sd_pipeline) - trained).abs().max() > 1e-5


def test_save_pretrained(saved_pipeline: Path, tmp_path: Path) -> None:
    plain = load_file(saved_pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    for disabled in (["save-pretrained"], []):
        made = trainer(saved_pipeline, *disabled)
        made.step(0, 0)
        made.sd_pipeline.save_pretrained(str(tmp_path))
        unet, info = UNet2DConditionModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
        if disabled:
            assert len(info["missing_keys"]) > 0  # filled with random numbers
            continue
        assert info["missing_keys"] == []
        assert all(torch.equal(value, plain[name]) for name, value in unet.state_dict().items())
        stock = StableDiffusionPipeline.from_pretrained(tmp_path)
        stock.load_lora_weights(tmp_path)
        expected = unet_output(made.sd_pipeline)
        torch.testing.assert_close(unet_output(stock), expected, rtol=0, atol=1e-6)


def test_model_card(saved_pipeline: Path, tmp_path: Path) -> None:
    broken = trainer(saved_pipeline, "model-card")
    with pytest.raises(AttributeError, match="is_world_process_zero"):
        broken.save_pretrained(tmp_path / "a")
    with pytest.raises(AttributeError, match="is_world_process_zero"):
        broken.create_model_card("name")
    with pytest.raises(AttributeError, match="save_model"):
        broken.save_model(tmp_path / "a")

    mended = trainer(saved_pipeline, logdir=str(tmp_path / "logs"))
    mended.save_pretrained(tmp_path / "b")
    mended.save_model(tmp_path / "c")
    mended.create_model_card("a tuned model")
    for name in ("b", "c"):
        assert (tmp_path / name / LORA).is_file()
        assert (tmp_path / name / "model_index.json").is_file()
    assert "DDPO" in (tmp_path / "b" / "README.md").read_text()
    assert "a tuned model" in (tmp_path / "logs" / "README.md").read_text()
    assert '"sample_num_steps": 2' in (tmp_path / "b" / "config.json").read_text()


def test_async_rewards(saved_pipeline: Path) -> None:
    with pytest.raises(AttributeError, match="result"):
        trainer(saved_pipeline, "async-rewards", async_reward_computation=True).step(0, 0)
    one, other = trainer(saved_pipeline), trainer(saved_pipeline, async_reward_computation=True)
    batches = [[torch.rand(2, 3, 4, 4), ("cat", "dog"), ({}, {})] for _ in range(3)]
    expected, _ = one.compute_rewards(batches)
    found, data = other.compute_rewards(batches, is_async=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert data == ({}, {}, {})
    trainer(saved_pipeline, async_reward_computation=True).step(0, 0)


class TensorBoardLike(GeneralTracker):
    """Accelerate's TensorBoard tracker, writing to a list: tensorboard itself need not be installed."""

    name = "tensorboard-like"
    requires_logging_directory = False
    tracker = None
    log = TensorBoardTracker.log

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, float] = {}
        self.writer = types.SimpleNamespace(
            add_scalar=lambda name, value, **_: self.scalars.__setitem__(name, value), flush=lambda: None
        )

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass


def test_plain_statistics(saved_pipeline: Path) -> None:
    for disabled in (["plain-statistics"], []):
        AcceleratorState._reset_state(reset_partial_state=True)
        tracker = TensorBoardLike() if trainer(saved_pipeline) else None
        trainer(saved_pipeline, *disabled, log_with=tracker).step(0, 0)
        assert {"loss", "approx_kl", "clipfrac", "epoch"} <= set(tracker.scalars)
        found = {"reward_mean", "reward_std"} & set(tracker.scalars)
        assert found == (set() if disabled else {"reward_mean", "reward_std"})


def test_image_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=8, **small)
    text = CLIPTextConfig(vocab_size=32, projection_dim=8, **small)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    head = torch.nn.Linear(8, 1)
    images = torch.rand(3, 3, 24, 24)

    broken = _trl_scorer(monkeypatch)
    broken.clip, broken.mlp, broken.dtype = clip, head, torch.float32
    broken.normalize, broken.target_size = torch.nn.Identity(), 16
    with pytest.raises((TypeError, AttributeError)):
        broken(images)

    mended = repaired().scorer(clip, head)
    scores = mended(images)
    pixels = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        pooled = clip.vision_model(pixel_values=(pixels - mean) / deviation).pooler_output
        embedding = clip.visual_projection(pooled)
        expected = head(embedding / embedding.norm(dim=-1, keepdim=True)).squeeze(1)
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, expected)


def _trl_scorer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TRL's own scorer, without weights and with a stand-in for torchvision, which it imports."""
    transforms = types.SimpleNamespace(
        Resize=lambda size: lambda x: torch.nn.functional.interpolate(x, (size, size), mode="bilinear"),
        Normalize=lambda mean, std: torch.nn.Identity(),
    )
    stand_in = types.ModuleType("torchvision")
    stand_in.transforms = transforms  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    from trl.models.auxiliary_modules import AestheticScorer

    scorer = AestheticScorer.__new__(AestheticScorer)
    torch.nn.Module.__init__(scorer)
    return scorer


def test_fp16_on_cpu(saved_pipeline: Path) -> None:
    with contextlib.suppress(ValueError):  # how older accelerate refuses it
        broken = trainer(saved_pipeline, "fp16-on-cpu", mixed_precision="fp16")
        assert broken.sd_pipeline.unet.dtype == torch.float16  # silently, and without loss scaling
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.warns(UserWarning, match="training in fp32"):
        mended = trainer(saved_pipeline, mixed_precision="fp16")
    assert mended.sd_pipeline.unet.dtype == torch.float32
    assert mended.accelerator.mixed_precision == "no"


def test_final_save(saved_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError):  # the second epoch is to be saved, to nowhere
        trainer(saved_pipeline, "final-save", num_epochs=2).train()
    project = {"project_dir": str(tmp_path / "trl"), "automatic_checkpoint_naming": True}
    trainer(saved_pipeline, "final-save", num_epochs=4, save_freq=2, project_kwargs=project).train()
    assert _checkpoints(tmp_path / "trl") == ["checkpoint_0"]  # epoch 2; epoch 3 is lost

    trainer(saved_pipeline, num_epochs=1, logdir=str(tmp_path / "one")).train()
    assert _checkpoints(tmp_path / "one") == ["checkpoint_0"]
    common = {"save_freq": 2, "logdir": str(tmp_path / "more"), "num_checkpoint_limit": 2}
    trainer(saved_pipeline, num_epochs=4, **common).train()
    assert _checkpoints(tmp_path / "more") == ["checkpoint_2", "checkpoint_3"]
    resumed = trainer(
        saved_pipeline, num_epochs=5, resume_from=str(tmp_path / "more" / "checkpoints"), **common
    )
    assert resumed.first_epoch == 4
    resumed.train()
    assert _checkpoints(tmp_path / "more") == ["checkpoint_3", "checkpoint_4"]


def _checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_negative_prompts(saved_pipeline: Path) -> None:
    def rows(*disabled: str, prompts: str = "") -> torch.Tensor:
        return trainer(saved_pipeline, *disabled, negative_prompts=prompts).neg_prompt_embed.repeat(3, 1, 1)

    cat, dog = rows(prompts="cat")[0], rows(prompts="dog")[0]
    broken = rows("negative-prompts", prompts="cat, dog")
    assert torch.equal(broken[0], broken[1])
    assert not torch.equal(broken[0], cat)
    assert torch.equal(rows(prompts="cat, dog"), torch.stack([cat, dog, cat]))
    assert torch.equal(rows(), rows("negative-prompts"))  # TRL's default is as it was
    trainer(saved_pipeline, negative_prompts="cat, dog").step(0, 0)


def test_image_hook(saved_pipeline: Path) -> None:
    with pytest.raises(IndexError):
        trainer(saved_pipeline, "image-hook", hook=lambda *_: None).step(0, 0)
    seen = []

    def hook(batches: Any, step: int, tracker: Any) -> None:
        tracker.log_images({"pictures": batches[0][0]}, step=step)
        seen.append((len(batches), step))

    trainer(saved_pipeline, hook=hook).step(0, 0)
    assert seen == [(1, 0)]


def test_nothing_is_changed_in_trl(saved_pipeline: Path) -> None:
    import trl

    before = {**vars(trl.DDPOTrainer)}, {**vars(trl.DefaultDDPOStableDiffusionPipeline)}
    trainer(saved_pipeline).step(0, 0)
    assert before == ({**vars(trl.DDPOTrainer)}, {**vars(trl.DefaultDDPOStableDiffusionPipeline)})
    plain = repaired(REPAIRS)
    assert plain.trainer.__mro__[1] is trl.DDPOTrainer
    assert plain.pipeline.__mro__[1] is trl.DefaultDDPOStableDiffusionPipeline


def test_unknown_repair() -> None:
    with pytest.raises(ValueError, match="no repair 'lora-resum' \\(did you mean 'lora-resume'"):
        repaired(["lora-resum"])


@pytest.mark.parametrize("version", ["0.24.0", "0.23.0", None])
def test_other_versions_are_refused(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(_: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(metadata, "version", installed)
    with pytest.raises(Unavailable, match=r"needs trl==0\.23\.1") as error:
        require_trl()
    assert (version or "not installed") in str(error.value)
