"""Tiny models run faster on one thread than on several; the real one takes what the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    if request.node.get_closest_marker("assets") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion pipeline as the library saves it; only to be read."""
    from helpers.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder
