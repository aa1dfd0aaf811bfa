"""What goes with a release: a wheel that anybody builds bit for bit, a lock with hashes, and their checksums.

    python tools/release.py dist [--no-lock | --index URL]

The wheel is made of the files of HEAD alone, with the time of its commit and one set of permissions, so that
it is the same on every machine with the same setuptools. The lock names what pip installs on this platform
by `constraints.txt`, each file with its SHA-256, from PyPI alone: what this machine's pip is set to (mirrors,
folders of wheels, `+cpu` builds) has no say, for others have it not. Whoever installs with
``pip install --require-hashes --no-deps -r requirements.lock`` gets those files or none. The list of parts
(CycloneDX) is `tox -e sbom`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("bench", "ddposink", "pyproject.toml", "README.md", "LICENSE")
EXTRA = "ddpo"
INDEX = "https://pypi.org/simple"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build_wheel(out: Path, root: Path = ROOT) -> Path:
    """The wheel of HEAD of ``root`` in ``out``. Raises CalledProcessError where git or pip refuses."""
    git = ["git", "-C", str(root)]
    told = subprocess.run([*git, "log", "-1", "--format=%ct"], capture_output=True, text=True, check=True)
    before = set(out.glob("*.whl"))
    with tempfile.TemporaryDirectory() as place:
        tar = subprocess.run([*git, "archive", "HEAD", *SOURCES], stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(
            ["tar", "--extract", "--no-same-permissions"], cwd=place, input=tar, check=True, umask=0o022
        )
        flags = ("--no-build-isolation", "--no-deps", "--wheel-dir", str(out.resolve()))
        env = os.environ | {"SOURCE_DATE_EPOCH": told.stdout.strip()}
        subprocess.run([*PIP, "wheel", *flags, "."], cwd=place, env=env, check=True, umask=0o022)
    made = sorted(set(out.glob("*.whl")) - before) or sorted(before)
    return made[-1]


def lock(root: Path = ROOT, index: str = INDEX) -> str:
    """Lines for ``pip install --require-hashes``: what this platform gets of ``index`` by `constraints.txt`.

    Raises CalledProcessError where pip finds no such set, ValueError if one of it would not be found there.
    """
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        flags = (
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
            "--constraint",
            "constraints.txt",
            "--index-url",
            index,
        )
        env = _plain_pip()
        subprocess.run([*PIP, "install", *flags, f".[{EXTRA}]"], cwd=root, check=True, env=env)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = []
    for one in found:
        info, hashes = one["metadata"], one["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" in hashes:  # all but the project itself
            if "+" in info["version"]:
                raise ValueError(f"{info['name']} {info['version']} is a build that PyPI does not have")
            lines.append(f"{info['name'].lower()}=={info['version']} --hash=sha256:{hashes['sha256']}")
    where = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    head = f"# The files that constraints.txt means for .[{EXTRA}] on {where}; made by tools/release.py."
    return "".join(f"{line}\n" for line in [head, *sorted(lines)])


def _plain_pip() -> dict[str, str]:
    """The environment without what tells pip where to look; how to get there (proxy, certificates) stays."""
    kept = {"PIP_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT", "PIP_CACHE_DIR"}
    plain = {name: value for name, value in os.environ.items() if name in kept or name[:4] != "PIP_"}
    return plain | {"PIP_CONFIG_FILE": os.devnull}


def main() -> None:
    """Make everything, and say what it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for what is made")
    parser.add_argument("--no-lock", action="store_true", help="ask no registry")
    parser.add_argument("--index", default=INDEX, metavar="URL", help=f"of the lock's files ({INDEX})")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    made = [build_wheel(options.out)]
    if not options.no_lock:
        made.append(options.out / "requirements.lock")
        made[-1].write_text(lock(index=options.index), encoding="utf-8")
    for path in made:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")
    print(f"built with setuptools {version('setuptools')}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
