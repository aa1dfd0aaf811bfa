"""Pipelines: names, true shapes, and that a directory is either the pipeline it says or refused in a line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddposink.assets import hub
from ddposink.errors import Unavailable
from ddposink.models import diffusion
from ddposink.models.assembled import assembled
from ddposink.models.diffusion import EMBEDDED, PipelineRef, drawn_size, load_pipeline
from ddposink.models.pipeline_kinds import refused_parts
from ddposink.models.pipeline_shapes import SHAPES, byte_tokenizer, random_parts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = {
    "kind": "StableDiffusionPipeline",
    "unet": {
        "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 16, "attention_head_dim": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "vae": {
        "block_out_channels": [8, 8], "norm_num_groups": 4, "sample_size": 16,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder": {
        "vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 12, "bos_token_id": 512, "eos_token_id": 513,
    },
    "scheduler": SHAPES["sd15"]["scheduler"],
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random pipeline as the library saves it, with PNDM as in Stable Diffusion 1.5."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("tiny") / "sd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", TINY)
        _, parts = random_parts("tiny", torch.float32, "cpu")
    parts["scheduler"] = PNDMScheduler.from_config(parts["scheduler"].config, skip_prk_steps=True)
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **unused).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "sd"))


def load(text: str, dtype: str = "float32") -> Any:
    return load_pipeline(PipelineRef.parse(text), dtype)


def draw(pipeline: Any) -> torch.Tensor:
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    return pipeline("a red apple", **options).images


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("emoji-sd", "embedded", "emoji-sd", None),
        ("emoji-sd-unfinished", "made", "emoji-sd-unfinished", None),
        ("random:sd15", "random", "random:sd15", None),
        (f"stabilityai/sd-turbo@{COMMIT}", "hub", "stabilityai/sd-turbo", COMMIT),
    ],
)
def test_pipelines_are_named(text: str, kind: str, name: str, revision: str | None) -> None:
    ref = PipelineRef.parse(text)
    assert (ref.kind, ref.name, ref.revision) == (kind, name, revision)
    assert str(ref) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("emoji-ds", "unknown pipeline 'emoji-ds'.*did you mean 'emoji-sd'.*path:DIR"),
        ("random:sd51", "unknown shape 'sd51'.*did you mean 'sd15'"),
        ("org/name", "a commit is missing; write org/name@COMMIT"),
        ("org/name@main", "'main' is no commit, and a branch may move; write org/name@COMMIT"),
        (f"org/name@{COMMIT[:-1]}", "is no commit"),
        ("path:/no/such/folder", "model_index.json is missing"),
        ("", "unknown pipeline ''"),
    ],
)
def test_what_is_no_pipeline_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        PipelineRef.parse(text)
    assert "\n" not in str(caught.value)


def test_a_directory_is_loaded_ready_for_ddim(saved: Path) -> None:
    pipeline = load(f"path:{saved}")
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.scheduler.config.steps_offset == 1
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.safety_checker is None
    modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert not any(module.training for module in modules)
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert draw(pipeline).shape == (1, 3, 16, 16)


def test_the_weights_are_those_of_the_directory(saved: Path) -> None:
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(saved)
    ours = load(f"path:{saved}")
    for part in ("unet", "vae", "text_encoder"):
        wanted = getattr(stock, part).state_dict()
        assert all(torch.equal(v, wanted[k]) for k, v in getattr(ours, part).state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_part_has_the_dtype(dtype: str, saved: Path) -> None:
    pipeline = load(f"path:{saved}", dtype)
    kinds = {
        p.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()
    }
    assert kinds == {getattr(torch, dtype)}


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown dtype 'float31' .*did you mean 'float32'"):
        load(f"path:{saved}", "float31")


def edit_index(folder: Path, **entries: Any) -> None:
    edit(folder / "model_index.json", **entries)


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def pickle_only(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: edit_index(f, text_encoder=[None, None]), "is a pipeline without a text encoder"),
        (lambda f: edit_index(f, _class_name="StableDiffusionXLPipeline"), "without a second text encoder"),
        (lambda f: edit_index(f, _class_name="StableDiffusion3Pipeline"), "without a transformer"),
        (lambda f: edit_index(f, _class_name="QwenImagePipeline"), "with a language model"),
        (lambda f: edit_index(f, _class_name="StableDiffusionInpaintPipeline"), "a picture and a mask"),
        (lambda f: edit(f / "unet/config.json", in_channels=9), "takes 9 .*have 4: an inpainting model"),
        (lambda f: edit(f / "unet/config.json", out_channels=8), "gives 8 channels where the latents have 4"),
        (lambda f: edit(f / "unet/config.json", addition_embed_type="text_time"), "conditions besides the"),
        (lambda f: edit(f / "unet/config.json", time_cond_proj_dim=256), "takes its guidance scale as an"),
        (lambda f: edit(f / "unet/config.json", cross_attention_dim=32), "text of width 32 .* gives 16"),
        (
            lambda f: edit_index(f, scheduler=["diffusers", "FlowMatchLCMScheduler"]),
            "of flow models",
        ),
        (lambda f: edit(f / "scheduler/scheduler_config.json", use_flow_sigmas=True), "of flow models"),
        (lambda f: (f / "scheduler/scheduler_config.json").write_text("{}"), "is not given by betas"),
        (lambda f: edit_index(f, _class_name="DDPMPipeline"), "needed is one of StableDiffusionPipeline"),
        (lambda f: edit_index(f, unet=["mycode", "MyUNet"]), "is a MyUNet, expected UNet2DConditionModel"),
        (lambda f: shutil.rmtree(f / "vae"), "lacks the folder 'vae'"),
        (
            lambda f: [x.unlink() for x in (f / "tokenizer").iterdir() if x.name != "tokenizer_config.json"],
            "tokenizer' has no vocabulary",
        ),
        (pickle_only, "pickled weights only, which are refused"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "has no complete weights"),
        (lambda f: (f / "model_index.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model_index.json").write_text("[]"), "cannot be read"),
    ],
)
def test_a_directory_that_will_not_do_is_refused_at_once(
    harm: Callable[[Path], Any], said: str, copy: Path
) -> None:
    harm(copy)
    with pytest.raises(ValueError, match=said) as caught:
        PipelineRef.parse(f"path:{copy}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "name"), [("vae", "block_out_channels"), ("unet", "in_channels")])
def test_a_folder_that_does_not_tell_its_size_is_told(part: str, name: str, copy: Path) -> None:
    assert drawn_size(PipelineRef("path", str(copy))) == (16, 16)
    file = copy / part / "config.json"
    settings = json.loads(file.read_text())
    del settings[name]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"not tell the size .* unet and vae have no setting {name}$"):
        drawn_size(PipelineRef("path", str(copy)))
    edit(copy / "unet" / "config.json", in_channels=4, sample_size="8x8")
    edit(copy / "vae" / "config.json", block_out_channels=[4, 4])
    with pytest.raises(ValueError, match="does not tell the size of what it draws: "):
        drawn_size(PipelineRef("path", str(copy)))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: rewrite(f, lambda t: t.pop("conv_in.weight")), "lacks 1 of the .*conv_in.weight"),
        (lambda f: rewrite(f, lambda t: t.update({"conv_in.weight": torch.zeros(2, 2)})), "conv_in.weight"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut"), "not be loaded"),
        (lambda f: (f / "text_encoder" / "config.json").unlink(), "could not be loaded"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "could not be loaded"),
    ],
)
def test_damaged_weights_are_refused_and_never_filled_in(
    harm: Callable[[Path], Any], said: str, copy: Path
) -> None:
    ref = PipelineRef.parse(f"path:{copy}")
    harm(copy)
    with pytest.raises(ValueError, match=said) as caught:
        load_pipeline(ref)
    assert "\n" not in str(caught.value)


def test_identity_follows_the_files(copy: Path) -> None:
    ref = PipelineRef.parse(f"path:{copy}")
    before = ref.identity()
    (copy / "README.md").write_text("words about it")
    assert ref.identity() == before
    rewrite(copy, lambda tensors: tensors["conv_in.bias"].add_(1))
    assert ref.identity() != before
    assert PipelineRef.parse(f"org/name@{COMMIT}").identity() == {"revision": COMMIT}
    assert set(PipelineRef.parse("random:sd15").identity()) == {"shape"}


def test_names_and_identity_need_no_torch(saved: Path) -> None:
    code = (
        "import sys\nfrom ddposink.models.diffusion import PipelineRef\n"
        f"for text in ('path:{saved}', 'random:sd15', 'org/name@{COMMIT}'):\n"
        "    PipelineRef.parse(text).identity()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def hub_layout(cache: Path, source: Path, name: str) -> Path:
    """``source`` as the hub's own cache would hold it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cache


