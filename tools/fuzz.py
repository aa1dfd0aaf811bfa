"""The long form of fuzzing, guided by coverage (atheris): what reads files and words is given endless bytes.

    python tools/fuzz.py [--seconds 60] [TARGET …]

Each target runs in a process of its own, from a few examples of what it reads. Whatever is neither a value
nor one clear sentence ends the target, and the bytes that did it are kept as ``fuzz-TARGET-crash-…`` in this
folder. The short form, by hypothesis alone, is `tests/bench/test_fuzz.py`; the checks are the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("suites", "records", "settings", "only")
LONGEST = 60  # seconds for one input, after which it hangs
MEMORY = 2048  # MiB that a target may use


@dataclass(frozen=True)
class Target:
    """What is given bytes, and some bytes to begin with."""

    run: Callable[[bytes], object]
    seeds: list[bytes]


def targets() -> dict[str, Target]:
    """By name. Where hypothesis makes examples of the bytes they begin as noise: words mean nothing to it."""
    checks = _checks()
    folder, chance = Path(tempfile.mkdtemp()), random.Random(0)
    noise = [chance.randbytes(length) for length in (64, 256, 1024, 4096)]

    def suite(data: bytes) -> None:
        parsed = checks.answered(checks.parse_suite, data, "s.yaml")
        if parsed is not None and (workload := checks.answered(checks.registry.load, parsed.workload)):
            checks.answered(checks.make_plan, parsed, workload, lambda params: {})

    return {
        "suites": Target(suite, checks.SUITES),
        "records": Target(lambda data: checks.check_records(data, folder), [*checks.LINES, checks.DEEP]),
        "settings": Target(checks.test_settings.hypothesis.fuzz_one_input, noise),
        "only": Target(checks.test_what_only_names.hypothesis.fuzz_one_input, noise),
    }


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["bench", "yaml"]):
        target = targets()[name]
    corpus = tempfile.mkdtemp()
    for number, seed in enumerate(target.seeds):
        (Path(corpus) / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST}", f"-rss_limit_mb={MEMORY}"]
    flags = ["-max_len=8192", "-len_control=0", "-print_final_stats=1", f"-artifact_prefix=fuzz-{name}-"]
    atheris.Setup([sys.argv[0], *limits, *flags, corpus], target.run)
    atheris.Fuzz()


def _checks() -> ModuleType:
    """The tests of the short form; their folders are no packages."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    spec = importlib.util.spec_from_file_location("fuzz_checks", ROOT / "tests" / "bench" / "test_fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Every target after the other; 1 if one of them has found something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.targets if name not in NAMES]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install atheris (or tox -e fuzz)")
    if options.here:
        fuzz(options.targets[0], options.seconds)
    found = []
    for name in options.targets or NAMES:
        print(f"== {name}", flush=True)
        command = [sys.executable, __file__, "--here", "--seconds", str(options.seconds), name]
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:  # a target leaves without tidying up
            done = subprocess.run(command, env=os.environ | {"TMPDIR": folder}, check=False)
        if done.returncode:
            found.append(name)
    print("found something: " + ", ".join(found) if found else "nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
