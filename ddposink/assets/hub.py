"""The model hub: a pinned snapshot from the local cache or the network, and a quick look whether it answers.

A machine without network must learn so within seconds, in one line, and not after a library's retries.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ddposink.errors import Unavailable

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Some repositories carry the same weights a second time, in folders or under these names.
UNWANTED = ["*/*", "consolidated*"]
PROBE_SECONDS = 3.0


def snapshot(
    name: str,
    revision: str,
    *,
    wanted: Sequence[str] = WANTED,
    unwanted: Sequence[str] | None = UNWANTED,
    lacks: Callable[[Path, str], str | None] | None = None,
    first: tuple[Sequence[str], Callable[[Path], None]] | None = None,
) -> Path:
    """The folder with a hub repository's files at ``revision``; downloads what the local cache lacks.

    ``wanted`` and ``unwanted`` are patterns of files. ``lacks`` looks at a cached folder and is told what
    to call it: it answers with a clause on what is missing, raises ValueError for what cannot be used, or
    answers None; by default the safetensors must all be there. ``first`` are patterns of small files that are
    downloaded before the others, and what may raise ValueError when it sees them.
    Raises Unavailable in one line, within seconds where there is no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    files: Any = {"revision": revision, "allow_patterns": list(wanted), "ignore_patterns": unwanted}
    at = f"{name}@{revision[:12]}"
    try:
        folder = Path(snapshot_download(name, **files, local_files_only=True))
        lacking = (lacks or _lacks_weights)(folder, at)
        if lacking is None:
            return folder
    except LocalEntryNotFoundError:
        lacking = f"{at} is not in the local hub cache"
    except ValueError as error:
        lacking = f"{at} in the local hub cache cannot be used ({one_line(error)})"
    if why := unreachable():
        raise Unavailable(f"weights not available offline: {lacking} and {why}")
    if first is not None:
        patterns, check = first
        check(_download(name, at, **files | {"allow_patterns": list(patterns)}))
    return _download(name, at, **files)


def _download(name: str, at: str, **files: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **files))
    except Exception as error:
        raise Unavailable(f"{at} could not be downloaded: {one_line(error)}") from error


def _lacks_weights(folder: Path, at: str) -> str | None:
    return None if has_weights(folder) else f"{at} is incomplete in the local hub cache"


def has_weights(folder: Path) -> bool:
    """Whether a folder holds all of a model's safetensors files.

    A shard in another folder is none of them: nothing there is downloaded, or part of a model's identity.
    Raises ValueError for an index that is none.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        shards = {
            str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{index}' is no index of safetensors files") from error
    return all(Path(shard).name == shard and (folder / shard).is_file() for shard in shards)


def unreachable() -> str | None:
    """Why the hub cannot be asked (a clause for a sentence), or None if it answers on its port."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or "")
    target = proxy if proxy.hostname else endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    if not _answers(target.hostname or "", port):
        return f"{target.hostname} cannot be reached"
    return None


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _answers(host: str, port: int) -> bool:
    """In a thread: looking up a name may take far longer than any timeout of a socket."""
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()
