"""LoRA inside the weights: y = x (W + s·B·A)ᵀ instead of y = x Wᵀ + s·(x Aᵀ) Bᵀ.

The two are equal but for rounding. The second needs two thin products, a scaling and an addition of
activations per layer, and four thin products in its backward, all bound by memory; the first one small
product of weights, and in its backward one full product, which is faster where matrices are small or
bandwidth is scarce (a CPU). Only for float32 bases: in half precision W + s·B·A would round the change away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class MergedLora:
    """The LoRA layers of a UNet, computing with merged weights while it is `active`."""

    def __init__(self, unet: Any, adapter: str) -> None:
        """Takes the plain linear layers in float32 without dropout; others stay as they are."""
        # Made once: a compiled UNet would be compiled again for every new function.
        self.forwards = [(layer, _forward(layer, adapter)) for layer in _mergeable(unet, adapter)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, merged and differentiable in A and B; afterwards adapters work as peft's do."""
        for layer, forward in self.forwards:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self.forwards:
                del layer.forward


def _mergeable(unet: Any, adapter: str) -> Iterator[Any]:
    from peft.tuners.lora import Linear

    for module in unet.modules():
        if isinstance(module, Linear) and adapter in module.lora_A:
            base = module.get_base_layer()
            plain = (
                isinstance(module.lora_dropout[adapter], torch.nn.Identity) and not module.use_dora[adapter]
            )
            if plain and type(base) is torch.nn.Linear and base.weight.dtype == torch.float32:
                yield module


def _forward(layer: Any, adapter: str) -> Callable[[Tensor], Tensor]:
    base, a, b = layer.get_base_layer(), layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    scale = layer.scaling[adapter]

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        if layer.disable_adapters:  # the base model is asked
            return functional.linear(x, base.weight, base.bias)
        return functional.linear(x, torch.addmm(base.weight, b, a, alpha=scale), base.bias)

    return forward