def test_a_pinned_hub_pipeline_comes_from_the_cache(hub_cache: Path, saved: Path) -> None:
    hub_layout(hub_cache, saved, "org/name")
    wanted, found = load(f"path:{saved}"), load(f"org/name@{COMMIT}")
    assert torch.equal(draw(found), draw(wanted))


def test_a_hub_pipeline_that_is_not_here_is_unavailable(hub_cache: Path) -> None:
    with pytest.raises(Unavailable, match=r"org/name@0123456789ab is not in .* HF_HUB_OFFLINE is set"):
        load(f"org/name@{COMMIT}")


def test_an_incomplete_hub_pipeline_is_unavailable_offline(hub_cache: Path, saved: Path) -> None:
    folder = hub_layout(hub_cache, saved, "org/name")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Unavailable, match=r"cannot be used .*has no complete weights"):
        load(f"org/name@{COMMIT}")


def test_only_needed_files_of_a_hub_pipeline_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    """Some repositories hold the weights three times and a safety checker: gigabytes nobody asked for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    offered = [
        "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "unet/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/model.safetensors", "text_encoder/model.safetensors", "tokenizer/merges.txt",
    ]  # fmt: skip
    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        patterns = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
        asked.extend(filter_repo_objects(offered, **patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    diffusion.snapshot("org/name", COMMIT)
    assert asked == [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors", "tokenizer/merges.txt",
    ]  # fmt: skip


def test_a_download_that_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(name: str, local_files_only: bool = False, **_: Any) -> str:
        raise LocalEntryNotFoundError("none") if local_files_only else OSError("404\nnot found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    with pytest.raises(Unavailable, match="could not be downloaded: 404 not found"):
        diffusion.snapshot("org/name", COMMIT)


def test_what_cannot_be_trained_is_refused_before_its_weights_are_fetched(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    edit_index(copy, _class_name="StableDiffusionInpaintPipeline")
    fetched: list[list[str]] = []

    def download(name: str, allow_patterns: list[str], local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("none")
        fetched.append(allow_patterns)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    with pytest.raises(ValueError, match="a picture and a mask"):
        diffusion.snapshot("org/name", COMMIT)
    assert fetched == [["model_index.json", "*/*config.json"]]


def test_random_sd15_has_the_published_sizes() -> None:
    """860M, 84M and 123M parameters, as the original weights; made without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = SHAPES["sd15"]
    with torch.device("meta"):
        models = (
            UNet2DConditionModel(**shape["unet"]),
            AutoencoderKL(**shape["vae"]),
            CLIPTextModel(CLIPTextConfig(**shape["text_encoder"])),
        )
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]


