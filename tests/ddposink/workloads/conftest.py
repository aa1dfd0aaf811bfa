"""What tests of the `ddpo` workload share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def pipeline(saved_pipeline: Path) -> str:
    """A tiny pipeline as a suite names it, with prompts beside it."""
    (saved_pipeline.parent / "prompts.txt").write_text("cat\ndog\nred fox\nowl\n")
    return f"path:{saved_pipeline}"
