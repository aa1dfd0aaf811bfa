"""What is learnt: LoRA layers on the network's attention, or all of it; and how it leaves the training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.config import DDPOConfig
from ddposink.errors import suggest
from ddposink.models.denoiser import denoiser, denoiser_name, networks

# First and last layer: of a UNet, of Flux' transformer, of SD3's (whose patches are embedded with places).
ENDS = (("conv_in", "conv_out"), ("x_embedder", "proj_out"), ("pos_embed", "proj_out"))
ADAPTER = "default"  # what a fresh adapter is called
WEIGHTS = "pytorch_lora_weights.safetensors"  # the file as diffusers names it


def freeze(pipeline: Any, half: torch.dtype, lora_only: bool) -> None:
    """Nothing but the policy has gradients, and what is only used for inference may be in half precision."""
    network = denoiser(pipeline)
    for part in (getattr(pipeline, name) for name in networks(pipeline)):
        dtype = half if lora_only or part is not network else torch.float32
        part.requires_grad_(False).eval()
        if part.dtype != dtype:
            part.to(dtype=dtype)


def make_trainable(unet: Any, config: DDPOConfig) -> dict[str, Tensor]:
    """Freeze ``unet``, add LoRA layers (or unfreeze it all), and return the float32 weights to learn.

    LoRA is TRL's: Gaussian A, zero B, drawn from torch's global generator. An adapter that is already there
    is learnt on, whatever its name. Raises ValueError if it is of another rank, alpha or other modules than
    configured, if it is not clear which one is meant, or if a target matches no module.
    """
    if not config.use_lora:
        unet.requires_grad_(True)
        unet.float()
    else:
        unet.requires_grad_(False)
        _add_adapter(unet, config)
    found = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return found


def _add_adapter(unet: Any, config: DDPOConfig) -> None:
    wanted = _targeted(unet, config.lora_targets)
    name = adapter(unet)
    if name is None:
        from peft import LoraConfig

        layers = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,  # a fraction is as good
            init_lora_weights="gaussian",
            target_modules=list(config.lora_targets),
        )
        unet.add_adapter(layers, adapter_name=ADAPTER)
        return
    _check_adapter(unet, name, config, wanted)
    unet.set_adapter(name)
    for parameter_name, parameter in unet.named_parameters():
        parameter.requires_grad_(f".lora_A.{name}." in parameter_name or f".lora_B.{name}." in parameter_name)


def adapter(unet: Any) -> str | None:
    """Name of the LoRA adapter on ``unet``, None if there is none. Raises ValueError if there are several."""
    names = list(getattr(unet, "peft_config", {}))
    if len(names) > 1:
        raise ValueError(
            f"the UNet has {len(names)} LoRA adapters ({', '.join(names)}), and it is not clear which one is "
            f"to be trained: delete the others (pipeline.delete_adapters)"
        )
    return names[0] if names else None


def _targeted(unet: Any, targets: Sequence[str]) -> set[str]:
    """Names of the modules that get LoRA layers. Raises ValueError for a target that matches none."""
    from peft.tuners.lora import LoraLayer

    kinds = (torch.nn.Linear, torch.nn.Conv2d, LoraLayer)
    names = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    found: set[str] = set()
    for target in targets:
        matched = {name for name in names if name == target or name.endswith(f".{target}")}
        if not matched:
            ends = sorted({name.rpartition(".")[2] for name in names if ".lora_" not in name})
            raise ValueError(
                f"lora_targets: '{target}' matches no layer of the UNet{suggest(target, ends)}; layers are "
                f"called {', '.join(ends[:6])}, …"
            )
        found |= matched
    return found


def _check_adapter(unet: Any, name: str, config: DDPOConfig, wanted: set[str]) -> None:
    """Raise ValueError unless the adapter there is what ``config`` describes."""
    from peft.tuners.lora import LoraLayer

    there = unet.peft_config[name]
    again = "load the pipeline afresh, or configure these"
    if (there.r, there.lora_alpha) != (config.lora_rank, config.lora_alpha):
        raise ValueError(
            f"the UNet already has LoRA layers of rank {there.r} and alpha {there.lora_alpha}, not "
            f"{config.lora_rank} and {config.lora_alpha}: {again}"
        )
    layers = {
        n: module
        for n, module in unet.named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    }
    if odd := sorted(layers.keys() ^ wanted):
        side = "has one and lora_targets does not name it" if odd[0] in layers else "has none"
        raise ValueError(
            f"the UNet already has LoRA layers, on {len(layers)} modules where lora_targets names "
            f"{len(wanted)}; for example '{odd[0]}' {side}: {again}"
        )
    for n, layer in layers.items():
        rank, scale = layer.r[name], layer.scaling[name]
        if (rank, scale) != (there.r, there.lora_alpha / there.r):
            raise ValueError(
                f"the LoRA layer '{n}' has rank {rank} and scale {scale:g}, not {there.r} and "
                f"{there.lora_alpha / there.r:g}: load the adapter at weight 1, with one rank for all layers"
            )


def export(pipeline: Any, config: DDPOConfig, folder: Path) -> None:
    """Write ``pytorch_lora_weights.safetensors`` (diffusers format, with rank and alpha) or ``unet/``.

    The first loads with ``pipeline.load_lora_weights(folder)``, the second with
    ``UNet2DConditionModel.from_pretrained(folder / "unet")``; a transformer's folder is ``transformer/``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not config.use_lora:
        denoiser(pipeline).save_pretrained(folder / denoiser_name(pipeline), safe_serialization=True)
        return
    export_layers(pipeline, folder)


