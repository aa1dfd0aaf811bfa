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
from ddposink.models.pipeline_kinds import refused_class, refused_scheduler, refused_unet
from ddposink.models.pipeline_shapes import SHAPES, random_parts

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

EMBEDDED = {"emoji-sd": Path(__file__).parents[1] / "data" / "emoji-sd"}
DTYPES = ("float32", "bfloat16", "float16")
# What a Stable Diffusion pipeline is made of, and the classes that can be fine-tuned here.
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any: its noise schedule is what DDIM needs
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
CONFIGURED = ("unet", "vae", "text_encoder", "scheduler")
CONFIGS = {"scheduler": "scheduler_config.json"}
FILES = ("*.json", "*.txt", "*.safetensors")
UNWANTED = ["*.fp16.*", "*.non_ema.*", "*flax*", "*openvino*"]
FORMS = "emoji-sd, path:DIR, ORG/NAME@COMMIT or random:sd15"


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

    Raises ValueError for a directory that is no such pipeline, Unavailable if weights cannot be had here.
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
    for name in WEIGHTS:
        parts[name].eval().requires_grad_(False)
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline: Any = StableDiffusionPipeline(**parts, **unused)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_folder(folder: Path) -> None:
    """Raise ValueError in one line unless ``folder`` holds a Stable Diffusion pipeline with safetensors."""
    parts = _index(folder)
    for name, classes in PARTS.items():
        _check_part(folder, name, classes, parts.get(name))
    _check_settings(folder, parts)


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
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from safetensors import SafetensorError
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    common = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    loaders = {
        "unet": lambda part: UNet2DConditionModel.from_pretrained(part, dtype=dtype, **common),
        "vae": lambda part: AutoencoderKL.from_pretrained(part, dtype=dtype, **common),
        "text_encoder": lambda part: CLIPTextModel.from_pretrained(part, dtype=dtype, **common),
    }
    try:
        parts = {name: _complete(folder / name, load) for name, load in loaders.items()}
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        parts["scheduler"] = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, KeyError, RuntimeError, TypeError, ImportError, SafetensorError) as error:
        raise ValueError(f"'{folder}' could not be loaded: {hub.one_line(error)}") from error
    return parts


def _complete(part: Path, load: Any) -> Any:
    """The model, if all its weights were there: the libraries fill in random ones and only warn."""
    model, info = load(part)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"'{part}' lacks {len(missing)} of the model's weights, e.g. {missing[0]}")
    if wrong := sorted(info["mismatched_keys"]):
        raise ValueError(f"'{part}' has {len(wrong)} weights of another shape, e.g. {wrong[0]}")
    return model


def snapshot(name: str, revision: str) -> Path:
    """The folder of a hub pipeline at ``revision``; see `hub.snapshot`."""
    wanted = ["model_index.json", *(f"{part}/{pattern}" for part in PARTS for pattern in FILES)]
    first = (["model_index.json", "*/*config.json"], check_kind)  # gigabytes are not fetched to be refused
    return hub.snapshot(name, revision, wanted=wanted, unwanted=UNWANTED, lacks=_check_cached, first=first)


def _check_cached(folder: Path, _: str) -> None:
    check_folder(folder)


def _hash_folder(folder: Path) -> str:
    """sha256 over names and contents of the files that make the pipeline."""
    digest = hashlib.sha256()
    files = [folder / "model_index.json"]
    files += [file for part in PARTS for pattern in FILES for file in (folder / part).glob(pattern)]
    for file in sorted(files):
        name = file.relative_to(folder).as_posix()
        with file.open("rb") as opened:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
