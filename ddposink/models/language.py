"""Models by name: an embedded asset, a local directory, random weights of true shape, or a pinned hub id.

Parsing and identity need no torch and no network, so that a suite can be planned anywhere. Loading
takes safetensors only and never runs code that came with a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.assets import hub
from ddposink.assets.catalogue import ASSETS, cache_dir, cache_errors
from ddposink.assets.packages import Progress
from ddposink.errors import Unavailable, suggest
from ddposink.models.assembled import DATA, MODELS, assembled
from ddposink.models.files import files_sha256
from ddposink.models.packed import PACKED
from ddposink.models.shapes import SHAPES, random_model

if TYPE_CHECKING:
    from torch import nn

EMBEDDED = {"smollm2-135m": "smollm2-135m-gguf"}
# What the library raises for configurations, weights and tokenizers that do not fit each other or are none.
_UNLOADABLE = (
    *(OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, AssertionError),
    *(IndexError, ZeroDivisionError),
)


@lru_cache(maxsize=64)
def _spelt(folder: str) -> str:
    return str(Path(folder))


@dataclass(frozen=True)
class ModelRef:
    """``kind``: embedded | bundled | path | random | hub. ``revision`` is a commit of the hub."""

    kind: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a model's text form; raises ValueError naming what would have been right."""
        if text in EMBEDDED:
            return cls("embedded", text)
        if text.startswith("bundled:"):
            return cls._bundled(text.removeprefix("bundled:"))
        if text.startswith("random:"):
            name = text.removeprefix("random:")
            if name not in SHAPES:
                raise ValueError(
                    f"unknown architecture '{name}'{suggest(name, SHAPES)}; known: {', '.join(SHAPES)}"
                )
            return cls("random", name)
        if text.startswith("path:") or (text and os.path.isdir(text)):
            return cls._directory(text.removeprefix("path:"))
        if match := re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", text):
            return cls("hub", match[1], match[2])
        if re.fullmatch(r"[\w.-]+/[\w.-]+(@.*)?", text):
            raise ValueError(
                f"hub id '{text}' needs a pinned revision: write ORG/NAME@COMMIT with the 40-digit commit "
                f"shown on the model's 'Files' page"
            )
        raise ValueError(
            f"unknown model '{text}'{suggest(text, EMBEDDED)}; models are written smollm2-135m, path:DIR, "
            f"bundled:NAME, random:ARCHITECTURE or ORG/NAME@COMMIT"
        )

    @classmethod
    def _directory(cls, folder: str) -> ModelRef:
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise ValueError(f"'{Path(folder)}' holds no model: config.json is missing")
        if os.path.isfile(os.path.join(folder, f"model{PACKED}")):
            raise ValueError(
                f"'{Path(folder)}' holds packed weights, which no library reads: write bundled:NAME for "
                f"those of this package, or name the folder 'model' that train_sinks has written beside them"
            )
        return cls("path", _spelt(folder))

    @classmethod
    def _bundled(cls, name: str) -> ModelRef:
        if name not in MODELS:
            raise ValueError(
                f"unknown bundled model '{name}'{suggest(name, MODELS)}; known: {', '.join(MODELS)}"
            )
        return cls("bundled", name)

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path | None:
        """The local directory of a ``path`` or ``bundled`` model, the latter with its weights packed."""
        if self.kind == "bundled":
            return DATA / self.name
        return Path(self.name) if self.kind == "path" else None

    def identity(self) -> dict[str, str]:
        """What the name refers to: revision, sha256 or shape. No network."""
        if self.kind == "embedded":
            return {"sha256": ASSETS[EMBEDDED[self.name]].sha256}
        if self.kind == "hub":
            return {"revision": self.revision or ""}
        if self.kind == "random":
            return {
                "shape": hashlib.sha256(json.dumps(SHAPES[self.name], sort_keys=True).encode()).hexdigest()
            }
        assert self.folder is not None
        return {"sha256": _hash_folder(self.folder)}

    def config_dict(self) -> dict[str, Any] | None:
        """The configuration if it can be had without loading weights or a network, else None."""
        if self.kind in ("random", "embedded"):
            return SHAPES[self.name]
        if self.folder is not None:
            try:
                found = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            except ValueError as error:  # no JSON, or no UTF-8
                raise ValueError(f"'{self.folder}/config.json' is no JSON: {error}") from error
            if not isinstance(found, dict):
                raise ValueError(f"'{self.folder}/config.json' is no JSON object")
            return found
        return None


@dataclass
class LoadedModel:
    """A model in eval mode without gradients; ``tokenizer`` is None for random weights.

    ``train_length`` is the number of positions it was trained for; ``facts`` go into the record.
    """

    model: nn.Module
    tokenizer: Any
    ref: ModelRef
    train_length: int | None
    random_weights: bool
    facts: dict[str, str | int | float | bool | None] = field(default_factory=dict)


def load_model(ref: ModelRef, dtype: str, device: str, progress: Progress | None = None) -> LoadedModel:
    """Load weights and tokenizer. Raises Unavailable with a one-line reason if they cannot be had.

    ``progress`` hears bytes done and in all while an embedded model is fetched.
    """
    import torch

    torch_dtype = getattr(torch, dtype)
    if ref.kind == "random":
        model, tokenizer, stored = random_model(ref.name, torch_dtype, device), None, None
    else:
        model, tokenizer, stored = _pretrained(_local_folder(ref, progress), torch_dtype, device)
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    facts = _facts(model, config) | ({"quantization": _as_run(model, stored)} if stored else {})
    return LoadedModel(model, tokenizer, ref, _train_length(config), ref.kind == "random", facts)


