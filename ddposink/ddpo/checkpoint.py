"""The full state of a training on disk: written at once or not at all, and read only if it is whole.

A checkpoint is a folder of two files. ``state-….safetensors`` holds the tensors, under a name of its own
each time; ``checkpoint.json`` holds everything else and the name and sha256 of the tensors. Replacing the
JSON file is the one moment at which the new checkpoint becomes *the* checkpoint: a process killed before
it has changed nothing, and one killed after it leaves at most an unused file behind. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ddposink.ddpo.learner import Learner

NAME, FORMAT = "checkpoint.json", 1


@dataclass
class Checkpoint:
    """What a training needs to go on. ``random``: one state a process. ``identity``: what must agree."""

    step: int
    tensors: dict[str, Tensor]  # "weights.NAME", "optimizer.INDEX.NAME", "scaler.", "ema.", "algorithm.NAME"
    random: list[dict[str, Tensor]]
    statistics: dict[str, list[float]]
    identity: dict[str, Any]

    @classmethod
    def of(cls, learner: Learner, **rest: Any) -> Checkpoint:
        """The state of ``learner``, and the ``rest`` as given."""
        tensors = {f"weights.{name}": p.detach() for name, p in learner.weights.items()}
        for index, slots in learner.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        for name, value in learner.scaler.state_dict().items():
            tensors[f"scaler.{name}"] = torch.tensor(value, dtype=torch.float64)
        return cls(tensors=tensors, **rest)

    def restore_learner(self, learner: Learner) -> None:
        """The reverse of `of`, in place. ValueError, before any change, if the weights do not fit."""
        saved = self.part("weights")
        shapes = {name: tuple(p.shape) for name, p in learner.weights.items()}
        if (found := {name: tuple(value.shape) for name, value in saved.items()}) != shapes:
            odd = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
            raise ValueError(
                f"the checkpoint's weights are not this model's: {len(odd)} differ, e.g. {odd[0]}"
            )
        with torch.no_grad():
            for name, parameter in learner.weights.items():
                parameter.copy_(saved[name])
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in self.part("optimizer").items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = value
        learner.optimizer.load_state_dict(learner.optimizer.state_dict() | {"state": slots})
        if scaler := self.part("scaler"):
            kinds = learner.scaler.state_dict()
            learner.scaler.load_state_dict(
                {n: type(kinds[n])(v.item()) for n, v in scaler.items() if n in kinds}
            )

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors called ``NAME.…``, without that beginning."""
        start = f"{name}."
        return {key.removeprefix(start): v for key, v in self.tensors.items() if key.startswith(start)}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Make ``folder`` this checkpoint. Raises OSError, leaving the previous one valid, if it cannot be."""
    from safetensors.torch import save_file

    tensors = checkpoint.tensors | {
        f"random.{rank}.{name}": value
        for rank, state in enumerate(checkpoint.random)
        for name, value in state.items()
    }
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / f"state-{checkpoint.step}-{secrets.token_hex(4)}.safetensors"
        partial = folder / f"{NAME}.part"
        try:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, data)
            _flush(data)
            partial.write_text(_document(checkpoint, data), encoding="utf-8")
            _flush(partial)
            os.replace(partial, folder / NAME)
        except BaseException:
            for unfinished in (data, partial):
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
            raise
        _flush(folder)
        for left_over in folder.glob("state-*.safetensors"):
            if left_over != data:
                left_over.unlink(missing_ok=True)


def read_checkpoint(folder: Path, like: Checkpoint) -> Checkpoint:
    """The checkpoint in ``folder``. ValueError, naming file or field, if damaged or not as ``like``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content = _read(folder / NAME)
    _same(folder, content["identity"], json.loads(json.dumps(like.identity)))
    data = folder / Path(content["tensors"]).name
    if not data.is_file():
        raise ValueError(f"damaged checkpoint: {data} is missing")
    if _sha256(data) != content["sha256"]:
        raise ValueError(
            f"damaged checkpoint: {data} is not the file that was written (truncated or altered)"
        )
    try:
        tensors = load_file(data)
    except SafetensorError as error:
        raise ValueError(f"{data} holds no safetensors ({error}); nothing else is read") from error
    random: list[dict[str, Tensor]] = [{} for _ in range(content["processes"])]
    for key in [key for key in tensors if key.startswith("random.")]:
        _, rank, name = key.split(".")
        random[int(rank)][name] = tensors.pop(key)
    return Checkpoint(content["step"], tensors, random, content["statistics"], content["identity"])


def _document(checkpoint: Checkpoint, data: Path) -> str:
    content = {
        "format": FORMAT,
        "step": checkpoint.step,
        "processes": len(checkpoint.random),
        "tensors": data.name,
        "sha256": _sha256(data),
        "statistics": checkpoint.statistics,
        "identity": checkpoint.identity,
    }
    return json.dumps({"sha256": _of_content(content), "content": content}, indent=1, ensure_ascii=False)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        content = document["content"]
        if document["sha256"] != _of_content(content):
            raise ValueError("its content is not what was written")
    except FileNotFoundError:
        raise ValueError(f"{file.parent} holds no checkpoint: {NAME} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"damaged checkpoint: {file} cannot be read ({error})") from error
    if content["format"] != FORMAT:
        raise ValueError(f"{file} is of format {content['format']}; this version reads format {FORMAT}")
    return content


def _same(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in wanted | saved:  # in the order of the configuration
        was, now = saved.get(name), wanted.get(name)
        if was != now:
            if name == "prompts":
                raise ValueError(
                    f"{folder} was trained on other prompts ({len(was or [])}, now {len(now or [])})"
                )
            raise ValueError(f"{folder} was trained with {name} {was!r}, this training has {now!r}")


def _of_content(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"the checkpoint {folder} could not be written: {reason}; the previous one is kept"
        ) from error
