"""The `ddpo` workload on a flow model: what a cell says, measures and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.suite.plan import make_plan
from ddposink.models.diffusion import PipelineRef, load_pipeline
from ddposink.workloads import ddpo_generate
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload
from helpers.tiny_flow import tiny_flux, tiny_sd3
from helpers.training import Ctx, suite

FLOW = {"sample_kernel": "flow-sde", "sample_eta": 0.7, "sample_sde_window": 2}


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny SD3 pipeline as a suite names it, with prompts beside it."""
    folder = tmp_path_factory.mktemp("flow")
    tiny_sd3(shift=3.0).save_pretrained(folder / "sd3")
    (folder / "prompts.txt").write_text("cat\ndog\nred fox\nowl\n")
    return f"path:{folder / 'sd3'}"


@pytest.fixture(scope="module")
def measured(flow: str, tmp_path_factory: pytest.TempPathFactory) -> Ctx:
    ctx, workload = Ctx(tmp_path_factory.mktemp("run") / "out"), DdpoWorkload()
    changed = suite(flow, **FLOW, samples_per_prompt=2, train_learning_rate=1e-2, grid={"steps": [0, 1]})
    for work in make_plan(changed, workload).passes:
        workload.run(work, ctx)
    return ctx


def test_a_cell_is_measured_and_says_its_kernel(measured: Ctx) -> None:
    base, last = (measured.answers[f"jpeg_compressibility · flow-sde in 2 · {n}"] for n in (0, 1))
    assert base["metrics"]["kl_per_step"] == 0
    assert last["metrics"]["kl_per_step"] > 0
    assert last["metrics"]["unet_forwards"] == 4 * 2 * (3 + 3 * 2)  # guided; two of three steps learnt from
    assert last["metrics"]["weight_change"] > 0
    assert last["conformance"]["ratio_deviation_before_training"] < 1e-5


def test_columns_name_kernel_window_and_shift(flow: str) -> None:
    params = DdpoParams(pipeline=flow, reward="noise", steps=1, sample_num_steps=4, **FLOW)
    columns = DdpoWorkload().columns(params)
    assert columns["kernel"] == "flow-sde"
    assert (columns["sde_window"], columns["learnt_denoising_steps"]) == (2, 2)
    assert (columns["window_moves"], columns["shift"], columns["eta"]) == ("fixed", None, 0.7)


def test_tuned_weights_are_loaded_into_their_own_base_only(measured: Ctx, flow: str) -> None:
    weights = measured.out / "weights-1"
    pipeline: Any = load_pipeline(PipelineRef.parse(flow))
    before = {name: p.clone() for name, p in pipeline.transformer.named_parameters()}
    ddpo_generate.load_tuned(pipeline, weights)
    added = [p for n, p in pipeline.transformer.named_parameters() if ".lora_B." in n]
    assert added
    assert max(float(p.detach().abs().max()) for p in added) > 0
    assert all(torch.equal(p, before[n]) for n, p in pipeline.transformer.named_parameters() if n in before)
    with pytest.raises(ValueError, match="LoRA layers of another base"):
        ddpo_generate.load_tuned(tiny_flux(), weights)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "is a flow model, which DDIM does not denoise; set sample_kernel to flow-sde"),
        (FLOW | {"sample_eta": 0.0}, "makes sampling deterministic"),
        (FLOW | {"sample_sde_window": 9}, "is beyond the 4 denoising steps; use at most 4"),
        ({"sample_kernel": "ode"}, "the log-probability of a deterministic step is undefined"),
    ],
)
def test_a_suite_is_refused_before_anything_is_loaded(values: dict[str, Any], said: str, flow: str) -> None:
    with pytest.raises(ValueError, match=said):
        DdpoParams(pipeline=flow, reward="noise", steps=1, sample_num_steps=4, **values)


def test_a_directory_without_its_second_encoder_is_refused(flow: str, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(flow.removeprefix("path:"), tmp_path / "sd3")
    shutil.rmtree(copy / "text_encoder_2")
    with pytest.raises(ValueError, match="lacks the folder 'text_encoder_2' that its"):
        DdpoParams(pipeline=f"path:{copy}", reward="noise", steps=1, **FLOW)


def test_the_divergence_of_a_sampling_without_noise_is_measured_with_some() -> None:
    from types import SimpleNamespace

    from ddposink.evaluation.drift import _noisy
    from ddposink.evaluation.scores import Evaluator

    def seen(kernel: str, eta: float) -> tuple[str, float]:
        found = _noisy(Evaluator(SimpleNamespace(), ("cat",), 1, 1.0, eta, kernel=kernel))
        return found.kernel, found.eta

    assert seen("ode", 1.0) == ("flow-sde", 0.7)
    assert seen("ddim", 0.0) == ("ddim", 1.0)
    assert seen("cps", 0.8) == ("cps", 0.8)
    assert seen("flow-sde", 0.0) == ("flow-sde", 0.7)
