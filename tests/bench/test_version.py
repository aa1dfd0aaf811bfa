"""The version of a workload: what is followed, what counts, and what a changed module does to a run."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from bench.version import closure, code_version, find_module, source_hash
from bench.workload import Metric
from helpers.gateplace import HERE, ROOT, plug_in


class Tree:
    """A folder of modules beside a harness whose child does nothing."""

    def __init__(self, folder):
        self.folder = folder
        self.write("bench/__init__.py")
        self.write("bench/run/worker.py")

    def write(self, name, text=""):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()

    def files(self, *modules, **options):
        return set(closure(*modules, path=[str(self.folder)], **options)) - {"bench", "bench.run.worker"}

    def version(self, module="plug", **options):
        return code_version(module, path=[str(self.folder)], **options)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "import plug.near",
        "import plug.near as other",
        "from plug import near",
        "from plug.near import anything",
        "from . import near",
        "from .near import *",
        "def f():\n    from plug import near",
        "class A:\n    def f(self):\n        if self:\n            import plug.near",
        "try:\n    import plug.near\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('plug.near')",
        "KINDS = {'near': 'plug.near:Near.kind'}",
        "preload = ('plug.near',)",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import plug.near",
    ],
)
def test_every_way_to_import_is_followed(tree, statement):
    tree.write("plug/__init__.py")
    tree.write("plug/near.py", "from plug.deep.far import x")
    tree.write("plug/deep/__init__.py", "import plug.beside")
    tree.write("plug/deep/far.py")
    tree.write("plug/beside.py")
    tree.write("plug/unused.py")
    tree.write("plug/work.py", statement)
    everything = {"plug", "plug.work", "plug.near", "plug.deep", "plug.deep.far", "plug.beside"}
    assert tree.files("plug.work") == everything


@pytest.mark.parametrize(
    "statement",
    [
        "if TYPE_CHECKING:\n    import plug.near",
        "import typing\nif typing.TYPE_CHECKING:\n    from plug import near",
        "'plug.near'\nx = 1",  # a docstring
        "# import plug.near",
        "said = 'see plug.near for more'",
        "import json, numpy, no_such_module, plug.missing",
        "from .... import near",  # would fail
    ],
)
def test_what_never_runs_is_not_followed(tree, statement):
    tree.write("plug/__init__.py")
    tree.write("plug/near.py")
    tree.write("plug/work.py", statement)
    assert tree.files("plug.work") == {"plug", "plug.work"}


def test_relative_imports_start_at_the_package_itself_in_its_init(tree):
    tree.write("plug/__init__.py", "from .inner import x")
    tree.write("plug/inner/__init__.py", "from . import a\nfrom ..b import y")
    tree.write("plug/inner/a.py")
    tree.write("plug/b.py")
    assert tree.files("plug") == {"plug", "plug.inner", "plug.inner.a", "plug.b"}


def test_packages_without_an_init_and_cycles_are_no_trouble(tree):
    tree.write("plug/a.py", "import plug.b")
    tree.write("plug/b.py", "import plug.a")
    assert tree.files("plug.a") == {"plug.a", "plug.b"}


def test_the_harness_and_the_project_are_followed_from_anywhere(tree):
    tree.write("plug.py", "import bench.track, ddposink.caches")
    tree.write("bench/track/__init__.py", "import plug")
    tree.write("ddposink/caches.py")
    assert tree.files("plug") == {"plug", "bench.track", "ddposink.caches"}


def test_a_plug_in_covers_what_lies_beside_it_but_nothing_installed(tree, tmp_path):
    tree.write("plug.py", "import helpers, pytest, package.part")
    tree.write("helpers.py", "import more")
    tree.write("more.py")
    tree.write("package/part.py")
    assert tree.files("plug") == {"plug", "helpers", "more", "package.part"}
    there = Tree(tmp_path / "site-packages")
    there.write("plug/__init__.py", "import other, plug.own")
    there.write("plug/own.py")
    there.write("other.py")
    assert there.files("plug") == {"plug", "plug.own"}


def test_a_child_is_part_of_every_version(tree):
    tree.write("plug.py")
    before = tree.version()
    tree.write("bench/run/worker.py", "import bench.run.context")
    tree.write("bench/run/context.py", "x = 1")
    after = tree.version()
    tree.write("bench/run/context.py", "x = 22")
    assert len({before, after, tree.version()}) == 3


def test_comments_docstrings_and_layout_do_not_count(tree):
    tree.write("plug.py", "def f(x):\n    return [x, 1 + 2]\n")
    before = tree.version()
    function = '    """A function."""\n    return [\n        x, (1+2),  # three\n    ]'
    tree.write("plug.py", f'"""A module."""\n# why\n\ndef f(x):\n{function}')
    assert tree.version() == before
    tree.write("plug.py", "class A:\n    '''A class.'''\n    x: int = 1\n")
    one = tree.version()
    tree.write("plug.py", "class A:\n    '''Such a class.'''\n    x: int = 1\n")
    assert tree.version() == one


@pytest.mark.parametrize(
    "changed",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(x):\n    return x + 1.0\n",
        "def f(y):\n    return y + 1\n",
        "def f(x, /):\n    return x + 1\n",
        "def f(x=None):\n    return x + 1\n",
        "@g\ndef f(x):\n    return x + 1\n",
        "async def f(x):\n    return x + 1\n",
        "def f(x):\n    return (x, 1)\n",
        "def f(x):\n    return x + 1\nf = 'no docstring'\n",
    ],
)
def test_everything_else_counts(tree, changed):
    tree.write("plug.py", "def f(x):\n    return x + 1\n")
    before = tree.version()
    tree.write("plug.py", changed)
    assert tree.version() != before


def test_nesting_is_told_apart(tree):
    texts = [
        "[[1], 2]",
        "[[1, 2]]",
        "[1, [2]]",
        "{1: None}",
        "{None: 1}",
        "{**{}, 1: 2}",
        "f'{a}b'",
        "f'a{b}'",
    ]
    found = set()
    for text in texts:
        tree.write("plug.py", f"x = {text}")
        found.add(tree.version())
    assert len(found) == len(texts)


def test_where_a_tree_lies_does_not_count(tmp_path):
    versions = set()
    for name in "ab":
        there = Tree(tmp_path / name)
        there.write("plug.py", "import plug_in")
        there.write("plug_in.py", "x = 1")
        versions.add(there.version())
    assert len(versions) == 1


def test_a_module_that_moves_or_comes_in_counts(tree):
    tree.write("plug.py", "try:\n    import helpers\nexcept ImportError:\n    pass")
    before = tree.version()
    tree.write("helpers.py")
    assert tree.version() != before


def test_how_metrics_are_shown_does_not_count_but_their_units_do(tree):
    tree.write("plug/__init__.py")
    tree.write("plug/work.py", "import plug.tables, bench.declarations")
    tree.write("plug/tables.py", "x = 1")
    tree.write("bench/declarations.py", "x = 1")
    options = {"shown": ["plug.tables"], "metrics": [Metric("a", "A", "ms"), Metric("b", "B", "")]}
    before = tree.version("plug.work", **options)
    for name in ("plug/tables.py", "bench/declarations.py"):
        tree.write(name, "x = 22")
        assert tree.version("plug.work", **options) == before
    options["metrics"] = [Metric("b", "b", "", "higher", tolerance=0.1), Metric("a", "α", "ms", help="why")]
    assert tree.version("plug.work", **options) == before
    options["metrics"] = [Metric("b", "B", ""), Metric("a", "A", "s")]
    assert tree.version("plug.work", **options) != before
    assert tree.version("plug.work") != before


def test_a_file_that_cannot_be_parsed_counts_as_it_stands(tree):
    tree.write("plug.py", "import compiled")
    tree.write("compiled.py", "print 'of another age'")
    before = tree.version()
    tree.write("compiled.py", "print 'of yet another age'")
    assert tree.version() != before


def test_a_workload_that_is_not_there_is_told(tree):
    with pytest.raises(ModuleNotFoundError, match=r"no module 'plug\.no'"):
        tree.version("plug.no")


def test_nothing_is_imported_and_installed_packages_are_found():
    names = "ddposink.workloads.stream_run", "ddposink.workloads.ddpo_run"
    script = (
        "import sys; from bench.version import code_version, find_module; "
        f"print(len({{code_version(name) for name in {names!r}}}), find_module('ddposink.caches').name); "
        "assert not {'torch', 'numpy', 'pydantic', 'ddposink'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "2 __init__.py\n"
    assert find_module("no_such_module.x") is None
    assert find_module("__main__.x") is None
    assert source_hash("pytest") == source_hash("pytest")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the harness with a plug-in beside it, under git, and the command line in there."""
    folder = tmp_path / "tree"
    shutil.copytree(ROOT / "bench", folder / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "helpers" / "ticktoy.py", folder)
    (folder / "ticks.yaml").write_text(json.dumps({"suite": "ticks", "workload": "ticktoy"}))
    (folder / ".gitignore").write_text("/results/\n__pycache__/\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it was")
    plugs = plug_in(tmp_path / "plugs", "ticktoy", "ticktoy:TickToy")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, plugs))))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return folder


