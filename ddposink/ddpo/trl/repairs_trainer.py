"""Repairs of TRL's ``DDPOTrainer``. Each class mends one breakage and may be stacked on the others.

They are listed, with what they mend, in `ddposink.ddpo.trl.repairs`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl import DDPOConfig, DDPOTrainer

from ddposink.ddpo.trackers import NoTracker
from ddposink.ddpo.trl.repairs_pipeline import start_accelerate

NEVER = sys.maxsize


class StartsAccelerate(DDPOTrainer):
    """TRL logs a warning through accelerate before it starts accelerate, which is an error."""

    def __init__(self, config: DDPOConfig, *args: Any, **kwargs: Any) -> None:
        start_accelerate(config.accelerator_kwargs.get("cpu", False))
        super().__init__(config, *args, **kwargs)


class ForwardsThroughWrapper(DDPOTrainer):
    """Gradients are averaged by the DistributedDataParallel wrapper, if the forward goes through it.

    TRL throws the wrapper away and calls the bare UNet, so every process learns for itself.
    """

    sd_pipeline: Any  # one with the other half of this repair

    def _setup_optimizer(self, trainable_layers_parameters: Any) -> torch.optim.Optimizer:
        prepare = self.accelerator.prepare

        def prepare_and_keep(*objects: Any) -> Any:
            prepared = prepare(*objects)
            self._wrapper = prepared[0]
            return prepared

        self.accelerator.prepare = prepare_and_keep  # what TRL calls next
        return super()._setup_optimizer(trainable_layers_parameters)

    def _train_batched_samples(self, *args: Any, **kwargs: Any) -> int:
        with self.sd_pipeline.forwarding_through(self._wrapper):
            return super()._train_batched_samples(*args, **kwargs)


class SavesModel(DDPOTrainer):
    """TRL's own saving was copied from another trainer and asks for attributes this one does not have."""

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_model(save_directory)

    def save_model(self, output_dir: str | os.PathLike[str] | None = None) -> None:
        """Write pipeline, LoRA weights and model card to ``output_dir`` (default: ``config.logdir``)."""
        if self.accelerator.is_main_process:
            folder = Path(output_dir or self.config.logdir)
            folder.mkdir(parents=True, exist_ok=True)
            self.sd_pipeline.save_pretrained(str(folder))
            self.create_model_card(output_dir=folder)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write TRL's model card as README.md of ``output_dir`` (default: ``config.logdir``)."""
        folder = Path(output_dir or self.config.logdir)
        folder.mkdir(parents=True, exist_ok=True)
        base = getattr(self.sd_pipeline, "pretrained_model", None)
        # What TRL's method looks for, where it looks for it.
        missing = {
            "is_world_process_zero": lambda: self.accelerator.is_main_process,
            "model": SimpleNamespace(config=SimpleNamespace(_name_or_path=base or str(folder))),
            "hub_model_id": None,
            "args": SimpleNamespace(output_dir=str(folder)),
        }
        self.__dict__.update(missing)
        try:
            super().create_model_card(model_name or folder.resolve().name, dataset_name, tags)
        finally:
            for name in missing:
                del self.__dict__[name]


class ComputesRewardsInThreads(DDPOTrainer):
    """``Executor.map`` gives results; TRL asks them for their ``result()`` again."""

    def compute_rewards(self, prompt_image_pairs: list[Any], is_async: bool = False) -> Iterable[Any]:
        """Rewards and their metadata, one pair of tuples; see `trl.DDPOTrainer.compute_rewards`."""
        if not is_async:
            return super().compute_rewards(prompt_image_pairs)
        found = self.executor.map(lambda batch: self.reward_fn(*batch), prompt_image_pairs)
        device = self.accelerator.device
        return zip(*[(torch.as_tensor(reward, device=device), data) for reward, data in found], strict=True)


class LogsPlainNumbers(DDPOTrainer):
    """The TensorBoard tracker takes ``float`` and passes over ``numpy.float32`` without a word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        log = self.accelerator.log

        def log_plain(values: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            log({k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}, *args, **kwargs)

        self.accelerator.log = log_plain


class FullPrecisionOnCpu(DDPOTrainer):
    """fp16 is TRL's default. A CPU has no autocast and no loss scaling for it: train in fp32 there."""

    def __init__(self, config: DDPOConfig, *args: Any, **kwargs: Any) -> None:
        if config.mixed_precision == "fp16":
            state = start_accelerate(config.accelerator_kwargs.get("cpu", False))
            if state.device.type == "cpu":
                warnings.warn("fp16 needs a GPU: training in fp32 on this CPU", stacklevel=2)
                config = dataclasses.replace(config, mixed_precision="no")
        super().__init__(config, *args, **kwargs)


class SavesEpochs(DDPOTrainer):
    """Saves every ``save_freq`` epochs *and* the last, as ``checkpoint_<epoch>``, on all processes.

    TRL saves on the main process only, where accelerate then waits for the others; it numbers the
    folders by saves and resumes by epochs; and without ``project_kwargs`` it has no folder to save to.
    """

    def __init__(self, config: DDPOConfig, *args: Any, **kwargs: Any) -> None:
        project = (
            {"project_dir": config.logdir} | config.project_kwargs | {"automatic_checkpoint_naming": False}
        )
        self.keep = project.pop("total_limit", None) or config.num_checkpoint_limit
        self.checkpoints = Path(project["project_dir"]) / "checkpoints"
        super().__init__(
            dataclasses.replace(config, save_freq=NEVER, project_kwargs=project), *args, **kwargs
        )
        self.save_freq = config.save_freq

    def train(self, epochs: int | None = None) -> None:
        """Train to epoch ``epochs`` (default: ``num_epochs``), saving on the way and at the end."""
        last = (self.config.num_epochs if epochs is None else epochs) - 1
        global_step = 0
        for epoch in range(self.first_epoch, last + 1):
            global_step = self.step(epoch, global_step)
            if epoch == last or (epoch and epoch % self.save_freq == 0):
                self.save_epoch(epoch)

    def save_epoch(self, epoch: int) -> None:
        """Write ``checkpoints/checkpoint_<epoch>`` and remove the oldest beyond the limit."""
        self.accelerator.save_state(str(self.checkpoints / f"checkpoint_{epoch}"))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folders = sorted(self.checkpoints.glob("checkpoint_*"), key=lambda f: int(f.name.split("_")[-1]))
            for folder in folders[: -self.keep]:
                shutil.rmtree(folder)


class SplitsNegativePrompts(DDPOTrainer):
    """Several negative prompts: the samples of a batch take them in turn, those of a group the same."""

    samples_per_prompt = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prompts = [part.strip() for part in (self.config.negative_prompts or "").split(",")]
        tokenizer = self.sd_pipeline.tokenizer
        ids = tokenizer(
            prompts,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
        ).input_ids
        embeddings = self.sd_pipeline.text_encoder(ids.to(self.accelerator.device))[0]
        self.neg_prompt_embed = _InTurn(embeddings, self.samples_per_prompt)


class _InTurn:
    """Embeddings (K, L, D) that repeat like a tensor of one: ``repeat(B, 1, 1)`` is (B, L, D), in turn."""

    def __init__(self, embeddings: Tensor, group: int) -> None:
        self.embeddings, self._group = embeddings, group

    def repeat(self, count: int, *_: int) -> Tensor:
        return self.embeddings[torch.arange(count) // self._group % len(self.embeddings)]


class CallsHookWithoutTracker(DDPOTrainer):
    """The hook is handed the first tracker even where there is none: it gets one that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.accelerator.trackers:
            self.accelerator.trackers = [NoTracker()]
