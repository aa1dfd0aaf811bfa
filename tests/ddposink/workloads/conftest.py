"""What tests of the `ddpo` workload share."""

import pytest

from helpers.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    (folder.parent / "prompts.txt").write_text("cat\ndog\nred fox\nowl\n")
    return f"path:{folder}"