def export_layers(pipeline: Any, folder: Path) -> None:
    """Write the LoRA layers alone, ``pytorch_lora_weights.safetensors``."""
    from peft.utils import get_peft_model_state_dict

    network, part = denoiser(pipeline), denoiser_name(pipeline)
    name = adapter(network)
    settings = network.peft_config[name].to_dict()
    own = {
        f"{part}_lora_layers": get_peft_model_state_dict(network, adapter_name=name),
        # Sorted, as the order of a set differs from process to process and with it the file.
        f"{part}_lora_adapter_metadata": {
            k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()
        },
    }
    pipeline.save_lora_weights(folder, **own, safe_serialization=True)
    sort_header(folder / WEIGHTS)


def check_lora(pipeline: Any, file: Path) -> None:
    """Raise ValueError, before any weights are read, if the LoRA layers in ``file`` are of another base.

    The file says only names and shapes: a base of the same shape is not told from it.
    """
    from safetensors import SafetensorError, safe_open

    part = denoiser_name(pipeline)
    layers = {name.replace(".base_layer", ""): m for name, m in denoiser(pipeline).named_modules()}
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{file}' cannot be read: {error}") from error
    for name, shape in shapes.items():
        stem, _, side = name.removesuffix(".weight").rpartition(".lora_")
        layer = layers.get(stem.removeprefix(f"{part}."))
        kernel = getattr(layer, "weight", None)
        wanted = None if kernel is None else kernel.shape[1 if side == "A" else 0]
        has = shape[1 if side == "A" else 0]
        if not stem.startswith(f"{part}.") or wanted is None:
            raise ValueError(f"'{file}' holds LoRA layers of another base: this one has no layer '{stem}'")
        if wanted != has:
            raise ValueError(
                f"'{file}' holds LoRA layers of another base: '{stem}' is {has} wide there and {wanted} here"
            )


def sort_header(path: Path) -> None:
    """Write a safetensors file again with its metadata in order.

    The format's library keeps them in a hash map, whose order is another one in every process: the same
    training would leave other bytes. The tensors are not touched.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    names = sorted(header, key=lambda name: (name != "__metadata__", name))
    text = json.dumps({name: header[name] for name in names}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    part = path.with_name(f".{path.name}")
    part.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    os.replace(part, path)


def without_lora(unet: Any) -> Any:
    """A UNet of the same weights, shared and not copied, without adapters."""
    names = {
        name.replace(".base_layer.", "."): value
        for name, value in unet.state_dict().items()
        if "lora_" not in name
    }
    with torch.device("meta"):
        plain = type(unet).from_config(unet.config)
    plain.load_state_dict(names, assign=True)
    return plain


@contextmanager
def without(unet: Any, original: dict[str, Tensor] | None) -> Iterator[None]:
    """Inside, ``unet`` acts as before training: adapters off, or its ``original`` weights swapped in."""
    if original is None:
        unet.disable_adapters()
        try:
            yield
        finally:
            unet.enable_adapters()
        return
    learnt = copies(unet)
    _put(unet, original)
    try:
        yield
    finally:
        _put(unet, learnt)


def copies(unet: Any) -> dict[str, Tensor]:
    """All parameters, copied to the CPU."""
    return {name: p.detach().cpu().clone() for name, p in unet.named_parameters()}


@torch.no_grad()
def _put(unet: Any, values: dict[str, Tensor]) -> None:
    for name, parameter in unet.named_parameters():
        parameter.copy_(values[name])


def fingerprint(unet: Any) -> str:
    """What tells one base from another, cheaply: a hash of the first and the last layer in half precision."""
    digest = hashlib.sha256()
    for name in next(names for names in ENDS if hasattr(unet, names[0])):
        layer = getattr(unet, name)
        weight = getattr(layer, "proj", layer).weight.detach().to("cpu", torch.bfloat16)
        digest.update(weight.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
