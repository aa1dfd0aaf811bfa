"""Diffusion pipelines by name: the embedded one, a directory, random weights of true shape, a pinned hub id.

Parsing and identity need no torch and no network, so that a suite can be planned anywhere. The parts are
loaded one by one, by classes named here: safetensors only, every weight present, no code from a model.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.assets import hub
from ddposink.errors import suggest
from ddposink.models.pipeline_kinds import FLOW, refused_class, refused_flow, refused_scheduler, refused_unet
from ddposink.models.pipeline_shapes import SHAPES, random_parts

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DATA = Path(__file__).parents[1] / "data"
EMBEDDED = {"emoji-sd": DATA / "emoji-sd", "emoji-sd3": DATA / "emoji-sd3"}
DTYPES = ("float32", "bfloat16", "float16")
# What a Stable Diffusion pipeline is made of, and the classes that can be fine-tuned here.
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any: its noise schedule is what DDIM needs
}
FLOW_PARTS = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
# Stable Diffusion 3's third encoder is often left out; it is used where it is there.
FLOW_OPTIONAL = {"text_encoder_3": ("T5EncoderModel",), "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer")}
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}
CONFIGURED = ("unet", "vae", "text_encoder", "scheduler")
FLOW_CONFIGURED = ("transformer", "vae", "scheduler")
CONFIGS = {"scheduler": "scheduler_config.json"}
FILES = ("*.json", "*.txt", "*.safetensors")
UNWANTED = ["*.fp16.*", "*.non_ema.*", "*flax*", "*openvino*"]
FORMS = "emoji-sd, emoji-sd3, path:DIR, ORG/NAME@COMMIT or random:sd15"


@dataclass(frozen=True)
class PipelineRef:
    """``kind``: embedded | path | hub | random. ``revision`` is a commit of the hub."""

    kind: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> PipelineRef:
        """Read a pipeline's text form; raises ValueError naming what would have been right."""
        if text in EMBEDDED:
            return cls("embedded", text)
        if text.startswith("random:"):
            shape = text.removeprefix("random:")
            if shape not in SHAPES:
                known = ", ".join(f"random:{name}" for name in SHAPES)
                raise ValueError(f"unknown shape '{shape}'{suggest(shape, SHAPES)}; known: {known}")
            return cls("random", text)
        if text.startswith("path:") or (text and Path(text).is_dir()):
            folder = Path(text.removeprefix("path:"))
            check_folder(folder)
            return cls("path", str(folder))
        if match := re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", text):
            return cls("hub", match[1], match[2])
        if match := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.*))?", text):
            what = f"'{match[2]}' is no commit, and a branch may move" if match[2] else "a commit is missing"
            raise ValueError(
                f"pipeline '{text}': {what}; write {match[1]}@COMMIT with the 40 hex digits shown on the "
                f"model's 'Files' page"
            )
        raise ValueError(f"unknown pipeline '{text}'{suggest(text, EMBEDDED)}; pipelines are written {FORMS}")

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path | None:
        """The local directory of an ``embedded`` or ``path`` pipeline."""
        if self.kind == "embedded":
            return EMBEDDED[self.name]
        return Path(self.name) if self.kind == "path" else None

    @property
    def flow(self) -> bool | None:
        """Whether it is a flow model; None where that is known only once it has been fetched from the hub."""
        if self.kind == "random":
            return "transformer" in SHAPES[self.name.removeprefix("random:")]
        return None if self.folder is None else _is_flow(_index(self.folder))

    def identity(self) -> dict[str, str]:
        """What the name refers to: revision, shape or sha256 of the files. No torch, no network."""
        if self.kind == "hub":
            return {"revision": self.revision or ""}
        if self.kind == "random":
            shape = SHAPES[self.name.removeprefix("random:")]
            return {"shape": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()}
        assert self.folder is not None
        check_folder(self.folder)
        return {"sha256": _hash_folder(self.folder)}


def load_pipeline(ref: PipelineRef, dtype: str = "float32", device: str = "cpu") -> StableDiffusionPipeline:
    """The pipeline in eval mode without gradients, with a DDIM scheduler and no safety checker.

    A flow model comes as a `FlowPipeline` with its own scheduler. Raises ValueError for a directory that is
    no such pipeline, Unavailable if weights cannot be had here.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'{suggest(dtype, DTYPES)}; known: {', '.join(DTYPES)}")
    torch_dtype = getattr(torch, dtype)
    if ref.kind == "random":
        parts = random_parts(ref.name.removeprefix("random:"), torch_dtype, device)
    else:
        folder = ref.folder or snapshot(ref.name, ref.revision or "")
        check_folder(folder)
        parts = _load_parts(folder, torch_dtype)
    for name in WEIGHTS.keys() & parts.keys():
        if parts[name] is not None:
            parts[name].eval().requires_grad_(False)
    pipeline: Any
    if "transformer" in parts:
        pipeline = _flow_pipeline(parts, embedded=ref.kind == "embedded")
    else:
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **unused)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _flow_pipeline(parts: dict[str, Any], *, embedded: bool) -> Any:
    from ddposink.models.flow_pipeline import FlowPipeline, packed

    absent = {name: None for name in FLOW_OPTIONAL if name not in parts}
    pipeline = FlowPipeline(**parts, **absent)
    packed(pipeline.transformer)
    if embedded:
        pipeline.absent_tokens = (
            0  # it was trained with and without zeros for T5; without is four times faster
        )
    return pipeline


def check_folder(folder: Path) -> None:
    """Raise ValueError in one line unless ``folder`` holds a Stable Diffusion pipeline with safetensors."""
    index = _index(folder)
    for name, classes in _parts(index).items():
        _check_part(folder, name, classes, index.get(name))
    _check_settings(folder, index)


def _is_flow(index: dict[str, Any]) -> bool:
    return index["_class_name"] == FLOW


def _parts(index: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The parts that a pipeline with this index must have, and their classes."""
    if not _is_flow(index):
        return dict(PARTS)
    third = index.get("text_encoder_3")
    return FLOW_PARTS | (FLOW_OPTIONAL if isinstance(third, list) and third[1:] != [None] else {})


