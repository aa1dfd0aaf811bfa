"""Diffusion pipelines by name: the embedded one, a directory, random weights of true shape, a pinned hub id.

Parsing and identity need no torch and no network, so that a suite can be planned anywhere. The parts are
loaded one by one, by classes named here: safetensors only, every weight present, no code from a model.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.assets import hub
from ddposink.assets.catalogue import cache_dir
from ddposink.errors import Unavailable, suggest
from ddposink.models.assembled import PIPELINES, assembled, sources_sha256
from ddposink.models.denoiser import PARTS as DENOISERS
from ddposink.models.denoiser import size_of
from ddposink.models.files import files_sha256
from ddposink.models.pipeline_kinds import (
    KINDS,
    refused_class,
    refused_kernel,
    refused_parts,
    refused_scheduler,
)
from ddposink.models.pipeline_shapes import SHAPES, random_parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DATA = Path(__file__).parents[1] / "data"
EMBEDDED = {name: DATA / name for name in ("emoji-sd", *PIPELINES)}
# Pipelines too large to be shipped that a command makes, into the cache folder.
MADE = {"emoji-sd-unfinished": "python -m ddposink.train_tiny unfinished, then export-unfinished (20 min)"}
DTYPES = ("float32", "bfloat16", "float16")
# Without one of these a tokenizer still loads, and knows no word.
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
CONFIGS = {"scheduler": "scheduler_config.json"}
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
UNWANTED = ["*.fp16.*", "*.non_ema.*", "*flax*", "*openvino*"]
PARTS = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.parts))
FORMS = f"{', '.join(EMBEDDED)}, path:DIR, ORG/NAME@COMMIT or random:{{{','.join(SHAPES)}}}"


@dataclass(frozen=True)
class PipelineRef:
    """``kind``: embedded | made | path | hub | random. ``revision`` is a commit of the hub."""

    kind: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> PipelineRef:
        """Read a pipeline's text form; raises ValueError naming what would have been right."""
        if text in EMBEDDED:
            return cls("embedded", text)
        if text in MADE:
            return cls("made", text)
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
        names = (*EMBEDDED, *MADE)
        raise ValueError(f"unknown pipeline '{text}'{suggest(text, names)}; pipelines are written {FORMS}")

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path | None:
        """The local directory, unless on a hub or random. Raises Unavailable if it should be made first."""
        if self.kind == "made":
            return _made(self.name)
        if self.kind == "embedded":
            return assembled(self.name) if self.name in PIPELINES else EMBEDDED[self.name]
        return Path(self.name) if self.kind == "path" else None

    def identity(self) -> dict[str, str]:
        """What the name refers to: revision, shape or sha256 of the files. No torch, no network."""
        if self.kind == "hub":
            return {"revision": self.revision or ""}
        if self.kind == "random":
            shape = SHAPES[self.name.removeprefix("random:")]
            return {"shape": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()}
        if self.name in PIPELINES:
            return {"sha256": sources_sha256(self.name)}
        assert self.folder is not None
        check_folder(self.folder)
        return {"sha256": _hash_folder(self.folder)}


def _made(name: str) -> Path:
    """Where ``name`` lies, or Unavailable with the command that makes it."""
    folder = cache_dir() / "tiny" / name
    if not folder.is_dir():
        raise Unavailable(f"pipeline '{name}' has not been made on this machine: {MADE[name]}")
    return folder


