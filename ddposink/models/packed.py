"""Weights in a quarter of their bytes: every matrix as 8-bit integers with one scale for each of its rows.

A row w (one output feature, or one word of an embedding) is stored as q and s, and read back as q·s:

    s = max(max|w| / 127, 2^-14), rounded up to float16        q = round(w / s), an integer within ±127

Symmetric rounding to the nearest with a scale per output channel (Jacob et al. 2018, arXiv 1712.05877; Wu et
al. 2020, arXiv 2004.09602, section 3). No value moves by more than s/2. The product of 7 and 11 bits is exact
in float32: every machine reads the same numbers, and packing them again gives the same integers and scales.
What is no ``.weight`` of two or more dimensions is stored as float16. Plain safetensors; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PACKED, WHOLE = ".packed.safetensors", ".safetensors"  # ends of file names; libraries do not read the first
SCALE = ".scale"  # after a matrix's name: the name of its scales, float16 (rows,)
LEVELS = 127
LEAST = 2.0**-14  # the smallest scale that float16 holds in full
METADATA = {"format": "pt"}

Tensors = dict[str, Any]  # numpy arrays by name


def pack(weights: Mapping[str, Any]) -> Tensors:
    """Matrices (rows, …) as int8 of that shape and float16 scales (rows,), the rest as float16.

    Raises ValueError for weights that are not finite or too large for float16, or called as scales are.
    """
    import numpy as np

    packed: Tensors = {}
    for name, given in weights.items():
        if name.removesuffix(SCALE) != name and name.removesuffix(SCALE) in weights:
            raise ValueError(f"weights '{name}' have a name kept for scales; call them otherwise")
        value = np.asarray(given, np.float32)
        if not np.all(np.abs(value) <= np.finfo(np.float16).max):
            raise ValueError(f"weights '{name}' are not finite in float16: train again with a smaller rate")
        if is_matrix(name, value.shape):
            packed[name], packed[name + SCALE] = _quantise(value)
        else:
            packed[name] = value.astype(np.float16)
    return packed


def unpack(packed: Mapping[str, Any]) -> Tensors:
    """What was packed, as float32 arrays: integer times scale, exactly.

    Raises ValueError if there are integers without their scales.
    """
    import numpy as np

    weights: Tensors = {}
    for name, value in packed.items():
        if value.dtype == np.int8:
            if name + SCALE not in packed:
                raise ValueError(f"packed weights '{name}' lack their scales '{name + SCALE}'")
            scale = packed[name + SCALE].astype(np.float32)
            weights[name] = value.astype(np.float32) * scale.reshape(-1, *[1] * (value.ndim - 1))
        elif name.removesuffix(SCALE) == name or name.removesuffix(SCALE) not in packed:
            weights[name] = value.astype(np.float32)
    return weights


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is stored as integers: a linear map, a convolution or an embedding."""
    return name.endswith(".weight") and len(shape) > 1


def whole_name(file: str) -> str:
    """``model.packed.safetensors`` as ``model.safetensors``; any other name as it is."""
    return file.removesuffix(PACKED) + WHOLE if file.endswith(PACKED) else file


def packed_name(file: str) -> str:
    """``model.safetensors`` as ``model.packed.safetensors``."""
    return file.removesuffix(WHOLE) + PACKED


def pack_bytes(data: bytes) -> bytes:
    """A safetensors file packed."""
    from safetensors.numpy import load, save

    return save(pack(load(data)), metadata=METADATA)


def unpack_bytes(data: bytes, dtype: str = "float32") -> bytes:
    """A packed file as the libraries read it.

    As float16 it has half the bytes, and no value moves by more than s/16 once more.
    """
    from safetensors.numpy import load, save

    whole = {name: value.astype(dtype) for name, value in unpack(load(data)).items()}
    return save(whole, metadata=METADATA)


def _quantise(value: Any) -> tuple[Any, Any]:
    """(rows, …) float32 as int8 of that shape and float16 (rows,)."""
    import numpy as np

    rows = value.reshape(len(value), -1)
    exact = np.maximum(np.abs(rows).max(1) / np.float32(LEVELS), np.float32(LEAST))
    near = exact.astype(np.float16)
    scale = np.where(near < exact, np.nextafter(near, np.float16(np.inf)), near).astype(np.float16)
    whole = np.rint(rows / scale.astype(np.float32)[:, None]).astype(np.int8)
    return whole.reshape(value.shape), scale