def test_random_shapes_of_other_kinds_have_the_published_sizes() -> None:
    """SDXL's UNet and second text encoder; transformers of SD3.5 medium and Flux; Flux' T5."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    with torch.device("meta"):
        models = (
            UNet2DConditionModel(**SHAPES["sdxl"]["unet"]),
            CLIPTextModelWithProjection(CLIPTextConfig(**SHAPES["sdxl"]["text_encoder_2"])),
            SD3Transformer2DModel(**SHAPES["sd35-medium"]["transformer"]),
            FluxTransformer2DModel(**SHAPES["flux-dev"]["transformer"]),
            T5EncoderModel(T5Config(**SHAPES["flux-dev"]["text_encoder_2"])),
        )
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes[:2] == [2_567_463_684, 694_659_840]
    assert [round(size / 1e9, 2) for size in sizes[2:]] == [2.24, 11.90, 4.76]
    for shape in SHAPES.values():
        kind = shape["kind"]
        assert refused_parts(kind, {k: v for k, v in shape.items() if k != "kind"}) is None


def test_random_weights_of_a_flow_model_draw_something_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are embedded as the library does it: they are no weights."""
    from diffusers import SD3Transformer2DModel

    clip = TINY["text_encoder"] | {"num_hidden_layers": 2, "projection_dim": 16}
    transformer = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32,
        "caption_projection_dim": 16, "pooled_projection_dim": 32, "pos_embed_max_size": 12,
    }  # fmt: skip
    vae = TINY["vae"] | {"shift_factor": 0.1, "latent_channels": 4}
    tiny = {"kind": "StableDiffusion3Pipeline", "transformer": transformer, "vae": vae, "scheduler": {}}
    monkeypatch.setitem(SHAPES, "tiny", tiny | {"text_encoder": clip, "text_encoder_2": clip})
    pipeline = load("random:tiny")
    assert draw(pipeline).isfinite().all()
    wanted = SD3Transformer2DModel(**transformer).pos_embed.pos_embed
    torch.testing.assert_close(pipeline.transformer.pos_embed.pos_embed, wanted)


