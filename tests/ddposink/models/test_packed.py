"""Packed weights: nothing moves by more than half a step, and what is read back is exact everywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load, load_file

from ddposink.models.assembled import DATA, MODELS, PIPELINES, assembled, precision
from ddposink.models.packed import (
    LEAST,
    PACKED,
    pack,
    pack_bytes,
    packed_name,
    unpack,
    unpack_bytes,
    whole_name,
)

FINITE = st.floats(-60_000, 60_000, width=32)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FINITE)


def slowly(row: list[float]) -> tuple[list[int], float]:
    """The formula of the module's docstring for one row, a number at a time."""
    wanted = max(max(abs(x) for x in row) / 127, LEAST)
    scale = np.float16(wanted)
    while float(scale) < np.float32(wanted):
        scale = np.nextafter(scale, np.float16(np.inf))
    return [round(x / float(scale)) for x in row], float(scale)


@given(MATRICES)
def test_no_value_moves_by_more_than_half_a_step(matrix: np.ndarray) -> None:
    stored = pack({"a.weight": matrix})
    found = unpack(stored)["a.weight"]
    assert found.shape == matrix.shape
    assert found.dtype == np.float32
    for old, new, scale in zip(matrix, found, stored["a.weight.scale"], strict=True):
        step = float(scale)
        assert np.abs(old.astype(float) - new.astype(float)).max() <= step / 2 * (1 + 1e-6)
        # The step itself is no coarser than it has to be: float16 has 11 bits.
        assert step <= max(float(np.abs(old).max()) / 127, LEAST) * (1 + 2**-10)


@given(MATRICES)
def test_packing_what_was_read_back_changes_nothing(matrix: np.ndarray) -> None:
    once = pack({"a.weight": matrix, "a.bias": matrix.reshape(-1)})
    again = pack(unpack(once))
    assert once.keys() == again.keys()
    assert all(np.array_equal(once[name], again[name]) for name in once)


@given(arrays(np.float32, (1, 5), elements=FINITE))
def test_the_formula_a_number_at_a_time(matrix: np.ndarray) -> None:
    stored = pack({"a.weight": matrix})
    whole, scale = slowly(matrix[0].tolist())
    assert float(stored["a.weight.scale"][0]) == scale
    assert np.abs(stored["a.weight"][0].astype(int) - whole).max() <= 1  # a tie, divided in float32
    exact = [int(q) * scale for q in stored["a.weight"][0]]
    assert unpack(stored)["a.weight"][0].tolist() == exact  # no rounding in float32


def test_what_is_no_matrix_stays_as_float16() -> None:
    waves = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 4, 6)
    stored = pack({"norm.weight": waves[0, 0], "pos_embed": waves, "a.weight": waves})
    assert {name: str(value.dtype) for name, value in stored.items()} == {
        "norm.weight": "float16", "pos_embed": "float16", "a.weight": "int8", "a.weight.scale": "float16",
    }  # fmt: skip
    assert np.array_equal(unpack(stored)["pos_embed"], waves.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a.weight": np.float32([[np.nan, 1]])}, "'a.weight' are not finite"),
        ({"a.bias": np.float32([np.inf])}, "'a.bias' are not finite"),
        ({"a.weight": np.float32([[70_000, 1]])}, "'a.weight' are not finite in float16"),
        ({"a.weight": np.eye(2), "a.weight.scale": np.ones(2)}, "'a.weight.scale' have a name"),
    ],
)
def test_what_cannot_be_packed_is_refused(weights: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pack(weights)


def test_integers_without_scales_are_refused() -> None:
    stored = pack({"a.weight": np.eye(2)})
    del stored["a.weight.scale"]
    with pytest.raises(ValueError, match=r"'a.weight' lack their scales 'a.weight.scale'"):
        unpack(stored)


def test_files_are_named_so_that_no_library_takes_one_for_the_other() -> None:
    assert packed_name("model.safetensors") == "model.packed.safetensors"
    assert whole_name("part/model.packed.safetensors") == "part/model.safetensors"
    assert whole_name("config.json") == "config.json"


SHIPPED = sorted(file for name in (*MODELS, *PIPELINES) for file in (DATA / name).rglob(f"*{PACKED}"))
# sha256 over names, shapes and float32 values of what is put together: the same on every machine.
UNPACKED = {
    "sink-llama/sink-token/model.packed.safetensors": "84476f1296cad4a0a3b8dd78f3ad4592",
    "sink-llama/vanilla/model.packed.safetensors": "d4158a7bb0e848e911292468214abcf9",
    "emoji-sd3/text_encoder_2/model.packed.safetensors": "fcb4cf9d04076bc0c5f8fc7cd571d5d6",
    "emoji-sd3/transformer/diffusion_pytorch_model.packed.safetensors": "b2267ef142e0f48a65f2aa4368849bcb",
}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(DATA).parent.as_posix())
def test_what_ships_is_read_the_same_everywhere(file: Path) -> None:
    name = next(name for name in (*MODELS, *PIPELINES) if file.is_relative_to(DATA / name))
    whole = assembled(name) / whole_name(file.relative_to(DATA / name).as_posix())
    found = load_file(whole)
    digest = hashlib.sha256()
    for key in sorted(found):
        assert found[key].dtype == precision(name)
        digest.update(f"{key}{found[key].shape}".encode() + found[key].astype("<f4").tobytes())
    assert digest.hexdigest()[:32] == UNPACKED[file.relative_to(DATA).as_posix()]
    data = file.read_bytes()
    again = load(pack_bytes(unpack_bytes(data)))
    assert all(np.array_equal(value, again[key]) for key, value in load(data).items())
    assert len(data) < (0.3 if precision(name) == "float32" else 0.55) * whole.stat().st_size


def test_a_pipeline_put_together_is_no_heavier_than_it_was_before_it_was_packed() -> None:
    folder = assembled("emoji-sd3")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 12e6
