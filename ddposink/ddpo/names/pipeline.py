"""TRL's ``DefaultDDPOStableDiffusionPipeline``: Stable Diffusion that says how likely its steps were.

Drawing is the stock pipeline's own; only the scheduler's step is TRL's, which gives log-probabilities too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddposink.assets import hub
from ddposink.ddpo import lora
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.names.ddim import DDPOSchedulerOutput, ddim_step
from ddposink.errors import Unavailable
from ddposink.models.diffusion import PipelineRef, load_pipeline


@dataclass
class DDPOPipelineOutput:
    """Pictures, the T+1 latents (B,C,H,W) around T denoising steps, and T log-probabilities (B,)."""

    images: Any
    latents: list[Tensor]
    log_probs: list[Tensor]


class DefaultDDPOStableDiffusionPipeline:
    """A Stable Diffusion pipeline, with its LoRA weights if the folder has some, which are then learnt on.

    ``pretrained_model_name`` is a folder, a repository of the hub, or what `PipelineRef.parse` knows. A
    branch (``pretrained_model_revision``) is looked up once and pinned to the commit it points to. Raises
    ValueError for what is no such pipeline, Unavailable for what cannot be had here.
    """

    def __init__(
        self, pretrained_model_name: str, *, pretrained_model_revision: str = "main", use_lora: bool = True
    ) -> None:
        name, self.pretrained_revision = str(pretrained_model_name), pretrained_model_revision
        if not Path(name).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            self.pretrained_revision = _commit(name, pretrained_model_revision)
            name = f"{name}@{self.pretrained_revision}"
        ref = PipelineRef.parse(name)
        self.pretrained_model = pretrained_model_name
        loaded = load_pipeline(ref)
        self.sd_pipeline: Any = _with_ddim(loaded, loaded.scheduler)
        self.use_lora = use_lora
        if ref.folder is not None and (ref.folder / lora.WEIGHTS).is_file():
            self.sd_pipeline.load_lora_weights(
                ref.folder, weight_name=lora.WEIGHTS, adapter_name=lora.ADAPTER, local_files_only=True
            )
            self.use_lora = True

    @classmethod
    def around(cls, pipeline: Any, use_lora: bool) -> DefaultDDPOStableDiffusionPipeline:
        """The same of a stock pipeline that is already loaded; shares its modules, not its scheduler."""
        made = cls.__new__(cls)
        copied = type(pipeline)(**pipeline.components, requires_safety_checker=False)
        made.sd_pipeline = _with_ddim(copied, pipeline.scheduler)
        made.sd_pipeline.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
        made.pretrained_model, made.pretrained_revision = pipeline.config.get("_name_or_path", ""), ""
        made.use_lora = use_lora
        return made

    def __call__(
        self,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        **kwargs: Any,
    ) -> DDPOPipelineOutput:
        """Draw pictures; arguments are the stock pipeline's.

        As in TRL a ``generator`` draws the first latents only. Raises what the pipeline raises.
        """
        latents: list[Tensor] = []
        log_probs: list[Tensor] = []

        def step(output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, **_: Any) -> tuple[Tensor]:
            latents[:] = latents or [sample]
            found = ddim_step(self.scheduler, output, timestep, sample, eta)
            latents.append(found.latents)
            log_probs.append(found.log_probs)
            return (found.latents,)

        kwargs |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        with _stepping(self.scheduler, step):
            drawn = self.sd_pipeline(prompt, height, width, **kwargs | {"return_dict": True})
        return DDPOPipelineOutput(drawn.images, latents, log_probs)

    def __getattr__(self, name: str) -> Any:
        if name == "sd_pipeline":  # not loaded yet
            raise AttributeError(name)
        return getattr(self.sd_pipeline, name)  # unet, vae, text_encoder, tokenizer, scheduler, to, …

    @property
    def autocast(self) -> Any:
        """What makes a context for forwards; None without LoRA, where accelerate's is needed."""
        return nullcontext if self.use_lora else None

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """`ddim_step` of the pipeline's scheduler."""
        return ddim_step(self.scheduler, *args, **kwargs)

    def get_trainable_layers(self) -> Any:
        """The UNet, with fresh LoRA layers of TRL's rank if it is to have some and has none."""
        lora.make_trainable(self.unet, DDPOConfig(use_lora=self.use_lora))
        return self.unet

    def save_pretrained(self, output_dir: str | Path) -> None:
        """Write the whole pipeline, LoRA weights beside the base's; the folder loads again."""
        save_pipeline(self.sd_pipeline, self.use_lora, Path(output_dir))

    def save_checkpoint(self, models: list[Any], weights: Any, output_dir: str | Path) -> None:
        """Write what is learnt of the one model of ``models``: a LoRA file, or a ``unet`` folder."""
        _only(models)
        lora.export(self.sd_pipeline, DDPOConfig(use_lora=self.use_lora), Path(output_dir))

    def load_checkpoint(self, models: list[Any], input_dir: str | Path) -> None:
        """Fill the one model with what `save_checkpoint` wrote. Raises ValueError if it does not fit."""
        _load(_only(models), Path(input_dir), self.use_lora)


def save_pipeline(pipeline: Any, use_lora: bool, folder: Path) -> None:
    """Write a stock pipeline to ``folder``; LoRA layers go to a file beside it and not into the UNet."""
    if not use_lora or lora.ADAPTER not in getattr(pipeline.unet, "peft_config", {}):
        pipeline.save_pretrained(folder, safe_serialization=True)
        return
    parts = pipeline.components | {"unet": lora.without_lora(pipeline.unet)}
    type(pipeline)(**parts, requires_safety_checker=False).save_pretrained(folder, safe_serialization=True)
    lora.export_layers(pipeline, folder)


def _load(unet: Any, folder: Path, use_lora: bool) -> None:
    from safetensors.torch import load_file

    if not use_lora:
        unet.load_state_dict(type(unet).from_pretrained(folder / "unet").state_dict())
        return
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft import set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict

    saved = {name.removeprefix("unet."): value for name, value in load_file(folder / lora.WEIGHTS).items()}
    layers, mine = (
        convert_unet_state_dict_to_peft(saved),
        get_peft_model_state_dict(unet, adapter_name=lora.ADAPTER),
    )
    if {n: v.shape for n, v in layers.items()} != {n: v.shape for n, v in mine.items()}:
        raise ValueError(f"{folder / lora.WEIGHTS} holds other LoRA layers than this model has")
    set_peft_model_state_dict(unet, layers, adapter_name=lora.ADAPTER)


def _only(models: list[Any]) -> Any:
    if len(models) != 1:
        raise ValueError(f"what is trained is one UNet, not {len(models)} models")
    return models[0]


def _with_ddim(pipeline: Any, scheduler: Any) -> Any:
    from diffusers import DDIMScheduler

    pipeline.scheduler = DDIMScheduler.from_config(scheduler.config)
    pipeline.safety_checker = None
    return pipeline


@contextmanager
def _stepping(scheduler: Any, step: Any) -> Iterator[None]:
    """Inside, the scheduler steps as told. The pipeline reads ``eta`` off the function's signature."""
    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


def _commit(name: str, revision: str) -> str:
    """The 40 hex digits of a hub repository's ``revision``. Raises Unavailable in one line."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if why := hub.unreachable():
        raise Unavailable(
            f"which commit of {name} '{revision}' is cannot be asked, {why}: give a folder, or a commit's 40 "
            f"hex digits as pretrained_model_revision"
        )
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision).sha or ""
    except Exception as error:
        raise Unavailable(f"{name}@{revision} cannot be found: {hub.one_line(error)}") from error
