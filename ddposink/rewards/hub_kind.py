"""Rewards whose weights come from the model hub, or from a folder with the same files.

Every repository is pinned to a commit. ``NAME@REVISION`` takes the reward's own repository at another
commit; ``NAME:path:DIR`` takes all files from one folder, where nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddposink.assets import hub
from ddposink.errors import Unavailable
from ddposink.rewards.base import RewardKind

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Repo:
    """A repository of the hub at a commit, and the files that are needed of it."""

    name: str
    revision: str
    files: tuple[str, ...]

    def fetch(self) -> Path:
        """The folder with its files, from the local cache or the hub. Raises Unavailable within seconds."""
        folder = hub.snapshot(self.name, self.revision, wanted=self.files, unwanted=None, lacks=self._lacks)
        if missing := self.missing(folder):
            raise Unavailable(f"{self.name}@{self.revision[:12]} has no file {missing}")
        return folder

    def _lacks(self, folder: Path, at: str) -> str | None:
        missing = self.missing(folder)
        return missing and f"{missing} of {at} is not in the local hub cache"

    def missing(self, folder: Path) -> str | None:
        """The first file that ``folder`` lacks."""
        return next((name for name in self.files if not (folder / name).is_file()), None)


class HubKind(RewardKind):
    """``repos``: what is needed; the first is the reward's own, whose commit ``@REVISION`` replaces."""

    repos: tuple[Repo, ...]

    def parse(self, argument: str) -> str:
        """Empty, ``@`` and 40 hexadecimal digits, or ``path:DIR`` with all files in it."""
        if not argument or re.fullmatch(r"@[0-9a-f]{40}", argument):
            return argument
        if argument.startswith("@"):
            raise ValueError(
                f"'{argument}' is no commit: write @ and the 40 hexadecimal digits shown on the 'Files' page "
                f"of {self.repos[0].name}"
            )
        if not argument.startswith("path:"):
            raise ValueError(f"expected @COMMIT or :path:DIR after the name, not '{argument}'")
        folder = Path(argument.removeprefix("path:"))
        for repo in self.repos:
            if missing := repo.missing(folder):
                wanted = ", ".join(dict.fromkeys(name for r in self.repos for name in r.files))
                raise ValueError(f"'{folder}' has no file {missing}; needed: {wanted}")
        return argument

    def identity(self, argument: str) -> dict[str, str]:
        """Commits of all repositories, or the hash of the folder's files."""
        if argument.startswith("path:"):
            return {"sha256": self._hash(Path(argument.removeprefix("path:")))}
        return {repo.name: repo.revision for repo in self._pinned(argument)}

    def folders(self, argument: str) -> list[Path]:
        """One folder per repository, complete. Raises Unavailable."""
        if argument.startswith("path:"):
            return [Path(argument.removeprefix("path:"))] * len(self.repos)
        return [repo.fetch() for repo in self._pinned(argument)]

    def _pinned(self, argument: str) -> tuple[Repo, ...]:
        if not argument:
            return self.repos
        return (replace(self.repos[0], revision=argument.removeprefix("@")), *self.repos[1:])

    def _hash(self, folder: Path) -> str:
        digest = hashlib.sha256()
        for name in sorted({name for repo in self.repos for name in repo.files}):
            with (folder / name).open("rb") as file:
                digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@contextmanager
def loading(what: str, folder: Path) -> Iterator[None]:
    """Turn whatever a loader raises over wrong or damaged files into Unavailable in one line."""
    import pickle
    import zipfile

    from safetensors import SafetensorError

    known = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError)
    try:
        yield
    except Unavailable:
        raise
    except (*known, zipfile.BadZipFile, pickle.UnpicklingError, SafetensorError) as error:
        raise Unavailable(f"{what} in '{folder}' could not be loaded: {hub.one_line(error)}") from error


def pretrained(cls: Any, folder: Path, device: str) -> Any:
    """A transformers model from safetensors, frozen. Raises Unavailable where weights are missing."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with loading(cls.__name__, folder):
        model, info = cls.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        # The library would fill them with random numbers and only warn.
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, e.g. {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name from a .pt or .pth file, by torch's loader for weights only: no code is run."""
    import torch

    with loading("weights", file):
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