def _pretrained(folder: Path, dtype: Any, device: str) -> tuple[Any, Any, str | None]:
    """Model, tokenizer, and how the weights are quantised as they are stored."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not hub.has_weights(folder):
        raise Unavailable(f"'{folder}' has no complete safetensors weights; pickled weights are refused")
    if (folder / "adapter_config.json").is_file():  # applied where peft is installed, else not; unchecked too
        raise Unavailable(
            f"'{folder}' holds an adapter (adapter_config.json): merge it into the weights, or move it away"
        )
    common = {"trust_remote_code": False, "local_files_only": True}
    stored = _check_streamable(folder)
    load = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    load["ignore_mismatched_sizes"] = True  # which are named below, not in a report nobody sees
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
        model, info = AutoModelForCausalLM.from_pretrained(folder, **load, **common)
    except (*_UNLOADABLE, SafetensorError) as error:
        raise Unavailable(f"'{folder}' could not be loaded: {hub.one_line(error)}") from error
    # The library would fill them with random numbers and only warn.
    if missing := sorted(info["missing_keys"]):
        raise Unavailable(f"'{folder}' lacks {len(missing)} of the model's weights, e.g. {missing[0]}")
    if other := sorted(str(one) for one in info["mismatched_keys"]):
        raise Unavailable(
            f"'{folder}': {len(other)} weights have other shapes than its config.json says, e.g. {other[0]}"
        )
    if unused := _left_out(sorted(info["unexpected_keys"]), set(model.state_dict())):
        raise Unavailable(
            f"'{folder}' holds {len(unused)} weights that its config.json has no place for, e.g. "
            f"{unused[0]}: what would be measured is another model"
        )
    return model.to(device), tokenizer, stored


def _left_out(unexpected: Sequence[str], known: Set[str]) -> list[str]:
    """Of weights that the model has no place for those that belong to it: of a further layer, or a bias.

    Old buffers, a vision tower or layers for other uses lie in files too, and change nothing.
    """
    layers = {re.sub(r"\.\d+\.", ".#.", name) for name in known}
    bias = {name.removesuffix("weight") + "bias" for name in known if name.endswith(".weight")}
    return [name for name in unexpected if name in bias or re.sub(r"\.\d+\.", ".#.", name) in layers]


def _check_streamable(folder: Path) -> str | None:
    """Refuse, before any weight is read, what is no causal decoder with a cache of keys and values.

    Returns how its weights are quantised, None if they are not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        kind = config.model_type
        if config.is_encoder_decoder:
            raise Unavailable(f"'{folder}' ({kind}) is an encoder-decoder model: it has no stream of its own")
        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise Unavailable(f"'{folder}' ({kind}) is no causal language model that the library knows")
        stateful = getattr(AutoModelForCausalLM._model_mapping[type(config)], "_is_stateful", False)
        layers = DynamicCache(config=config).layers
    except _UNLOADABLE as error:
        raise Unavailable(f"'{folder}' could not be loaded: {hub.one_line(error)}") from error
    recurrent = sum(hasattr(layer, "recurrent_states") for layer in layers)
    if recurrent == sum(not hasattr(layer, "keys") for layer in layers) == len(layers):
        raise Unavailable(f"'{folder}' ({kind}) has no attention layers, so no KV cache to measure")
    if stateful and not recurrent:
        raise Unavailable(f"'{folder}' ({kind}) carries a state of its own that is no KV cache")
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return None
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    # The library would pass over a method that it does not know, and take the stored numbers for weights.
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and not str(method).startswith("bitsandbytes"):
        raise Unavailable(
            f"'{folder}': its weights are quantised by '{method}', which the library does not know"
        )
    return str(getattr(method, "value", method))


def _local_folder(ref: ModelRef, progress: Progress | None) -> Path:
    if ref.kind == "embedded":
        return _dequantised(ref.name, progress)
    if ref.kind == "bundled":
        return assembled(ref.name)
    if ref.folder is not None:
        return ref.folder
    assert ref.revision is not None
    return hub.snapshot(ref.name, ref.revision)


def _dequantised(name: str, progress: Progress | None) -> Path:
    """The embedded 4-bit GGUF as fp32 safetensors, converted once and kept in the cache."""
    from filelock import FileLock

    asset = ASSETS[EMBEDDED[name]]
    folder = cache_dir() / "models" / f"{name}-{asset.sha256[:12]}"
    if not (folder / "complete").is_file():
        gguf = asset.path(progress)
        with cache_errors():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "complete").is_file():
                    _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain fp32 now; the library refuses to save while these say otherwise.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    (folder / "complete").write_text(gguf.name)


def _train_length(config: Any) -> int | None:
    """What a scaling of the rotation calls original came before the training that it was made for."""
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)


def _as_run(model: Any, stored: str) -> str:
    """Whether weights that are ``stored`` by a method are computed with so, or in full."""
    packed = any(p.element_size() < 2 for p in model.parameters())
    return stored if packed else f"{stored}, dequantised to {str(model.dtype).removeprefix('torch.')}"


def _facts(model: Any, config: Any) -> dict[str, str | int | float | bool | None]:
    return {
        "architecture": config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }


def _hash_folder(folder: Path) -> str:
    """sha256 over names and contents of the files that make the model."""
    made_of = (".json", ".safetensors", ".model", ".txt", ".jinja")
    return files_sha256((file.name, file) for file in sorted(folder.iterdir()) if file.suffix in made_of)