def test_random_weights_of_flux_are_trained_by_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shape made small: two text encoders, 2x2 squares, guidance that is an input."""
    from ddposink.ddpo import DDPOConfig, make_engine
    from ddposink.workloads.ddpo import DdpoWorkload

    transformer = SHAPES["flux-dev"]["transformer"] | {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": [4, 6, 6],
        "pooled_projection_dim": TINY["text_encoder"]["hidden_size"],
    }  # fmt: skip
    t5 = SHAPES["flux-dev"]["text_encoder_2"] | {
        "vocab_size": 600, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2,
    }  # fmt: skip
    tiny = SHAPES["flux-dev"] | {
        "transformer": transformer, "text_encoder": TINY["text_encoder"], "text_encoder_2": t5,
        "vae": TINY["vae"] | {"sample_size": 16, "shift_factor": 0.1, "latent_channels": 4},
    }  # fmt: skip
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    settings: dict[str, Any] = {
        "sample_kernel": "flow-sde", "sample_eta": 0.7, "sample_num_steps": 2, "sample_guidance_scale": 3.5,
        "sample_batch_size": 2, "train_batch_size": 2,
    }  # fmt: skip
    config = DDPOConfig(mixed_precision="no", max_sequence_length=8, **settings)
    engine = make_engine(config, load("random:tiny"), lambda images, _: images.mean((1, 2, 3)), ["a", "b"])
    (log,) = engine.run(1)
    assert math.isfinite(log.loss)
    assert log.unet_forwards == 4 * (2 + 3 * 2)  # one forward a step, although guided
    workload = DdpoWorkload()
    params = {name: workload.Params(pipeline=pipeline, reward="jpeg_compressibility", steps=1, **settings)
              for name, pipeline in (("flux", "random:tiny"), ("sd3", "random:sd35-medium"))}  # fmt: skip
    assert workload.cost(params["flux"]).amount < workload.cost(params["sd3"]).amount


def test_random_weights_are_seeded_and_draw_something_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    first, second = draw(load("random:tiny")), draw(load("random:tiny"))
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert first.std() > 0


def test_the_byte_tokenizer_has_clips_ids() -> None:
    tokenizer = byte_tokenizer(49406, 77)
    ids = tokenizer("a é", padding="max_length").input_ids
    assert ids[0] == 49406
    assert ids[4:] == [49407] * 73
    assert max(ids[1:4]) < 512  # one letter and two bytes


def test_the_embedded_pipeline_draws_what_it_is_asked_for() -> None:
    """A red apple is redder than a green one, on white, with and without guidance."""
    pipeline = load("emoji-sd")
    for guidance in (1.0, 4.0):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        options = {"num_inference_steps": 10, "guidance_scale": guidance, "output_type": "pt"}
        images = pipeline(["red apple", "green apple"], generator=generators, **options).images
        assert images.shape == (2, 3, 64, 64)
        red, green = images[:, :, 24:48, 16:48].mean((2, 3))
        assert red[0] > red[1] + 0.2
        assert green[1] > green[0] + 0.05
        assert images[:, :, 0, 0].min() > 0.8


def test_the_embedded_pipeline_is_small_and_says_what_it_is() -> None:
    import hashlib

    folder = EMBEDDED["emoji-sd"]
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 20_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for file in folder.rglob("*.safetensors"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in card


def test_the_embedded_flow_pipeline_draws_what_it_is_asked_for() -> None:
    """At ten and at twenty steps, without guidance and with, beside the library's zeros and without them."""
    pipeline = load("emoji-sd3")
    assert type(pipeline).__name__ == "StableDiffusion3Pipeline"
    for guidance, steps, length in ((1.0, 10, 0), (3.0, 20, 0), (1.0, 4, 256)):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        images = pipeline(
            ["red apple", "green apple"], generator=generators, num_inference_steps=steps, output_type="pt",
            guidance_scale=guidance, max_sequence_length=length,
        ).images  # fmt: skip
        assert images.shape == (2, 3, 64, 64)
        red, green = images[:, :, 24:48, 16:48].mean((2, 3))
        assert red[0] > red[1] + 0.2
        assert green[1] > green[0] + 0.05
        assert images[:, :, 0, 0].min() > 0.8


