"""What leaves a training loads in a stock pipeline and draws the same pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from ddposink.ddpo import DDPOConfig, make_engine
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

VALUES: dict[str, Any] = {
    "sample_num_steps": 3,
    "sample_batch_size": 2,
    "train_batch_size": 2,
    "train_learning_rate": 1e-2,
    "lora_alpha": 6.0,
}


def trained(**values: Any) -> Any:
    engine = make_engine(DDPOConfig(**VALUES | values), tiny_pipeline(0), brightness, PROMPTS)
    list(engine.run(2))
    return engine


def pictures(pipeline: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.from_numpy(
        pipeline(PROMPTS, num_inference_steps=3, generator=generator, output_type="np").images
    )


def test_lora_loads_in_a_stock_pipeline(tmp_path: Path) -> None:
    engine = trained()
    engine.export(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    stock = tiny_pipeline(0)
    base = pictures(stock)
    stock.load_lora_weights(tmp_path)
    live = pictures(engine.pipeline)
    assert torch.allclose(pictures(stock), live, atol=1e-6)
    assert (live - base).abs().max() > 1e-4
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as opened:
        assert all(key.startswith("unet.") for key in opened.keys())  # noqa: SIM118 - not a mapping


def test_full_fine_tuning_exports_a_unet(tmp_path: Path) -> None:
    engine = trained(use_lora=False, train_learning_rate=1e-3)
    engine.export(tmp_path)
    stock = tiny_pipeline(0)
    base = pictures(stock)
    stock.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    assert torch.allclose(pictures(stock), pictures(engine.pipeline), atol=1e-6)
    assert (pictures(stock) - base).abs().max() > 1e-4


@pytest.mark.parametrize(
    "values", [{}, {"use_lora": False, "train_learning_rate": 1e-3}], ids=["lora", "full"]
)
def test_base_is_the_untrained_pipeline(values: dict[str, Any]) -> None:
    engine = trained(**values)
    base, live = pictures(tiny_pipeline(0)), pictures(engine.pipeline)
    with engine.base():
        assert torch.allclose(pictures(engine.pipeline), base, atol=1e-6)
    assert torch.equal(pictures(engine.pipeline), live)
    assert (live - base).abs().max() > 1e-4
    with pytest.raises(KeyError), engine.base():
        raise KeyError
    assert torch.equal(pictures(engine.pipeline), live)


def test_training_goes_on_from_loaded_lora_weights(tmp_path: Path) -> None:
    """TRL adds a fresh adapter beside the loaded one and trains that."""
    first = trained()
    first.export(tmp_path)
    pipeline = tiny_pipeline(0)
    pipeline.load_lora_weights(tmp_path, adapter_name="default")
    engine = make_engine(DDPOConfig(**VALUES), pipeline, brightness, PROMPTS)
    assert torch.allclose(pictures(engine.pipeline), pictures(first.pipeline), atol=1e-6)
    assert len(engine._learner.weights) == len(first._learner.weights)
    list(engine.run(1))
    assert not torch.allclose(pictures(engine.pipeline), pictures(first.pipeline), atol=1e-6)
    with pytest.raises(ValueError, match=r"already has LoRA layers of rank 4 and alpha 6"):
        make_engine(DDPOConfig(**VALUES | {"lora_rank": 8}), pipeline, brightness, PROMPTS)


def test_a_loaded_adapter_is_gone_on_from_whatever_its_name(tmp_path: Path) -> None:
    first = trained()
    first.export(tmp_path)
    pipeline = tiny_pipeline(0)
    pipeline.load_lora_weights(tmp_path)  # a name of the library's own
    engine = make_engine(DDPOConfig(**VALUES), pipeline, brightness, PROMPTS)
    assert list(pipeline.unet.peft_config) != ["default"]
    assert torch.allclose(pictures(engine.pipeline), pictures(first.pipeline), atol=1e-6)
    list(engine.run(1))
    engine.export(tmp_path / "on")
    stock = tiny_pipeline(0)
    stock.load_lora_weights(tmp_path / "on")
    assert torch.allclose(pictures(stock), pictures(engine.pipeline), atol=1e-6)
    with engine.base():
        assert torch.allclose(pictures(engine.pipeline), pictures(tiny_pipeline(0)), atol=1e-6)


def test_another_adapter_than_configured_is_refused(tmp_path: Path) -> None:
    trained().export(tmp_path)

    def refused(*, weight: float = 1.0, twice: bool = False, **values: Any) -> str:
        pipeline = tiny_pipeline(0)
        pipeline.load_lora_weights(tmp_path, adapter_name="mine")
        if twice:
            pipeline.load_lora_weights(tmp_path, adapter_name="other")
        if weight != 1:
            pipeline.set_adapters(["mine"], [weight])
        with pytest.raises(ValueError) as caught:
            make_engine(DDPOConfig(**VALUES | values), pipeline, brightness, PROMPTS)
        return str(caught.value)

    assert "of rank 4 and alpha 6.0, not 4 and 5.0" in refused(lora_alpha=5.0)
    assert "has one and lora_targets does not name it" in refused(lora_targets=("to_k", "to_q"))
    assert "has none" in refused(lora_targets=("to_k", "to_q", "to_v", "to_out.0", "proj_in"))
    assert "load the adapter at weight 1" in refused(weight=0.5)
    assert "has 2 LoRA adapters (mine, other)" in refused(twice=True)


@pytest.mark.parametrize("kind", ["native", "trl"])
def test_every_target_must_match_a_layer(kind: Any) -> None:
    config = DDPOConfig(**VALUES, lora_targets=("to_k", "to_kk"), engine=kind)
    with pytest.raises(ValueError, match=r"'to_kk' matches no layer of the UNet \(did you mean 'to_k'"):
        make_engine(config, tiny_pipeline(0), brightness, PROMPTS)


def test_the_file_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """The order of a set of names differs between processes, unless their hashes are fixed."""
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import test_lora as t;"
        "t.trained().export(Path(sys.argv[1]))"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    files = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(folder), *paths],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            timeout=120,
        )
        files.append((folder / "pytorch_lora_weights.safetensors").read_bytes())
    assert files[0] == files[1]