def load_pipeline(ref: PipelineRef, dtype: str = "float32", device: str = "cpu") -> DiffusionPipeline:
    """The pipeline in eval mode without gradients, without a safety checker; a UNet's with a DDIM scheduler.

    Raises ValueError for a directory that is no such pipeline, Unavailable if weights cannot be had here.
    """
    import diffusers
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'{suggest(dtype, DTYPES)}; known: {', '.join(DTYPES)}")
    torch_dtype = getattr(torch, dtype)
    if ref.kind == "random":
        kind, parts = random_parts(ref.name.removeprefix("random:"), torch_dtype, device)
        index: dict[str, Any] = {}
    else:
        folder = ref.folder or snapshot(ref.name, ref.revision or "")
        check_folder(folder)
        index = _index(folder)
        kind = index["_class_name"]
        parts = _load_parts(folder, index, torch_dtype)
    for name in KINDS[kind].networks:
        if parts[name] is not None:
            parts[name].eval().requires_grad_(False)
    settings: dict[str, Any] = {}
    if kind == "StableDiffusionPipeline":
        settings = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    elif kind == "StableDiffusionXLPipeline":
        settings = {"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True)}
    pipeline: Any = getattr(diffusers, kind)(**parts, **settings)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_folder(folder: Path) -> None:
    """Raise ValueError in one line unless ``folder`` holds a pipeline of a known kind with safetensors."""
    index = _index(folder)
    kind = KINDS[index["_class_name"]]
    for name, classes in kind.parts.items():
        if not (name in kind.optional and _absent(index, name)):
            _check_part(folder, name, classes, index.get(name), name in kind.networks)
    _check_settings(folder, index)


def check_kind(folder: Path) -> None:
    """As `check_folder`, of a folder in which there may be no weights yet."""
    _check_settings(folder, _index(folder))


def check_kernel(ref: PipelineRef, kernel: str, engine: str = "native") -> None:
    """Raise ValueError if ``engine`` is known not to denoise ``ref`` by ``kernel``; a hub's kind is not."""
    kind = class_of(ref)
    if kind is not None and (why := refused_kernel(kind, kernel, engine)):
        raise ValueError(f"pipeline '{ref}': {why}")


def class_of(ref: PipelineRef) -> str | None:
    """The class of the pipeline, one of `KINDS`; None for one on a hub, of which nothing is known here."""
    if ref.kind == "hub":
        return None
    if ref.kind == "random":
        return str(SHAPES[ref.name.removeprefix("random:")]["kind"])
    if ref.kind == "made":
        return "StableDiffusionPipeline"
    return str(_index(EMBEDDED.get(ref.name) or Path(ref.name))["_class_name"])


def drawn_size(ref: PipelineRef) -> tuple[int, int] | None:
    """(height, width) in pixels of what the pipeline draws; None where nothing lies here to tell it.

    Raises ValueError for a folder whose settings do not tell it.
    """
    if ref.kind == "random":
        shape = SHAPES[ref.name.removeprefix("random:")]
        return size_of(shape.get("unet") or shape["transformer"], shape["vae"])
    folder = EMBEDDED.get(ref.name) or (Path(ref.name) if ref.kind == "path" else None)
    if folder is None:
        return None
    network = next(part for part in DENOISERS if (folder / part).is_dir())
    settings = [_settings(folder / part / "config.json") for part in (network, "vae")]
    try:
        return size_of(*settings)
    except KeyError as error:
        raise ValueError(
            f"'{folder}' does not tell the size of what it draws: its {network} and vae have no setting "
            f"{error.args[0]}"
        ) from error
    except (TypeError, ValueError) as error:
        said = hub.one_line(error)
        raise ValueError(f"'{folder}' does not tell the size of what it draws: {said}") from error


def embeds_guidance(ref: PipelineRef) -> bool:
    """Whether guidance is known to be an input of the network, and so costs no second forward (Flux)."""
    return class_of(ref) == "FluxPipeline"


def _absent(index: dict[str, Any], name: str) -> bool:
    return index.get(name) in (None, [None, None])


def _index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says of the parts, if the pipeline is of a kind that is trained here."""
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
    found: dict[str, Any] = parts
    return found


def _check_settings(folder: Path, index: dict[str, Any]) -> None:
    kind = KINDS[index["_class_name"]]
    for name in kind.parts:
        if _absent(index, name) and name not in kind.optional:
            raise ValueError(f"'{folder}' is a pipeline without a {_words(name)}")
    settings = {
        name: _settings(folder / name / CONFIGS.get(name, "config.json"))
        for name in (*kind.networks, "scheduler")
        if not (name in kind.optional and _absent(index, name))
    }
    why = refused_parts(index["_class_name"], settings)
    if why := why or refused_scheduler(settings["scheduler"], index["scheduler"][1], kind.flow):
        raise ValueError(f"'{folder}' has {why}")


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{file.parent}' could not be loaded: {hub.one_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{file}' holds no settings")
    return found


def _check_part(folder: Path, name: str, classes: tuple[str, ...], entry: Any, network: bool) -> None:
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found is None:
        raise ValueError(f"'{folder}' is a pipeline without a {_words(name)}")
    if classes and found not in classes:
        raise ValueError(f"the {_words(name)} of '{folder}' is a {found}, expected {classes[0]}")
    part = folder / name
    if not part.is_dir():
        raise ValueError(f"'{folder}' lacks the folder '{name}' that its model_index.json names")
    if name.startswith("tokenizer") and not any((part / file).is_file() for file in VOCABULARIES):
        raise ValueError(f"'{part}' has no vocabulary; needed is one of {', '.join(VOCABULARIES)}")
    stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
    if network and not _has_weights(part, stem):
        pickled = any(part.glob("*.bin")) or any(part.glob("*.ckpt")) or any(part.glob("*.pt*"))
        why = "has pickled weights only, which are refused" if pickled else "has no complete weights"
        raise ValueError(f"'{part}' {why}; needed is {stem}.safetensors")


def _words(name: str) -> str:
    """``text_encoder_2`` as "second text encoder"."""
    ordinal = {"2": "second ", "3": "third "}.get(name[-1], "")
    return ordinal + name.removesuffix("_2").removesuffix("_3").replace("_", " ")


def _has_weights(part: Path, stem: str) -> bool:
    if (part / f"{stem}.safetensors").is_file():
        return True
    index = part / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return False
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((part / shard).is_file() for shard in shards)


def _load_parts(folder: Path, index: dict[str, Any], dtype: Any) -> dict[str, Any]:
    import diffusers
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = KINDS[index["_class_name"]]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler if kind.flow else diffusers.DDIMScheduler
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    parts: dict[str, Any] = {}
    try:
        for name, classes in kind.parts.items():
            if name in kind.optional and _absent(index, name):
                parts[name] = None
                continue
            made: Any = scheduler
            if classes:
                made = getattr(diffusers, classes[0], None) or getattr(transformers, classes[0])
            if name in kind.networks:
                parts[name] = _complete(folder / name, partial(made.from_pretrained, dtype=dtype, **options))
            else:
                parts[name] = made.from_pretrained(folder / name, local_files_only=True)
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
    files = [folder / "model_index.json"]
    files += [file for part in PARTS for pattern in FILES for file in (folder / part).glob(pattern)]
    return files_sha256((file.relative_to(folder).as_posix(), file) for file in sorted(files))
