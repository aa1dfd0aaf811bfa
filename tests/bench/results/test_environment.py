import copy
import json
import subprocess
import sys
from pathlib import Path

from bench.results import environment

ROOT = Path(__file__).parents[3]


def test_the_fingerprint_is_json_and_its_id_covers_everything():
    taken = environment.fingerprint()
    assert json.loads(json.dumps(taken)) == taken
    assert taken["id"] == environment.fingerprint_id(taken)
    changed = copy.deepcopy(taken)
    changed["os"]["release"] = "another"
    assert environment.fingerprint_id(changed) != taken["id"]


def test_the_id_does_not_depend_on_earlier_fingerprints_of_the_folder():
    taken = environment.fingerprint()
    assert environment.fingerprint_id({**taken, "earlier": {"abc": {}}}) == taken["id"]


def test_a_machine_is_comparable_with_itself():
    assert environment.comparable(environment.fingerprint(), environment.fingerprint()) == []


def test_what_moves_numbers_makes_incomparable():
    ours = environment.fingerprint()
    theirs = copy.deepcopy(ours)
    theirs["packages"]["torch"] = "0.0"
    theirs["cpu"]["flags"] = ["sve"]
    theirs["threads"]["OMP_NUM_THREADS"] = "77"
    theirs["gpus"] = [{"name": "Imaginary 9000", "driver": "1"}]
    assert environment.comparable(ours, theirs) == [
        "cpu.flags",
        "gpus",
        "packages.torch",
        "threads.OMP_NUM_THREADS",
    ]
    assert environment.comparable(theirs, ours) == environment.comparable(ours, theirs)


def test_what_does_not_move_numbers_stays_comparable():
    ours = environment.fingerprint()
    theirs = copy.deepcopy(ours)
    theirs["git"] = {"commit": "f" * 40, "dirty": not ours["git"]["dirty"]}
    theirs["packages"]["pandas"] = "0.0"
    theirs["os"]["release"] = "another kernel"
    theirs["ram_bytes"] = 1
    assert environment.comparable(ours, theirs) == []


def test_two_cards_of_one_kind_are_comparable_and_another_driver_is_not():
    one = {"gpus": [{"name": "A", "driver": "1", "uuid": "x"}]}
    other = {"gpus": [{"name": "A", "driver": "1", "uuid": "y"}]}
    newer = {"gpus": [{"name": "A", "driver": "2", "uuid": "x"}]}
    assert environment.comparable(one, other) == []
    assert environment.comparable(one, newer) == ["gpus"]


def test_a_package_that_appeared_makes_incomparable():
    assert environment.comparable({"packages": {}}, {"packages": {"triton": "3"}}) == ["packages.triton"]


def test_taking_it_imports_nothing_heavy():
    code = "import sys; from bench.results import environment; environment.fingerprint(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pandas", "transformers"} & set(done.stdout.split())


def test_the_commit_of_a_repository_and_whether_it_was_changed(tmp_path):
    def git(*command):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)

    assert environment._git(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "a.py").write_text("a = 1\n")
    assert environment._git(tmp_path) == {"commit": None, "dirty": True}
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    clean = environment._git(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "elsewhere.txt").write_text("not code")
    assert environment._git(tmp_path) == clean
    (tmp_path / "bench" / "a.py").write_text("a = 2\n")
    assert environment._git(tmp_path) == {**clean, "dirty": True}


def test_a_hook_of_another_repository_has_no_say_in_the_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(ROOT))
    assert environment._git(tmp_path) == {"commit": None, "dirty": None}
