"""What is shipped small, put together as directories that any tool loads when it is first asked for.

Weights may be packed (see `ddposink.models.packed`), and a pipeline may share parts with `emoji-sd`: stored
whole and twice, they would be carried so in every checkout. The cache folder gets them unpacked and complete.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ddposink.assets.catalogue import cache_dir, cache_errors
from ddposink.models import packed
from ddposink.models.files import files_sha256
from ddposink.models.packed import PACKED, unpack_bytes, whole_name

DATA = Path(__file__).parents[1] / "data"
BASE = DATA / "emoji-sd"
PIPELINES = ("emoji-sd3",)
MODELS = ("sink-llama/sink-token", "sink-llama/vanilla")
VAE, ENCODER = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
# Files of an assembled pipeline that are the base's, by their names there.
SHARED = {VAE: VAE, ENCODER: ENCODER} | {
    f"{folder}/{file}": f"tokenizer/{file}"
    for folder in ("tokenizer", "tokenizer_2")
    for file in ("tokenizer.json", "tokenizer_config.json")
}
PROJECTION = "text_projection.weight"
SEAL = "SHA256"  # beside what was put together: a hash over it


def assembled(name: str) -> Path:
    """The whole directory of pipeline or model ``name``, made if it is not there or no longer what was made.

    Its path holds a hash of everything it is made of and by, so that an old one is never taken for a new one.
    Raises Unavailable if the cache folder cannot be written.
    """
    kind = "pipelines" if name in PIPELINES else "models"
    target = cache_dir() / kind / _made_by(name) / name
    if _is_whole(target):
        return target
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with cache_errors():
        try:
            write_assembled(_sources(name), part, precision(name))
            (part / SEAL).write_text(_content(part))
            if target.is_dir() and not _is_whole(target):  # damaged, or cleaned up in part
                shutil.rmtree(target)
            part.rename(target)
        except OSError:
            if not _is_whole(target):  # else another process was first
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _made_by(name: str) -> str:
    """A hash over the parts of ``name`` and the code that puts them together."""
    code = [("assembled.py", Path(__file__)), ("packed.py", Path(packed.__file__))]
    return files_sha256([*sorted(_sources(name).items()), *code])[:16]


def _is_whole(folder: Path) -> bool:
    """Whether every file there is as it was written."""
    try:
        return (folder / SEAL).read_text() == _content(folder)
    except OSError:
        return False


def _content(folder: Path) -> str:
    """A hash over names and contents of all files but the seal."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != SEAL]
    return files_sha256(sorted((path.relative_to(folder).as_posix(), path) for path in files))


def sources_sha256(name: str) -> str:
    """Over names and contents of everything that ``name`` is made of; nothing is written."""
    return files_sha256(sorted(_sources(name).items()))


def precision(name: str) -> str:
    """Of what is unpacked: a pipeline is stored as its other parts are, a model exactly."""
    return "float16" if name in PIPELINES else "float32"


def write_assembled(sources: dict[str, Path], folder: Path, dtype: str) -> None:
    """Write ``sources``, by their names in ``folder``, there; the text encoder gets a projection."""
    for file, source in sources.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if file == ENCODER:
            (folder / file).write_bytes(projected(source.read_bytes()))
        elif source.name.endswith(PACKED):
            (folder / file).write_bytes(unpack_bytes(source.read_bytes(), dtype))
        else:
            shutil.copyfile(source, folder / file)


def projected(data: bytes) -> bytes:
    """The weights of a CLIP text encoder with the identity as the projection of its pooled output."""
    import numpy as np
    from safetensors.numpy import load, save

    tensors = load(data)
    name = next(name for name in tensors if name.endswith("final_layer_norm.weight"))
    norm = tensors[name]
    start = "" if name.startswith("text_model.") else "text_model."
    weights = {f"{start}{name}": value for name, value in tensors.items()}
    return save(weights | {PROJECTION: np.eye(len(norm), dtype=norm.dtype)}, metadata={"format": "pt"})


def _sources(name: str) -> dict[str, Path]:
    own = DATA / name
    parts = [file for file in own.rglob("*") if file.is_file() and file.suffix in (".json", ".safetensors")]
    found = {whole_name(file.relative_to(own).as_posix()): file for file in parts}
    shared = {name: BASE / file for name, file in SHARED.items()}
    return found | shared if name in PIPELINES else found
