"""No module that a pass runs, and no file that it reads, may change and leave old numbers in force."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bench import version
from bench.suite.model import parse_suite
from bench.suite.plan import make_plan
from ddposink.workloads import attention, ddpo, generate, recall, stream

ROOT = Path(__file__).parents[3]
PROJECT = ("bench", "ddposink")
# Modules that a child imports and whose numbers do not depend on them: how metrics are declared and shown.
TOLD = (
    *("stream_tables", "stream_notes", "attention_tables", "ddpo_tables", "generate_tables"),
    "recall_tables",
)
SHOWN = {"bench.declarations", *(f"ddposink.workloads.{name}" for name in TOLD)}
TURNS = "sink 4+12 evict=turn"
WORKLOADS = {
    "stream": stream.StreamWorkload,
    "attention": attention.AttentionWorkload,
    "ddpo": ddpo.DdpoWorkload,
    "generate": generate.GenerateWorkload,
    "recall": recall.RecallWorkload,
}
# Runs passes as a child does and prints which modules of the project that has imported.
TRACE = f"""
import os, pickle, sys
from bench.run.context import Events, WorkerContext
from bench.run.worker import load_target
target, passes, root = pickle.load(sys.stdin.buffer)
events = Events(os.open(root / "events", os.O_WRONLY | os.O_CREAT))
for work in passes:
    workload = load_target(target)
    out = root / work.id
    out.mkdir()
    workload.run(work, WorkerContext(work, workload, events, out, root))
print(*(name for name in sys.modules if name.partition(".")[0] in {PROJECT!r}))
"""


def trace(workload: str, folder: Path, **keys: object) -> set[str]:
    suite = parse_suite(json.dumps({"suite": "t", "workload": workload, **keys}).encode(), "t.yaml")
    passes = make_plan(suite, WORKLOADS[workload]()).passes
    kind = WORKLOADS[workload]
    job = pickle.dumps((f"{kind.__module__}:{kind.__name__}", passes, folder))
    done = subprocess.run(
        [sys.executable, "-c", TRACE], input=job, cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    told = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    assert [event["reason"] for event in told if event.get("status", "ok") != "ok"] == []
    return set(done.stdout.decode().split())


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, saved_pipeline: Path) -> dict[str, set[str]]:
    """Modules that tiny passes import, by workload: every evaluator, both engines, and all local rewards."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "text.txt").write_text("A text is read,\n\nand read again. " * 40)
    (folder / "prompts.txt").write_text("cat\nred fox\n")
    streams = {
        "defaults": {"model": "bundled:sink-llama/vanilla", "corpus": f"file:{folder}/text.txt", "length": 48,
                     "decode_tokens": 2, "device": "cpu", "threads": 1,
                     "measure": ["quality", "memory", "latency", "energy", "work"]},
        "grid": {"policy": ["dense", "sink 4+12", TURNS], "evaluator": ["auto", "decode", "reference"]},
        "exclude": [{"policy": policy, "evaluator": "decode"} for policy in ("dense", TURNS)],
    }  # fmt: skip
    maps = {"defaults": {name: streams["defaults"][name] for name in ("model", "corpus", "length", "device")},
            "grid": {"pieces": [1]}}  # fmt: skip
    trainings = {
        "defaults": {"pipeline": f"path:{saved_pipeline}", "prompts": f"file:{folder}/prompts.txt",
                     "eval_prompts": f"file:{folder}/prompts.txt", "eval_seeds": 2, "steps": 1,
                     "device": "cpu", "sample_num_steps": 2, "sample_batch_size": 2,
                     "sample_num_batches_per_epoch": 1, "train_batch_size": 2,
                     "mixed_precision": "no", "threads": 1,
                     "evaluate": ["jpeg_compressibility", "brisque", "alignment", "preference"]},
        "grid": {"engine": ["native", "trl"], "reward": ["weighted:1*brisque+1*noise"]},
    }  # fmt: skip
    conversations = {
        "defaults": {"model": "bundled:sink-llama/vanilla", "length": 8, "temperature": 1, "device": "cpu",
                     "threads": 1, "fresh_window": 64},
        "grid": {"policy": ["dense", "sink 4+12", "sink 4+12 evict=chunk:4"]},
    }  # fmt: skip
    found = {}
    recalls = {
        "defaults": {"model": "bundled:sink-llama/vanilla", "corpus": f"file:{folder}/text.txt", "lead": 8,
                     "questions": 1, "distance": 16, "device": "cpu", "threads": 1},
        "grid": {"policy": ["dense", "sink 4+12", TURNS], "task": ["needles", "stream"]},
    }  # fmt: skip
    suites = {"stream": streams, "attention": maps, "ddpo": trainings, "generate": conversations}
    for name, keys in (suites | {"recall": recalls}).items():
        (folder / name).mkdir()
        found[name] = trace(name, folder / name, **keys)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's source."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PROJECT:
        ignored = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