def test_the_embedded_flow_pipeline_is_a_directory_that_the_library_loads() -> None:
    """Every weight is the one that this package loads; parts of `emoji-sd` are that pipeline's to the bit."""
    from diffusers import StableDiffusion3Pipeline

    folder = assembled("emoji-sd3")
    assert folder == assembled("emoji-sd3")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 12_000_000
    assert not [f for f in folder.rglob("*") if f.suffix not in (".json", ".safetensors", "")]
    stock = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    ours, base = load("emoji-sd3"), load("emoji-sd")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        wanted = getattr(stock, part).state_dict()
        found = getattr(ours, part).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name].float()) for name, value in found.items())
    for name, value in base.vae.state_dict().items():
        assert torch.equal(value, ours.vae.state_dict()[name])
    ids = base.tokenizer("red apple", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, ours.tokenizer("red apple", padding="max_length", return_tensors="pt").input_ids)
    with torch.no_grad():
        pooled = ours.text_encoder(ids).text_embeds
        torch.testing.assert_close(pooled, base.text_encoder(ids).pooler_output)


def test_training_and_the_pipeline_encode_alike() -> None:
    """What the flow model was trained on is what its pipeline and the engine give it."""
    from ddposink.ddpo.networks import network_of
    from ddposink.embedded.pipeline.flow import FlowDenoiser, FlowRecipe

    pipeline = load("emoji-sd3")
    denoiser = FlowDenoiser(FlowRecipe(), EMBEDDED["emoji-sd"] / "text_encoder")
    denoiser.text_encoder_2 = pipeline.text_encoder_2
    ids = pipeline.tokenizer("red apple", padding="max_length", return_tensors="pt").input_ids
    text = network_of(pipeline, None, 1.0).encode(pipeline, "red apple")
    with torch.no_grad():
        tokens, pooled = denoiser.encode(ids)
    torch.testing.assert_close(text.tokens, tokens[0])
    torch.testing.assert_close(text.pooled, pooled[0])


def test_a_pipeline_that_has_to_be_made_says_by_which_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path))
    ref = PipelineRef.parse("emoji-sd-unfinished")
    with pytest.raises(Unavailable, match="has not been made on this machine: python -m"):
        ref.identity()
    shutil.copytree(EMBEDDED["emoji-sd"], tmp_path / "tiny" / "emoji-sd-unfinished")
    assert ref.identity() == PipelineRef.parse("emoji-sd").identity()
    assert type(load_pipeline(ref)).__name__ == "StableDiffusionPipeline"


def test_an_assembled_pipeline_is_made_once_whole_and_anew_when_its_parts_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddposink.models import assembled as module

    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path / "cache"))
    first = assembled("emoji-sd3")
    assert first.is_relative_to(tmp_path)
    assert [f.name for f in first.parent.iterdir()] == ["emoji-sd3"]
    copy = shutil.copytree(module.DATA / "emoji-sd3", tmp_path / "data" / "emoji-sd3")
    monkeypatch.setattr(module, "DATA", tmp_path / "data")
    assert assembled("emoji-sd3") == first
    edit(copy / "scheduler" / "scheduler_config.json", shift=2.0)
    assert assembled("emoji-sd3") != first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="set DDPOSINK_CACHE"):
        assembled("emoji-sd3")


@pytest.mark.parametrize("name", ["emoji-sd3", "sink-llama/vanilla"])
@pytest.mark.parametrize("damage", ["altered", "cut", "gone", "one more", "no seal", "empty"])
def test_what_was_put_together_and_damaged_since_is_made_anew(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise other weights or tokens would be measured under the same identity."""
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path))
    folder = assembled(name)
    before = {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    weights = next(folder.rglob("*.safetensors"))
    data = weights.read_bytes()
    if damage == "altered":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "gone":
        next(folder.rglob("tokenizer.json")).unlink()
    elif damage == "one more":
        (folder / "adapter_config.json").write_text("{}")
    elif damage == "no seal":
        (folder / "SHA256").unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert assembled(name) == folder
    assert {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before


def test_other_code_puts_together_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddposink.models import packed

    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path))
    first = assembled("sink-llama/vanilla")
    code = tmp_path / "packed.py"
    code.write_text(Path(packed.__file__).read_text(encoding="utf-8") + "# other\n", encoding="utf-8")
    monkeypatch.setattr(packed, "__file__", str(code))
    assert assembled("sink-llama/vanilla") != first


def test_the_embedded_flow_pipelines_card_has_its_hashes() -> None:
    import hashlib

    folder = EMBEDDED["emoji-sd3"]
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 4_200_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    weights = list(folder.rglob("*.safetensors"))
    assert len(weights) == 2
    for file in weights:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in card
