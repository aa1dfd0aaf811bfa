"""A subclass's own methods change the training; and whoever has none of his own trains on the engine."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ddposink.ddpo.trackers import NoTracker
from ddposink.ddpo.trl_names import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from helpers.tiny import PROMPTS, brightness, tiny_pipeline


def prompt_fn() -> tuple[str, dict[str, int]]:
    prompt = random.choice(PROMPTS)
    return prompt, {"length": len(prompt)}


def scorer(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
    return brightness(images, list(prompts)), {}


def settings(folder: Path, **values: Any) -> DDPOConfig:
    short = {"sample_num_steps": 2, "sample_batch_size": 2, "train_batch_size": 2, "logdir": str(folder)}
    return DDPOConfig(**short | {"train_learning_rate": 3e-3, "mixed_precision": None} | values)


def made(folder: Path, kind: Any = DDPOTrainer, pipeline: Any = None, **values: Any) -> Any:
    given = tiny_pipeline() if pipeline is None else pipeline
    return kind(settings(folder, **values), scorer, prompt_fn, given)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    unet = trainer.engine.pipeline.unet
    return {name: p.detach().clone() for name, p in unet.named_parameters() if p.requires_grad}


def apart(first: Any, second: Any) -> float:
    mine, other = weights(first), weights(second)
    assert mine.keys() == other.keys()
    return max(float((mine[name] - other[name]).abs().max()) for name in mine)


def learnt_the_same(first: Any, second: Any) -> bool:
    """All weights together are fifty times nearer to each other than to ``first.untrained``.

    Not the two that are farthest apart: Adam's first step moves a weight by the learning rate, be its
    gradient nothing but rounding.
    """
    mine, other, start = weights(first), weights(second), first.untrained

    def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5

    return mine.keys() == other.keys() and distance(mine, other) < 0.02 * distance(mine, start)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer after two epochs on the engine."""
    trainer = made(tmp_path_factory.mktemp("plain"))
    trainer.untrained = {name: value.clone() for name, value in weights(trainer).items()}
    trainer.train(2)
    assert "accelerator" not in vars(trainer)  # nobody needed it
    return trainer


class Rewards(DDPOTrainer):
    def compute_rewards(self, prompt_image_pairs: list[Any], is_async: bool = False) -> Any:
        rewards, about = super().compute_rewards(prompt_image_pairs, is_async)
        return tuple(-reward for reward in rewards), about


class Loss(DDPOTrainer):
    def loss(self, advantages: torch.Tensor, clip_range: float, ratio: torch.Tensor) -> torch.Tensor:
        return -super().loss(-advantages, clip_range, ratio) + 0.1 * (ratio - 1).square().mean()


class WholeLoss(DDPOTrainer):
    def calculate_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss, approx_kl, clipped = super().calculate_loss(*args, **kwargs)
        return -loss, approx_kl, clipped


class Samples(DDPOTrainer):
    def _generate_samples(self, iterations: int, batch_size: int) -> Any:
        samples, pairs = super()._generate_samples(iterations, batch_size)
        return samples, [[1 - images, *rest] for images, *rest in pairs]


class Learning(DDPOTrainer):
    def _train_batched_samples(self, *args: Any) -> int:
        args[-1][:] = [batch | {"advantages": -batch["advantages"]} for batch in args[-1]]
        return super()._train_batched_samples(*args)


class Optimizer(DDPOTrainer):
    def _setup_optimizer(self, trainable_layers_parameters: Any) -> Any:
        return torch.optim.SGD(trainable_layers_parameters, lr=1.0)


