"""Repairs of TRL's ``DefaultDDPOStableDiffusionPipeline``, the half of its DDPO that holds the weights.

They are listed, with what they mend, in `ddposink.ddpo.trl.repairs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from trl import DefaultDDPOStableDiffusionPipeline
from trl.models.sd_utils import convert_state_dict_to_diffusers

from ddposink.ddpo.lora import WEIGHTS, without_lora


class PipelineStartsAccelerate(DefaultDDPOStableDiffusionPipeline):
    """A base without LoRA weights is reported through accelerate's logger, which must have been started."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        start_accelerate()
        super().__init__(*args, **kwargs)


class PipelineForwardsThroughWrapper(DefaultDDPOStableDiffusionPipeline):
    """While the trainer learns, ``unet`` is the wrapper that averages gradients; otherwise the bare one."""

    _wrapper: Any = None

    @property
    def unet(self) -> Any:
        """The UNet, or what accelerate wrapped it in."""
        return super().unet if self._wrapper is None else self._wrapper

    @contextmanager
    def forwarding_through(self, wrapper: Any) -> Iterator[None]:
        """Inside, ``unet`` is ``wrapper``."""
        self._wrapper = wrapper
        try:
            yield
        finally:
            self._wrapper = None


class ResumesLora(DefaultDDPOStableDiffusionPipeline):
    """Loads a checkpoint's LoRA into the adapter that is trained, instead of a second one beside it."""

    def save_checkpoint(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        """TRL's, by one process."""
        if PartialState().is_main_process:
            super().save_checkpoint(models, weights, output_dir)

    def load_checkpoint(self, models: list[Any], input_dir: str) -> None:
        """Fill the trained adapter; ValueError if the file is not one of this model's."""
        if self.use_lora:
            load_adapter(models[0], load_file(Path(input_dir) / WEIGHTS))
        else:
            super().load_checkpoint(models, input_dir)


class TrainsFolderLora(DefaultDDPOStableDiffusionPipeline):
    """LoRA weights found beside the model *are* the adapter to be trained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "default_0" in getattr(self.sd_pipeline.unet, "peft_config", {}):
            _rename_adapter(self.sd_pipeline.unet, "default_0", "default")

    def get_trainable_layers(self) -> Any:
        """The UNet, with a fresh adapter only if it has none."""
        unet = self.sd_pipeline.unet
        if not (self.use_lora and "default" in getattr(unet, "peft_config", {})):
            return super().get_trainable_layers()
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.to(torch.float32)
                parameter.requires_grad_(True)
        return unet


class SavesPlainUnet(DefaultDDPOStableDiffusionPipeline):
    """Saves the base UNet under its own names, and the LoRA beside it, so that the folder loads again."""

    def save_pretrained(self, output_dir: str) -> None:
        """Write the pipeline, and with LoRA ``pytorch_lora_weights.safetensors``, to ``output_dir``."""
        if not self.use_lora:
            super().save_pretrained(output_dir)
            return
        unet = self.sd_pipeline.unet
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        self.sd_pipeline.save_lora_weights(save_directory=output_dir, unet_lora_layers=layers)
        components = self.sd_pipeline.components | {"unet": without_lora(unet)}
        type(self.sd_pipeline)(**components, requires_safety_checker=False).save_pretrained(output_dir)


def start_accelerate(cpu: bool = False) -> PartialState:
    """Accelerate's state of this process, as its own ``Accelerator`` would start it."""
    return PartialState(cpu=cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))


def load_adapter(unet: Any, state: dict[str, Tensor]) -> None:
    """Fill the adapter ``default`` from diffusers-format weights; ValueError unless every one fits."""
    plain = {name.removeprefix("unet."): value for name, value in state.items()}
    converted = convert_unet_state_dict_to_peft(plain)
    expected, found = get_peft_model_state_dict(unet), set(converted)
    if strange := found ^ set(expected):
        raise ValueError(f"the LoRA weights are not this model's: {len(strange)} differ, e.g. {min(strange)}")
    for name, value in converted.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(expected[name].shape)}")
    set_peft_model_state_dict(unet, converted, adapter_name="default")


def _rename_adapter(unet: Any, old: str, new: str) -> None:
    state = get_peft_model_state_dict(unet, adapter_name=old)
    config = unet.peft_config[old]
    unet.delete_adapters(old)
    unet.add_adapter(config, adapter_name=new)
    set_peft_model_state_dict(unet, state, adapter_name=new)
