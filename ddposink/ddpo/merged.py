"""LoRA inside the weights: y = x (W + s·B·A)ᵀ instead of y = x Wᵀ + s·(x Aᵀ) Bᵀ.

The two are equal but for rounding. The second needs two thin products, a scaling and an addition of
activations per layer, and four thin products in its backward, all bound by memory; the first one small
product of weights, and in its backward one full product, which is faster where matrices are small or
bandwidth is scarce (a CPU). It also keeps fewer activations. Only for float32 bases: in half precision
W + s·B·A would round the change away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def mergeable(unet: Any, adapter: str) -> list[Any]:
    """The LoRA layers of ``unet`` that can be merged: plain float32 linear ones without dropout."""
    from peft.tuners.lora import Linear

    found = []
    for module in unet.modules():
        if isinstance(module, Linear) and adapter in module.lora_A:
            base = module.get_base_layer()
            plain = (
                isinstance(module.lora_dropout[adapter], torch.nn.Identity) and not module.use_dora[adapter]
            )
            if plain and type(base) is torch.nn.Linear and base.weight.dtype == torch.float32:
                found.append(module)
    return found


@contextmanager
def merged(layers: list[Any], adapter: str) -> Iterator[None]:
    """Inside, ``layers`` compute with merged weights, differentiable in A and B; afterwards as before."""
    for layer in layers:
        layer.forward = _forward(layer, adapter)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: Any, adapter: str) -> Callable[[Tensor], Tensor]:
    base, a, b = layer.get_base_layer(), layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    scale = layer.scaling[adapter]

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return functional.linear(x, torch.addmm(base.weight, b, a, alpha=scale), base.bias)

    return forward