def git(folder, *words):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def bench(folder, *words, codes=(0,)):
    command = [sys.executable, "-m", "bench", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


def edit(folder, file, old, new):
    text = (folder / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))


def test_another_clock_is_measured_again_and_another_report_is_not(checkout):
    assert "1 cell in 1 pass" in bench(checkout, "ticks.yaml")
    assert "nothing to do" in bench(checkout, "ticks.yaml")
    for shown in ("text.py", "gate/rule.py", "cli.py", "results/record.py", "declarations.py"):
        with (checkout / "bench" / shown).open("a") as file:
            file.write("\nOTHERWISE = 1\n")
    assert "nothing to do" in bench(checkout, "ticks.yaml")
    edit(checkout, "bench/track/clock.py", "(after - before) / 1e9", "(after - before) / 1e10")
    again = bench(checkout, "ticks.yaml")
    assert "was made with another version of the workload's code" in again
    assert "1 cell in 1 pass" in again
    assert "nothing to do" in bench(checkout, "ticks.yaml")


def test_a_gate_says_that_both_sides_run_the_same_code_only_if_they_do(checkout):
    def gate():
        words = ("gate", "ticks.yaml", "--against", "HEAD", "--pairs", "2")
        return bench(checkout, *words, codes=(0, 4, 5))  # the verdict on two pairs is left to chance

    same = "both sides run the same code of this workload"
    assert same in gate()
    edit(checkout, "bench/track/clock.py", "(after - before) / 1e9", "(after - before) / 1e10")
    assert same not in gate()