@pytest.fixture
def versions(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """The versions of all workloads, or of some, of the code in the copy."""
    for module in (stream, attention, ddpo, generate, recall):
        there = partial(version.code_version, path=[str(copy)])
        monkeypatch.setattr(module, "code_version", there)
    return lambda *names: {name: WORKLOADS[name]().version() for name in names or WORKLOADS}


def module_file(root: Path, name: str) -> Path:
    path = root / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# Prints the identity of cells that use all that is bundled, once for each line read.
IDENTITIES = """
import json, sys
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload
from ddposink.workloads.generate import GenerateParams, GenerateWorkload
from ddposink.workloads.stream import StreamParams, StreamWorkload
rewards = {"reward": "noise", "evaluate": ["brisque", "preference"]}
cells = [(StreamWorkload(), StreamParams(model=f"bundled:sink-llama/{name}", corpus="novel:persuasion",
                                         policy="dense", length=8)) for name in ("vanilla", "sink-token")]
cells += [(DdpoWorkload(), DdpoParams(pipeline="emoji-sd", steps=0, **rewards))]
flow = {"pipeline": "emoji-sd3", "sample_kernel": "flow-sde"}
cells += [(DdpoWorkload(), DdpoParams(**flow, steps=0, **rewards))]
cells += [(GenerateWorkload(), GenerateParams(model="smollm2-135m", policy="dense", length=8))]
for line in sys.stdin:
    print(json.dumps([workload.identity(params) for workload, params in cells]), flush=True)
"""
# Files for readers, what weights were made from, and others' figures, which are no measurements.
NOT_READ = (
    "README.md",
    "training.json",
    "*.png",
    "sheet.webp",
    "loss.csv",
    "comparisons.parquet",
    "published.csv",
)


class Changed:
    """A file with other content, until the end of the block."""

    def __init__(self, file: Path, content: str) -> None:
        self.file, self.content, self.before = file, content, file.read_text()

    def __enter__(self) -> None:
        self.file.write_text(self.content)

    def __exit__(self, *_: object) -> None:
        self.file.write_text(self.before)


class Mutation(ast.NodeTransformer):
    """Changes the last number of a module's functions."""

    def __init__(self, tree: ast.Module) -> None:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = (node for function in functions for line in function.body for node in ast.walk(line))
        numbers = [n for n in inside if isinstance(n, ast.Constant) and type(n.value) in (int, float, bool)]
        self.target = numbers[-1] if numbers else None

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(not node.value) if node is self.target else node


def mutated(text: str) -> str:
    tree = ast.parse(text)
    mutation = Mutation(tree)
    if mutation.target is None:
        return text + "\nMUTATED = 1\n"
    return ast.unparse(mutation.visit(tree))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_module_that_a_pass_imports_is_part_of_the_version(imported, copy, versions, workload):
    before = versions()
    assert len(imported[workload]) > 40
    for name in sorted(imported[workload] - SHOWN):
        file = module_file(copy, name)
        with Changed(file, mutated(file.read_text())):
            assert versions(workload)[workload] != before[workload], name
    assert versions() == before


def test_how_metrics_are_shown_is_left_out(copy, versions):
    before = versions()
    for name in SHOWN:
        file = module_file(copy, name)
        with Changed(file, file.read_text() + "\nMUTATED = 1\n"):
            assert versions() == before


@pytest.mark.parametrize(
    ("file", "old", "new", "whose"),
    [
        ("bench/track/clock.py", "/ 1e9 for", "/ 1e10 for", {"stream"}),
        (
            "bench/track/nvml.py",
            "(self.handle)) / 1000",
            "(self.handle)) / 100",
            {*WORKLOADS} - {"attention", "recall"},
        ),
        ("ddposink/workloads/ddpo_memory.py", "return sum(t.numel()", "return 2 * sum(t.numel()", {"ddpo"}),
        ("ddposink/caches/sink.py", "self.sinks", "self.sinks + 1", {*WORKLOADS} - {"ddpo"}),
        ("ddposink/streaming/attention.py", "FEW = 1, 4", "FEW = 1, 5", {"attention"}),
        ("ddposink/workloads/generate_rule.py", "SPAN = 256", "SPAN = 255", {"generate"}),
        ("ddposink/rewards/noise.py", "BITS = ", "BITS = 1 + ", {"ddpo"}),
    ],
)
def test_other_numbers_are_another_version(copy, versions, file, old, new, whose):
    before, text = versions(), (copy / file).read_text()
    assert old in text
    with Changed(copy / file, text.replace(old, new)):
        after = versions()
    assert {name for name in before if before[name] != after[name]} == whose


def test_comments_and_docstrings_are_no_other_version(copy, versions):
    before, file = versions(), copy / "bench" / "track" / "clock.py"
    with Changed(file, file.read_text().replace('"""Time per step', '# why\n"""Time per single step', 1)):
        assert versions() == before


def test_the_harness_is_part_of_a_version_only_as_far_as_a_child_runs_it():
    trackers = "track.memory track.nvml track.rss"  # of who measures memory
    rooms = "errors results results.status run run.context run.meaning run.worker"
    child = f"{rooms} track track.contention version workload"
    own = {
        "stream": f"{trackers} track.clock track.power track.work",
        "attention": "",
        "ddpo": f"{trackers} track.power intervals",
        "generate": trackers,
        "recall": "",
    }
    for name, kind in WORKLOADS.items():
        found = version.closure(version.CHILD, kind.__module__, shown=SHOWN)
        harness = {module for module in found if module.partition(".")[0] == "bench"}
        assert harness == {"bench", *(f"bench.{module}" for module in f"{child} {own[name]}".split())}


def test_what_only_people_call_is_part_of_no_version():
    embedded = "train_tiny train_encoder train_sinks sink_training encoder_card pipeline.training".split()
    modules = {f"ddposink.embedded.{name}" for name in embedded}
    modules |= {"ddposink.streaming.verify", "ddposink.label.server"}
    assert all(version.find_module(name) for name in modules)
    for kind in WORKLOADS.values():
        found = version.closure(version.CHILD, kind.__module__, shown=SHOWN)
        assert not found.keys() & modules
        assert not any("ddpo_generate" in module or "preflight" in module for module in found)


def test_modules_named_at_run_time_are_known():
    """Parsing cannot follow a computed name: what it stands for must be written out as a string somewhere."""
    known = {
        "bench.run.worker": "module",  # the workload itself
        "ddposink.rewards": "module",  # the table REWARDS
        "ddposink.plugins": "module",  # of another package: part of the identity of a cell that uses it
        "ddposink.workloads.python_reward": "module",  # the user's own, part of a cell's identity
        "ddposink.ddpo.trl.repairs": "OVERRIDES[module]",
    }
    found = {}
    for kind in WORKLOADS.values():
        for name, file in version.closure(version.CHILD, kind.__module__, shown=SHOWN).items():
            for node in ast.walk(ast.parse(file.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                computed = called.endswith(("import_module", "__import__"))
                if computed and not isinstance(node.args[0], ast.Constant):
                    found[name] = ast.unparse(node.args[0])
    assert found == known


def test_a_workload_made_of_ours_has_its_own_version(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "madeofours", raising=False)
    plug_in = tmp_path / "madeofours.py"
    plug_in.write_text(
        "from ddposink.workloads.stream import StreamWorkload\nclass Mine(StreamWorkload):\n    x = 1\n"
    )
    import madeofours

    one = madeofours.Mine().version()
    assert one != stream.StreamWorkload().version()
    plug_in.write_text(plug_in.read_text().replace("x = 1", "x = 22"))
    assert madeofours.Mine().version() != one


def test_every_data_file_that_a_pass_reads_is_part_of_an_identity(tmp_path):
    for package in PROJECT:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    everything = (file for file in (tmp_path / "ddposink" / "data").rglob("*") if file.is_file())
    files = [file for file in everything if not any(file.match(pattern) for pattern in NOT_READ)]
    assert len(files) > 20
    child = subprocess.Popen(
        [sys.executable, "-c", IDENTITIES], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child, child.stdin as ask:

        def identity() -> bytes:
            ask.write(b"\n")
            ask.flush()
            return child.stdout.readline()

        before = identity()
        assert len(json.loads(before)) == 5
        for file in files:
            content = file.read_bytes()
            file.write_bytes(content + b"\n")
            assert identity() != before, file.relative_to(tmp_path)
            file.write_bytes(content)
        assert identity() == before


def test_the_encoder_that_tells_diversity_is_part_of_every_training(monkeypatch):
    params = ddpo.DdpoParams(pipeline="emoji-sd", reward="noise", steps=0, evaluate=["brisque"])
    before = ddpo.DdpoWorkload().identity(params)
    monkeypatch.setattr(ddpo, "encoder_sha256", lambda: "another")
    assert ddpo.DdpoWorkload().identity(params) == before | {"encoder.sha256": "another"}
