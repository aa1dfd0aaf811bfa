"""Tiny models run faster on one thread than on several; the real one takes what the machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    if request.node.get_closest_marker("assets") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