class Tracker(DDPOTrainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stat_tracker: Any = self

    def update(self, prompts: list[str], rewards: Any) -> Any:
        return -rewards


@pytest.mark.parametrize("kind", [Rewards, Loss, WholeLoss, Samples, Learning, Optimizer, Tracker])
def test_a_method_of_ones_own_changes_training(plain: Any, tmp_path: Path, kind: Any) -> None:
    trainer = made(tmp_path, kind, per_prompt_stat_tracking=kind is Tracker)
    trainer.train(2)
    assert trainer.engine.step == 2
    assert apart(plain, trainer) > 1e-3


@pytest.mark.parametrize(
    "name",
    ["compute_rewards", "calculate_loss", "loss", "_generate_samples", "_train_batched_samples", "step"],
)
def test_one_that_only_calls_the_bases_changes_nothing(plain: Any, tmp_path: Path, name: str) -> None:
    called = []

    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(name)
        return getattr(DDPOTrainer, name)(self, *args, **kwargs)

    trainer = made(tmp_path, type("Mine", (DDPOTrainer,), {name: own}))
    trainer.train(2)
    assert len(called) >= 2
    assert learnt_the_same(plain, trainer)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_1"]


def test_a_function_assigned_to_the_trainer_and_a_setting_changed_later(plain: Any, tmp_path: Path) -> None:
    trainer = made(tmp_path)
    seen = []
    whole = trainer.loss
    trainer.loss = lambda *args: seen.append(args[1]) or whole(*args)
    trainer.config.train_clip_range = 0.5
    trainer.train(2)
    assert set(seen) == {0.5}
    assert apart(plain, trainer) > 1e-3
    trainer.config.train_cfg = "no"
    trainer.config.sample_num_steps = 0
    with pytest.raises(ValueError, match="sample_num_steps must be at least 2"):
        trainer.train(1)


def test_an_epoch_written_anew(tmp_path: Path) -> None:
    """As scripts do that copy TRL's ``step``: accelerator, optimizer and statistics are there."""

    class Mine(DDPOTrainer):
        def step(self, epoch: int, global_step: int) -> int:
            samples, pairs = self._generate_samples(1, 2)
            rewards, _ = self.compute_rewards(pairs)
            gathered = self.accelerator.gather(torch.cat(list(rewards))).cpu().numpy()
            advantages = self.stat_tracker.update(["cat", "dog"], gathered)
            batch = samples[0] | {"advantages": torch.as_tensor(advantages)}
            with self.accelerator.accumulate(self.sd_pipeline.unet):
                rows = [batch[name][:, 0] for name in ("latents", "timesteps", "next_latents", "log_probs")]
                embeds = torch.cat([batch["negative_prompt_embeds"], batch["prompt_embeds"]])
                loss, _, _ = self.calculate_loss(*rows, batch["advantages"], embeds)
                self.accelerator.backward(loss)
                self.optimizer.step()
                assert self.accelerator.sync_gradients == (epoch == 1)  # every second step
                self.optimizer.zero_grad()
            self.accelerator.log({"loss": loss.item()}, step=global_step)
            self.accelerator.save_state()
            return global_step + 1

    trainer = made(tmp_path, Mine, per_prompt_stat_tracking=True)
    before = weights(trainer)
    trainer.train(1)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    trainer.first_epoch = 1
    trainer.train(2)
    assert any(not torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert trainer.stat_tracker.get_stats()["cat"]["count"] == 2
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["checkpoint_0", "checkpoint_1"]


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = made(tmp_path / "a", Loss, per_prompt_stat_tracking=True)
    whole.train(4)
    made(tmp_path / "b", Loss, per_prompt_stat_tracking=True).train(2)
    resumed = made(
        tmp_path / "b", Loss, per_prompt_stat_tracking=True, resume_from=str(tmp_path / "b" / "checkpoints")
    )
    assert resumed.first_epoch == 2
    resumed.train(4)
    assert apart(whole, resumed) == 0


def test_hooks_of_saving_and_loading(tmp_path: Path) -> None:
    class Mine(DDPOTrainer):
        loaded = ""

        def _save_model_hook(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
            super()._save_model_hook(models, weights, output_dir)
            (Path(output_dir) / "note").write_text("mine")

        def _load_model_hook(self, models: list[Any], input_dir: str) -> None:
            super()._load_model_hook(models, input_dir)
            self.loaded = (Path(input_dir) / "note").read_text()

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            super().create_model_card("my model", tags="mine")

    trainer = made(tmp_path, Mine)
    trainer.train(2)
    folder = tmp_path / "checkpoints" / "checkpoint_1"
    stock = tiny_pipeline()
    stock.load_lora_weights(
        folder, weight_name="pytorch_lora_weights.safetensors"
    )  # as scripts do with TRL's
    resumed = made(tmp_path, Mine, resume_from=str(folder))
    assert resumed.loaded == "mine"
    assert apart(trainer, resumed) == 0
    trainer.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "# my model" in card
    assert "- mine\n" in card
    full = made(
        tmp_path / "full",
        pipeline=DefaultDDPOStableDiffusionPipeline(str(tmp_path / "saved"), use_lora=False),
    )
    assert full.sd_pipeline.use_lora  # the folder has some


def test_checkpoints_of_full_finetuning(tmp_path: Path, saved_pipeline: Path) -> None:
    pipeline = DefaultDDPOStableDiffusionPipeline(str(saved_pipeline), use_lora=False)
    trainer = made(tmp_path, Loss, pipeline)
    trainer.train(1)
    fresh = DefaultDDPOStableDiffusionPipeline(str(saved_pipeline), use_lora=False)
    fresh.load_checkpoint([fresh.unet], str(tmp_path / "checkpoints" / "checkpoint_0"))
    expected = dict(fresh.unet.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())
    with pytest.raises(ValueError, match="one UNet, not 2"):
        fresh.load_checkpoint([fresh.unet] * 2, str(tmp_path))


def test_train_trains_again(tmp_path: Path) -> None:
    trainer = made(tmp_path)
    trainer.train(1)
    before = weights(trainer)
    trainer.train(1)
    assert trainer.engine.step == 2
    assert any(not torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["checkpoint_0", "checkpoint_1"]


def test_a_pipeline_of_ones_own(plain: Any, tmp_path: Path, saved_pipeline: Path) -> None:
    class Mine(DefaultDDPOStableDiffusionPipeline):
        calls = 0

        def scheduler_step(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().scheduler_step(*args, **kwargs)

    same = made(tmp_path, pipeline=Mine(str(saved_pipeline)))
    same.train(2)
    assert same.sd_pipeline.calls == 2 * 2 * 2
    assert learnt_the_same(plain, same)

    class Layers(DefaultDDPOStableDiffusionPipeline):
        def get_trainable_layers(self) -> Any:
            from peft import LoraConfig

            self.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q"]))
            self.unet.conv_out.requires_grad_(True)
            return self.unet

    trainer = made(tmp_path, pipeline=Layers(str(saved_pipeline)))
    before = weights(trainer)
    assert {name.split(".")[-2] for name in before} == {"default", "conv_out"}
    assert {len(v) for name, v in before.items() if "lora_A" in name} == {2}
    assert not any("to_k" in name for name in before)
    trainer.train(2)
    assert all(not torch.equal(value, before[name]) for name, value in weights(trainer).items())

    class Wrong(DefaultDDPOStableDiffusionPipeline):
        def get_trainable_layers(self) -> Any:
            return list(self.unet.parameters())

    with pytest.raises(ValueError, match="must answer the pipeline's UNet"):
        made(tmp_path, pipeline=Wrong(str(saved_pipeline)))


def test_a_pipeline_class_of_nothing_but_trls_methods(tmp_path: Path) -> None:
    """As TRL asks of one: parts, a call, a step, and layers under whatever name."""
    inner = DefaultDDPOStableDiffusionPipeline.around(tiny_pipeline(), use_lora=False)

    class Mine:
        unet, vae, text_encoder = inner.unet, inner.vae, inner.text_encoder
        tokenizer, scheduler, autocast = inner.tokenizer, inner.scheduler, None

        def __call__(self, **settings: Any) -> Any:
            return inner(**settings)

        def scheduler_step(self, *args: Any, **kwargs: Any) -> Any:
            return inner.scheduler_step(*args, **kwargs)

        def get_trainable_layers(self) -> Any:
            self.unet.requires_grad_(False)
            self.unet.conv_in.requires_grad_(True)
            return self.unet

        def save_checkpoint(self, models: Any, weights: Any, output_dir: str) -> None:
            torch.save(weights[0]["conv_in.bias"], Path(output_dir) / "bias")

    trainer = made(tmp_path, pipeline=Mine())
    before = weights(trainer)
    assert set(before) == {"conv_in.weight", "conv_in.bias"}
    trainer.train(1)
    assert all(not torch.equal(value, before[name]) for name, value in weights(trainer).items())
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint_0" / "bias")
    assert torch.equal(saved, weights(trainer)["conv_in.bias"])


def test_our_own_settings_hold_in_methods(tmp_path: Path) -> None:
    values = {
        "sample_batch_size": 4,
        "sample_num_steps": 3,
        "samples_per_prompt": 2,
        "share_initial_noise": True,
    }
    values |= {
        "train_skip_last_steps": 1,
        "log_prob_reduction": "sum",
        "train_clip_range": 0.1,
        "negative_prompts": "red, cat",
    }
    trainers = [made(tmp_path / kind.__name__, kind, **values) for kind in (DDPOTrainer, DDPOTrainer)]
    trainers[1].loss = trainers[1].loss
    trainers[0].untrained = {name: value.clone() for name, value in weights(trainers[0]).items()}
    for trainer in trainers:
        trainer.train(1)
    assert learnt_the_same(*trainers)
    samples, pairs = trainers[1]._generate_samples(1, 4)
    assert samples[0]["log_probs"].shape == (4, 2)
    assert torch.equal(samples[0]["latents"][0, 0], samples[0]["latents"][1, 0])
    assert pairs[0][1][0] == pairs[0][1][1]


@pytest.mark.parametrize("kind", [DDPOTrainer, Loss])
def test_trackers_of_ones_own(kind: Any, tmp_path: Path) -> None:
    class Kept(NoTracker):
        def __init__(self) -> None:
            self.found: list[tuple[int | None, dict[str, Any]]] = []

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self.found.append((step, values))

    kept = Kept()
    made(tmp_path, kind, log_with=[kept]).train(2)
    steps = 2  # updates of an epoch
    assert {step for step, values in kept.found if "reward_mean" in values} == {0, steps}
    assert all(isinstance(v["reward_mean"], float) for _, v in kept.found if "reward_mean" in v)
    assert any("loss" in values for _, values in kept.found)


def test_without_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    made(tmp_path, Loss).train(1)


def test_what_cannot_be_gone_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only the loss 'is'"):
        made(tmp_path, Loss, loss="sf").train(1)
    with pytest.raises(ValueError, match="engine 'trl' runs TRL's own methods"):
        made(tmp_path, Loss, engine="trl")
    few = made(tmp_path, Loss)
    few.reward_fn = lambda images, prompts, metadata: (torch.ones(1), {})
    with pytest.raises(ValueError, match=r"rewards are \(2,\) for 4 pictures, not one each"):
        few.train(1)

    class Refuses(DDPOTrainer):
        def _config_check(self) -> tuple[bool, str]:
            return False, "not with me"

    with pytest.raises(ValueError, match="not with me"):
        made(tmp_path, Refuses)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"algorithm": "nft"}, "algorithm 'nft'"),
        ({"algorithm": "dpo", "samples_per_prompt": 2}, "algorithm 'dpo'"),
        ({"kl_beta": 1.0}, "kl_beta"),
        ({"train_clip_range_high": 0.5}, "train_clip_range_high"),
        ({"ratio_norm": True}, "ratio_norm"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"measure_kl": 0.5}, "measure_kl"),
    ],
)
def test_what_trls_methods_do_not_know_is_refused(tmp_path: Path, values: Any, named: str) -> None:
    """They would train without it, and the label would say that it was there."""
    with pytest.raises(ValueError, match=f"TRL's methods know no {named}"):
        made(tmp_path, Rewards, **values).train(1)


def test_what_is_saved_are_the_averaged_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = made(tmp_path, ema_decay=0.5)
    trainer.train(2)
    trainer.save_pretrained(tmp_path / "saved")
    trainer.engine.export(tmp_path / "exported")
    (saved,), (exported,) = (list((tmp_path / n).rglob("*lora*.safetensors")) for n in ("saved", "exported"))
    saved, exported = load_file(saved), load_file(exported)
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)


@pytest.mark.parametrize("values", [{}, {"algorithm": "nft"}, {"algorithm": "draft"}])
def test_metadata_are_those_of_the_prompt(tmp_path: Path, values: Any) -> None:
    """Also where an algorithm asks in another order than was drawn in."""
    asked = []

    def told(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
        asked.extend(zip(prompts, metadata, strict=True))
        return brightness(images, list(prompts)), {}

    def draw() -> tuple[str, dict[str, str]]:
        prompt = random.choice(PROMPTS)
        return prompt, {"of": prompt}

    given = settings(tmp_path, sample_batch_size=4, sample_num_batches_per_epoch=2, **values)
    DDPOTrainer(given, told, draw, tiny_pipeline()).train(1)
    assert len(asked) >= 8
    assert all(type(prompt) is str and data == {"of": prompt} for prompt, data in asked)