def check_kind(folder: Path) -> None:
    """As `check_folder`, of a folder in which there may be no weights yet."""
    _check_settings(folder, _index(folder))


def _index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says of the parts, if the pipeline is of the kind that is trained here."""
    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        kind = parts["_class_name"]
    except FileNotFoundError as error:
        raise ValueError(f"'{folder}' holds no pipeline: model_index.json is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{index}' cannot be read: {hub.one_line(error)}") from error
    if why := refused_class(str(kind)):
        raise ValueError(f"'{folder}' holds {why}")
    return parts


def _check_settings(folder: Path, parts: dict[str, Any]) -> None:
    if _is_flow(parts):
        found = [_settings(folder / name / CONFIGS.get(name, "config.json")) for name in FLOW_CONFIGURED]
        if why := refused_flow(*found):
            raise ValueError(f"'{folder}' has {why}")
        return
    settings = {name: _settings(folder / name / CONFIGS.get(name, "config.json")) for name in CONFIGURED}
    if why := refused_unet(settings["unet"], settings["vae"], settings["text_encoder"]):
        raise ValueError(f"'{folder}' has {why}")
    if why := refused_scheduler(settings["scheduler"], parts["scheduler"][1]):
        raise ValueError(f"'{folder}' has {why}")


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{file.parent}' could not be loaded: {hub.one_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{file}' holds no settings")
    return found


def _check_part(folder: Path, name: str, classes: tuple[str, ...], entry: Any) -> None:
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found is None:
        raise ValueError(f"'{folder}' is a pipeline without a {name.replace('_', ' ')}")
    if classes and found not in classes:
        raise ValueError(f"the {name.replace('_', ' ')} of '{folder}' is a {found}, expected {classes[0]}")
    part = folder / name
    if not part.is_dir():
        raise ValueError(f"'{folder}' lacks the folder '{name}' that its model_index.json names")
    if name in WEIGHTS and not _has_weights(part, WEIGHTS[name]):
        pickled = any(part.glob("*.bin")) or any(part.glob("*.ckpt")) or any(part.glob("*.pt*"))
        why = "has pickled weights only, which are refused" if pickled else "has no complete weights"
        raise ValueError(f"'{part}' {why}; needed is {WEIGHTS[name]}.safetensors")


def _has_weights(part: Path, stem: str) -> bool:
    if (part / f"{stem}.safetensors").is_file():
        return True
    index = part / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return False
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((part / shard).is_file() for shard in shards)


def _load_parts(folder: Path, dtype: Any) -> dict[str, Any]:
    import diffusers
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    index, parts = _index(folder), {}
    try:
        for name, classes in _parts(index).items():
            part = folder / name
            if name == "scheduler":
                kind = (
                    diffusers.FlowMatchEulerDiscreteScheduler if _is_flow(index) else diffusers.DDIMScheduler
                )
                parts[name] = kind.from_pretrained(part, local_files_only=True)
            elif name not in WEIGHTS:
                parts[name] = getattr(transformers, classes[0]).from_pretrained(part, local_files_only=True)
            else:
                library = diffusers if WEIGHTS[name].startswith("diffusion") else transformers
                parts[name] = _complete(part, getattr(library, classes[0]), dtype)
    except (OSError, KeyError, RuntimeError, TypeError, ImportError, SafetensorError) as error:
        raise ValueError(f"'{folder}' could not be loaded: {hub.one_line(error)}") from error
    return parts


def _complete(part: Path, kind: Any, dtype: Any) -> Any:
    """The model, if all its weights were there: the libraries fill in random ones and only warn."""
    model, info = kind.from_pretrained(
        part, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"'{part}' lacks {len(missing)} of the model's weights, e.g. {missing[0]}")
    if wrong := sorted(info["mismatched_keys"]):
        raise ValueError(f"'{part}' has {len(wrong)} weights of another shape, e.g. {wrong[0]}")
    return model


def snapshot(name: str, revision: str) -> Path:
    """The folder of a hub pipeline at ``revision``; see `hub.snapshot`."""
    folders = dict.fromkeys([*PARTS, *FLOW_PARTS, *FLOW_OPTIONAL])
    wanted = ["model_index.json", *(f"{part}/{pattern}" for part in folders for pattern in FILES)]
    first = (["model_index.json", "*/*config.json"], check_kind)  # gigabytes are not fetched to be refused
    return hub.snapshot(name, revision, wanted=wanted, unwanted=UNWANTED, lacks=_check_cached, first=first)


def _check_cached(folder: Path, _: str) -> None:
    check_folder(folder)


def _hash_folder(folder: Path) -> str:
    """sha256 over names and contents of the files that make the pipeline."""
    digest = hashlib.sha256()
    files = [folder / "model_index.json"]
    parts = _parts(_index(folder))
    files += [file for part in parts for pattern in FILES for file in (folder / part).glob(pattern)]
    for file in sorted(files):
        name = file.relative_to(folder).as_posix()
        with file.open("rb") as opened:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
