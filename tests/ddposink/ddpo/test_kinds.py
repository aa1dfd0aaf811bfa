"""SD3, Flux and SDXL: the engine asks each network as the library's own pipeline does, and trains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.lora import check_lora
from ddposink.ddpo.networks import Rows, network_of
from ddposink.ddpo.policy import DenoisingPolicy, Texts
from ddposink.ddpo.preflight.run import preflight
from ddposink.ddpo.sampler import pictures
from ddposink.ddpo.schedule import flow_schedule
from ddposink.ddpo.table import flow_table, grid
from ddposink.evaluation.drift import kl_per_step, weight_change
from ddposink.evaluation.scores import Evaluator
from ddposink.models.denoiser import denoiser, latent_shape
from ddposink.models.diffusion import PipelineRef, check_kernel, load_pipeline
from helpers.tiny import brightness, tiny_pipeline
from helpers.tiny_flow import tiny_flux, tiny_sd3, tiny_sdxl

FLOW = {"sample_kernel": "flow-sde", "sample_eta": 0.7}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd3": (tiny_sd3, FLOW),
    "flux": (tiny_flux, FLOW),
    "flux-undistilled": (lambda: tiny_flux(guidance_embeds=False), FLOW | {"sample_guidance_scale": 1.0}),
    "sdxl": (tiny_sdxl, {}),
}
VALUES: dict[str, Any] = {
    "sample_num_steps": 3,
    "sample_guidance_scale": 3.0,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 4,
    "train_learning_rate": 3e-3,
}


def engine(kind: str, **values: Any) -> Any:
    make, own = KINDS[kind]
    return make_engine(DDPOConfig(**VALUES | own | values), make(), brightness, ["cat", "dog"])


def drawn(pipeline: Any, **options: Any) -> torch.Tensor:
    found: torch.Tensor = pipeline(
        "cat",
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
        **{"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 3.0} | options,
    ).images
    return found


@pytest.mark.parametrize(("make", "scale"), [(tiny_sd3, 1.0), (tiny_sd3, 3.0), (tiny_flux, 3.0)])
def test_eulers_steps_of_the_table_draw_what_the_stock_pipeline_draws(
    make: Callable[[], Any], scale: float
) -> None:
    pipeline, steps = make(), 4
    times = grid(steps, 3.0)
    network = network_of(pipeline, 5, scale)
    guided = scale > 1 and not network.embeds_guidance
    text = Texts(pipeline, [""], network).conditions(["cat"], 1).rows(guided)
    policy = DenoisingPolicy(
        denoiser(pipeline),
        flow_schedule(flow_table("ode", times, 0.0), range(steps), torch.device("cpu")),
        scale,
        torch.float32,
        network=network,
    )
    channels, height, width = latent_shape(pipeline)
    x = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            x = policy.mean(step, x, text)
    pipeline.scheduler = type(pipeline.scheduler)(shift=3.0)
    sigmas = np.linspace(1, 1 / steps, steps).tolist()
    options = {"num_inference_steps": steps, "sigmas": sigmas, "max_sequence_length": 5}
    stock = drawn(pipeline, **options, guidance_scale=scale)
    torch.testing.assert_close(pictures(pipeline, x), stock, atol=1e-5, rtol=0)


def test_sdxls_unet_is_asked_as_its_pipeline_asks() -> None:
    pipeline, seen = tiny_sdxl(), []
    pipeline.unet.register_forward_hook(
        lambda _, inputs, named, output: seen.append((inputs, named, output[0])), with_kwargs=True
    )
    drawn(pipeline, negative_prompt="")
    (x, time), named, output = seen[0]
    network = network_of(pipeline, None, 3.0)
    text = Texts(pipeline, [""], network).conditions(["cat"], 1).rows(guided=True)
    torch.testing.assert_close(text.tokens, named["encoder_hidden_states"])
    with torch.no_grad():
        torch.testing.assert_close(network.ask(pipeline.unet, x, time, text), output)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_exported_and_gone_on_with(kind: str, tmp_path: Path) -> None:
    one = engine(kind)
    assert one.ratio_deviation().max() < 1e-5
    before = drawn(one.pipeline)
    list(one.run(1))
    one.export(tmp_path)
    stock = KINDS[kind][0]()
    check_lora(stock, tmp_path / "pytorch_lora_weights.safetensors")
    stock.load_lora_weights(tmp_path)
    torch.testing.assert_close(drawn(stock), drawn(one.pipeline), atol=1e-5, rtol=0)
    with one.base():
        torch.testing.assert_close(drawn(one.pipeline), before, atol=1e-5, rtol=0)
    one.save(tmp_path / "saved")
    other = engine(kind)
    other.load(tmp_path / "saved")
    rewards = [next(iter(e.run(2))).reward_mean for e in (one, other)]
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize("kind", ["sd3", "flux", "sdxl"])
def test_every_kind_is_evaluated_at_fixed_noise(kind: str) -> None:
    one = engine(kind)
    kernel = one.config.sample_kernel
    evaluator = Evaluator(
        one.pipeline, ("cat", "dog"), 2, 3.0, 0.7, negatives=("", "dog"), kernel=kernel,
        shift=None if kernel == "ddim" else 2.0,
    )  # fmt: skip
    scheduler = one.pipeline.scheduler
    images = evaluator.draw(3).images
    assert images.shape == (4, 3, 16, 16)
    assert one.pipeline.scheduler is scheduler
    torch.testing.assert_close(evaluator.draw(3, limit=1).images[0], images[0], atol=1e-5, rtol=0)
    assert kl_per_step(one, evaluator, 3, 2) == 0
    list(one.run(1))
    assert kl_per_step(one, evaluator, 3, 2) > 0
    assert weight_change(one) > 0


def test_rows_without_guidance_are_not_asked_twice() -> None:
    rows: list[int] = []
    one = engine("sd3", sample_guidance_scale=1.0)
    ask = one._policy.network.ask

    class Heard:
        flow, embeds_guidance, length = True, False, 0

        def ask(self, model: Any, x: torch.Tensor, time: torch.Tensor, text: Rows) -> torch.Tensor:
            rows.append(len(text))
            found: torch.Tensor = ask(model, x, time, text)
            return found

    one._policy.network = Heard()
    (log,) = one.run(1)
    assert sum(rows) == 4 * (3 + 3)
    assert log.unet_forwards == 4 * (3 + 3 * 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    for name, make in (("sd3", tiny_sd3), ("flux", tiny_flux), ("sdxl", tiny_sdxl)):
        make().save_pretrained(folder / name)
    return {name: folder / name for name in ("sd3", "flux", "sdxl")}


@pytest.mark.parametrize("kind", ["sd3", "flux", "sdxl"])
def test_a_directory_of_each_kind_is_loaded(kind: str, saved: dict[str, Path]) -> None:
    ref = PipelineRef.parse(f"path:{saved[kind]}")
    pipeline: Any = load_pipeline(ref)
    original = KINDS[kind][0]()
    for name, value in denoiser(original).state_dict().items():
        torch.testing.assert_close(denoiser(pipeline).state_dict()[name], value)
    assert drawn(pipeline).isfinite().all()
    assert not any(p.requires_grad for p in denoiser(pipeline).parameters())
    assert set(ref.identity()) == {"sha256"}


@pytest.mark.parametrize(
    ("kind", "file", "change", "said"),
    [
        ("sd3", "model_index.json", {"text_encoder_2": [None, None]}, "without a second text encoder"),
        ("sd3", "model_index.json", {"transformer": ["x", "Other"]}, "is a Other, expected SD3Transformer"),
        ("sd3", "model_index.json", {"_class_name": "StableDiffusion3Img2ImgPipeline"}, "needs a picture"),
        ("sd3", "transformer/config.json", {"in_channels": 16}, "takes 16 channels where the latents have 4"),
        ("sd3", "transformer/config.json", {"joint_attention_dim": 20}, "text of width 20 where .* give 24"),
        ("sd3", "transformer/config.json", {"pooled_projection_dim": 16}, "pooled text of width 16"),
        ("sd3", "model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "none of flow models"),
        ("flux", "transformer/config.json", {"joint_attention_dim": 16}, "text of width 16 where .* give 8"),
        ("flux", "model_index.json", {"text_encoder_2": [None, None]}, "without a second text encoder"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "not told sizes and a pooled text"),
        ("sdxl", "unet/config.json", {"cross_attention_dim": 16}, "width 16 where text encoders give 24"),
    ],
)
def test_what_is_not_supported_is_refused_before_weights_load(
    kind: str, file: str, change: dict[str, Any], said: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """Only the small files are there: nothing else has been read."""
    for source in saved[kind].rglob("*"):
        if source.is_file():
            copy = tmp_path / source.relative_to(saved[kind])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(b"" if source.suffix == ".safetensors" else source.read_bytes())
    target = tmp_path / file
    target.write_text(json.dumps(json.loads(target.read_text()) | change))
    with pytest.raises(ValueError, match=said) as caught:
        PipelineRef.parse(f"path:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_kernel_is_refused_by_the_directory_alone(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="is a flow model, which DDIM does not denoise"):
        check_kernel(PipelineRef.parse(f"path:{saved['sd3']}"), "ddim")
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline is no flow model"):
        check_kernel(PipelineRef.parse(f"path:{saved['sdxl']}"), "cps")
    with pytest.raises(ValueError, match="not a StableDiffusionXLPipeline; set engine to native"):
        check_kernel(PipelineRef.parse("random:sdxl"), "ddim", "trl")
    check_kernel(PipelineRef.parse("random:sd35-medium"), "cps")


def test_lora_of_another_base_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    file = "pytorch_lora_weights.safetensors"
    engine("sd3").export(tmp_path / "sd3")
    engine("sdxl").export(tmp_path / "sdxl")
    for pipeline, other in ((tiny_pipeline(), "sd3"), (tiny_sd3(), "sdxl"), (tiny_flux(), "sd3")):
        with pytest.raises(ValueError, match="LoRA layers of another base") as caught:
            check_lora(pipeline, tmp_path / other / file)
        assert "\n" not in str(caught.value)
    wider = tiny_sd3()
    wider.transformer.transformer_blocks[0].attn.to_q = torch.nn.Linear(20, 16)
    with pytest.raises(ValueError, match="is 16 wide there and 20 here"):
        check_lora(wider, tmp_path / "sd3" / file)
    (tmp_path / "cut").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read"):
        check_lora(tiny_sd3(), tmp_path / "cut")


def test_the_preflight_examines_a_flow_model_or_says_what_it_lacks() -> None:
    values = FLOW | {"sample_sde_window": 2, "sample_num_steps": 4, "mixed_precision": "no"}
    found = preflight(tiny_sd3(), values)
    assert [check.name for check in found if not check.ok] == []
    with pytest.raises(ValueError, match="set sample_kernel to flow-sde"):
        preflight(tiny_sd3(), {"mixed_precision": "no"})
