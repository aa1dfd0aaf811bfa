"""A script written for TRL, its import changed; and what the two classes promise beyond it."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ddposink.ddpo import DDPOConfig as EngineConfig
from ddposink.ddpo import make_engine
from ddposink.ddpo.names.config import checked
from ddposink.ddpo.trl_names import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from ddposink.errors import Unavailable
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

FLAGS = """--num_epochs=2 --train_gradient_accumulation_steps=1 --sample_num_steps=3 --sample_batch_size=6
    --train_batch_size=3 --sample_num_batches_per_epoch=4 --per_prompt_stat_tracking=True
    --per_prompt_stat_tracking_buffer_size=32 --tracker_project_name=stable_diffusion_training
    --log_with=wandb --use_lora=True --train_learning_rate=0.003"""


@dataclass
class ScriptArguments:
    """As in the script: it has an argument that an engine's configuration has too."""

    pretrained_model: str = field(default="runwayml/stable-diffusion-v1-5")
    pretrained_revision: str = field(default="main")
    use_lora: bool = field(default=True)


def scorer(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
    assert [about["length"] for about in metadata] == [len(prompt) for prompt in prompts]
    return brightness(images, list(prompts)), {}


def prompt_fn() -> tuple[str, dict[str, int]]:
    prompt = random.choice(PROMPTS)
    return prompt, {"length": len(prompt)}


def small(folder: Path, **values: Any) -> DDPOConfig:
    short = {"sample_num_steps": 2, "sample_batch_size": 2, "train_batch_size": 2, "logdir": str(folder)}
    return DDPOConfig(**short | {"train_learning_rate": 3e-3} | values)


def weights(trainer: DDPOTrainer) -> dict[str, torch.Tensor]:
    unet = trainer.engine.pipeline.unet
    return {name: p.detach().clone() for name, p in unet.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore:log_with 'wandb'")
def test_the_blogs_script(saved_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import HfArgumentParser

    monkeypatch.chdir(tmp_path)
    seen = []

    def image_outputs_logger(image_data: Any, global_step: int, accelerate_logger: Any) -> None:
        result = {}
        images, prompts, _, rewards, _ = image_data[-1]
        for i, image in enumerate(images):
            result[f"{prompts[i]:.25} | {rewards[i].item():.2f}"] = image.unsqueeze(0).float()
        accelerate_logger.log_images(result, step=global_step)
        seen.append((len(image_data), global_step, images.shape))

    parser = HfArgumentParser((ScriptArguments, DDPOConfig))
    args, training_args = parser.parse_args_into_dataclasses(
        [*FLAGS.split(), f"--pretrained_model={saved_pipeline}"]
    )
    training_args.project_kwargs = {
        "logging_dir": "./logs",
        "automatic_checkpoint_naming": True,
        "total_limit": 5,
        "project_dir": "./save",
    }
    pipeline = DefaultDDPOStableDiffusionPipeline(
        args.pretrained_model, pretrained_model_revision=args.pretrained_revision, use_lora=args.use_lora
    )
    trainer = DDPOTrainer(training_args, scorer, prompt_fn, pipeline, image_samples_hook=image_outputs_logger)
    trainer.train()
    trainer.save_pretrained("tuned")

    assert seen == [(4, 0, (6, 3, 16, 16)), (4, 8, (6, 3, 16, 16))]
    assert [found.name for found in Path("save/checkpoints").iterdir()] == ["checkpoint_1"]
    reloaded = DefaultDDPOStableDiffusionPipeline("tuned")
    drawn = [
        torch.from_numpy(
            which(
                ["cat"],
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
        )
        for which in (pipeline, reloaded, DefaultDDPOStableDiffusionPipeline(str(saved_pipeline)))
    ]
    assert torch.allclose(drawn[0], drawn[1], atol=1e-5)
    assert (drawn[0] - drawn[2]).abs().max() > 1e-4  # and something was learnt
    DDPOTrainer(small(tmp_path), scorer, prompt_fn, reloaded).train(1)  # its LoRA is learnt on


def test_it_is_the_engine_with_these_prompts(tmp_path: Path) -> None:
    config = small(tmp_path)
    trainer = DDPOTrainer(config, scorer, prompt_fn, tiny_pipeline())
    trainer.train(2)
    like = checked(config, use_lora=True)
    plain = make_engine(like, tiny_pipeline(), brightness, lambda: prompt_fn()[0])
    list(plain.run(2))
    found = {n: p for n, p in plain.pipeline.unet.named_parameters() if p.requires_grad}
    assert all(torch.equal(value, found[name]) for name, value in weights(trainer).items())


def test_resumed_is_uninterrupted_and_old_checkpoints_go(tmp_path: Path) -> None:
    whole = DDPOTrainer(small(tmp_path / "a", num_checkpoint_limit=2), scorer, prompt_fn, tiny_pipeline())
    whole.train(4)
    kept = sorted(found.name for found in (tmp_path / "a" / "checkpoints").iterdir())
    assert kept == ["checkpoint_2", "checkpoint_3"]
    DDPOTrainer(small(tmp_path / "b"), scorer, prompt_fn, tiny_pipeline()).train(2)
    config = small(tmp_path / "b", resume_from=str(tmp_path / "b" / "checkpoints"), num_epochs=4)
    resumed = DDPOTrainer(config, scorer, prompt_fn, tiny_pipeline())
    assert resumed.engine.step == 2
    resumed.train()
    after = weights(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights(whole).items())


def test_anything_may_be_assigned_and_is_checked_by_the_trainer(tmp_path: Path) -> None:
    config = small(tmp_path, num_epochs=3)
    config.sample_num_steps, config.note_of_a_script = 0, "mine"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="sample_num_steps must be at least 2, not 0"):
        DDPOTrainer(config, scorer, prompt_fn, tiny_pipeline())
    config.sample_num_steps = 2
    trainer = DDPOTrainer(config, scorer, prompt_fn, tiny_pipeline())
    assert trainer.config is config
    assert config.to_dict()["note_of_a_script"] == "mine"
    assert DDPOConfig(project_kwargs={"total_limit": 5}).to_dict()["project_kwargs/total_limit"] == 5


def test_only_bookkeeping_of_the_engines_may_be_assigned() -> None:
    config = EngineConfig()
    config.num_epochs, config.log_with = 3, "tensorboard"
    assert (config.num_epochs, config.log_with) == (3, "tensorboard")
    with pytest.raises(ValueError, match="num_epochs must be a whole number"):
        config.num_epochs = -1
    assert config.num_epochs == 3
    with pytest.raises(FrozenInstanceError, match="'sample_num_steps' cannot be assigned"):
        config.sample_num_steps = 5
    with pytest.raises(ValueError, match=r"no setting 'num_epoch'.*'num_epochs'"):
        config.num_epoch = 5  # type: ignore[attr-defined]


def test_what_cannot_be_had_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match=r"which commit of runwayml/x 'main' is .*HF_HUB_OFFLINE.* folder"):
        DefaultDDPOStableDiffusionPipeline("runwayml/x")
    trainer = DDPOTrainer(small(tmp_path), scorer, prompt_fn, tiny_pipeline())
    with pytest.raises(Unavailable, match=r"saved instead: hf upload me/mine .*pretrained"):
        trainer.push_to_hub("me/mine")
    assert (tmp_path / "pretrained" / "model_index.json").is_file()
    with pytest.raises(ValueError, match="no checkpoint_<epoch>"):
        DDPOTrainer(small(tmp_path, resume_from=str(tmp_path)), scorer, prompt_fn, tiny_pipeline())
    with pytest.raises(ValueError, match="the prompt function answered 7, not a text"):
        DDPOTrainer(small(tmp_path), scorer, lambda: (7, {}), tiny_pipeline()).train(1)
    with pytest.raises(ValueError, match=r"must answer \(prompt, metadata\), not 'cat'"):
        DDPOTrainer(small(tmp_path), scorer, lambda: "cat", tiny_pipeline()).train(1)  # type: ignore


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ("abc", r"one text, whose letters would be drawn: write \['abc'\]"),
        (["x", None], "prompt 2 is no text but None"),
        ([], "no prompts to draw from"),
        (7, "a list of texts or a function"),
    ],
)
@pytest.mark.parametrize("engine", ["native", "trl"])
def test_prompts_that_are_none_are_refused(engine: Any, prompts: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_engine(EngineConfig(engine=engine), None, brightness, prompts)


def test_trls_names_are_exported() -> None:
    from ddposink import ddpo

    assert ddpo.DDPOTrainer is DDPOTrainer
    assert ddpo.DefaultDDPOStableDiffusionPipeline is DefaultDDPOStableDiffusionPipeline
    with pytest.raises(AttributeError, match="no attribute 'DDPOTrainr'"):
        ddpo.DDPOTrainr  # noqa: B018


def test_trls_signatures() -> None:
    import inspect

    trl = pytest.importorskip("trl")
    for ours in (DDPOTrainer, DefaultDDPOStableDiffusionPipeline):
        theirs = getattr(trl, ours.__name__)
        names = [
            [(p.name, p.kind) for p in inspect.signature(which).parameters.values()]
            for which in (ours, theirs)
        ]
        assert names[0] == names[1]


def test_trackers_hear_what_a_step_tells() -> None:
    """Numbers only, one a denoising step where there is one; steps that were not learnt from say nothing."""
    from ddposink.ddpo.names.trainer import _told
    from ddposink.ddpo.protocol import StepLog

    log = StepLog(
        1, 0.1, 0.2, 0.3, 0.0, 0.0, 0.5, 8, 8, 2.0, 1.0, reward_s=0.5, gradient_norm=3.0, ratio_mean=1.0,
        by_step={"ratio_std": [0.1, None, 0.3]}, parts={"noise": 0.4}, shares={"noise": 1.0},
    )  # fmt: skip
    assert _told(log) == {
        "sampling_s": 2.0, "reward_s": 0.5, "training_s": 1.0, "gradient_norm": 3.0, "ratio_mean": 1.0,
        "flat_share": 0.5, "reward/noise": 0.4, "variance_share/noise": 1.0,
        "ratio_std/denoising_step_1": 0.1, "ratio_std/denoising_step_3": 0.3,
    }  # fmt: skip
