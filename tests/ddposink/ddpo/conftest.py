"""What tests of both engines share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from helpers.tiny import tiny_pipeline


@pytest.fixture(autouse=True)
def _fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state for the whole process; TRL's first breakage is about its absence."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline as the library saves it."""
    made = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(made)
    return made
