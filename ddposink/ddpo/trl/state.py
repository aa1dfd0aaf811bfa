"""The training state of TRL's trainer on disk, and accelerate's state in this process.

TRL leaves saving to accelerate, which writes weights, optimizer and random state, but no per-prompt
statistics, no checksum, and not all at once. A checkpoint here is accelerate's folder with those added.
Accelerate's ``.bin`` and ``.pkl`` files are read with ``weights_only`` and after their checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from safetensors import SafetensorError

from ddposink.ddpo.trl.repairs import TRL_VERSION

META = "ddposink.json"


def save(folder: Path, trainer: Any, identity: dict[str, Any], step: int) -> None:
    """Write a checkpoint of ``step`` finished steps; ``folder`` is complete or as it was.

    ``identity`` is what must agree when it is loaded.
    """
    accelerator = trainer.accelerator
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        meta = _meta(trainer, identity, step) | {"files": _checksums(unfinished)}
        (unfinished / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        _replace(unfinished, folder)
    accelerator.wait_for_everyone()


def load(folder: Path, trainer: Any, identity: dict[str, Any]) -> int:
    """Restore a checkpoint and return its step. ValueError if it is damaged or another training's."""
    _recover(folder)
    meta = _read_meta(folder)
    mine = json.loads(json.dumps(_meta(trainer, identity, 0)))
    for name in ("engine", "processes"):
        if meta.get(name) != mine[name]:
            raise ValueError(f"{folder} was saved with {name} {meta.get(name)!r}, this is {mine[name]!r}")
    for name, value in mine["identity"].items():
        if (saved := meta["identity"].get(name)) != value:
            what = f"{name} {saved!r}, this is {value!r}" if name != "prompts" else "other prompts"
            raise ValueError(f"{folder} was trained with {what}")
    for name, checksum in meta["files"].items():
        if not (folder / name).is_file() or _checksum(folder / name) != checksum:
            raise ValueError(f"{folder} is damaged: {name} is missing or not what was saved")
    try:
        trainer.accelerator.load_state(str(folder))
    except (OSError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    if trainer.comparison is not None:
        trainer.comparison.restore(meta["statistics"])
    return meta["step"]


def prepare_accelerate(device: str, precision: str) -> None:
    """Forget accelerate's process-wide state if it contradicts what the next trainer needs.

    Accelerate keeps one precision and one device for all trainers of a process; those made before
    under another are not to be used any more.
    """
    started = bool(PartialState._shared_state)
    if started and PartialState().num_processes == 1 and PartialState().device.type != device:
        AcceleratorState._reset_state(reset_partial_state=True)
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()


def _meta(trainer: Any, identity: dict[str, Any], step: int) -> dict[str, Any]:
    return {
        "engine": "trl",
        "trl": TRL_VERSION,
        "step": step,
        "processes": trainer.accelerator.num_processes,
        "identity": identity,
        "statistics": {} if trainer.comparison is None else trainer.comparison.state(),
    }


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        kinds = {"step": int, "files": dict, "identity": dict, "statistics": dict}
        if odd := [name for name, kind in kinds.items() if not isinstance(meta[name], kind)]:
            raise TypeError(f"{odd[0]} is not what was saved")
        return meta
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no checkpoint of TRL's engine: {META} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: {META} cannot be read ({error})") from error


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _replace(unfinished: Path, folder: Path) -> None:
    """Put ``unfinished`` in the place of ``folder``; at every moment one of the two is complete."""
    _recover(folder)
    if folder.exists():
        os.replace(folder, _old(folder))
    os.replace(unfinished, folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _recover(folder: Path) -> None:
    """Finish what a killed `_replace` left half done."""
    if _old(folder).exists():
        if folder.exists():
            shutil.rmtree(_old(folder))
        else:
            os.replace(_old(folder), folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
