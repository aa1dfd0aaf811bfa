"""Passes as jobs, by submitit's executor for this machine: a local run's records, nothing lost or left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.errors import UserError
from bench.results.record import Status
from bench.results.store import ENV, RECORDS, read_records
from bench.run import kept as kept_files
from bench.run.context import SCRATCH
from bench.suite.model import Resources
from helpers.slurm import install
from helpers.toyruns import check_all_there_once, eventually

ROOT = Path(__file__).parents[3]
START = """
from bench import registry
registry.register("toy", "helpers.toy:Toy")
from bench.run.slurm import batch, site
site.KIND, batch.PATIENCE_SECONDS = "local", 4.0
from bench.cli import main
main()
"""
REAL = START.replace('site.KIND, batch.PATIENCE_SECONDS = "local", 4.0', "batch.PATIENCE_SECONDS = 4.0")
SUITE = {
    "suite": "toys",
    "workload": "toy",
    "defaults": {"speed": 0.01},
    "grid": {"at": [0, 1], "length": [2, 20, 100]},
    "timeout": 60,
}
CELLS = 6

OWN_FRAME = re.compile(rf'File "{re.escape(str(ROOT))}/(?:bench|ddposink)/')


def no_trace(err):
    """No traceback but what submitit's executor says where it was stopped; two may be line by line in one."""
    stopped = re.findall(r"^KeyboardInterrupt$", err, re.M)
    return not OWN_FRAME.search(err) and err.count("Traceback") <= len(stopped)


class Runs:
    def __init__(self, folder):
        self.folder, self.mark = folder, uuid.uuid4().hex
        (folder / "t").mkdir()
        self.write()

    def write(self, **more):
        (self.folder / "toys.yaml").write_text(json.dumps(SUITE | more))

    def start(self, *words, launcher="slurm", script=START, **environment):
        paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        own = {"PYTHONPATH": paths, "SLURM_TEST": self.mark, "TMPDIR": str(self.folder / "t")}
        return subprocess.Popen(
            [sys.executable, "-c", script, "toys.yaml", "--launcher", launcher, *words],
            cwd=self.folder,
            env=os.environ | own | {"COLUMNS": "200"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, process, code=0):
        out, err = process.communicate(timeout=120)
        assert no_trace(err), err
        assert process.returncode == code, (process.returncode, out, err)
        return out + err

    def run(self, *words, code=0, **rest):
        return self.end(self.start(*words, **rest), code)

    def records(self):
        found = []
        for path in sorted(self.folder.glob(f"results/*/*/{RECORDS}")):
            found += read_records(path)[0]
        return found

    def family(self):
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_TEST") == self.mark and process.status() != "zombie":
                    found.append(process)
        return found

    def jobs(self):
        """The processes that do the work of a job, without their children."""
        return [p for p in self.family() if "submitit.core._submit" in " ".join(p.cmdline())]

    def check_all_there_once(self):
        records = self.records()
        check_all_there_once(records, CELLS)
        for record in records:
            assert record.conformance["slurm_job"].isdecimal()

    def check_nothing_left(self):
        assert eventually(lambda: not self.family(), 15), [p.cmdline() for p in self.family()]
        assert list(self.folder.glob("results/*/*/slurm")) == []
        assert list(self.folder.glob("results/.slurm*")) == []
        assert list(self.folder.glob("results/*/*/scratch/*")) == []


@pytest.fixture
def runs(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'ddposink[slurm]')")
    made = Runs(tmp_path)
    yield made
    for process in made.family():  # if the test has failed
        process.kill()


def imported():
    pytest.importorskip("submitit", reason="submitit is not installed (pip install 'ddposink[slurm]')")
    from bench.run.slurm import site

    return site


def test_jobs_give_what_a_local_run_gives(runs):
    runs.run(launcher="local")
    here = {record.cell: record for record in runs.records()}
    runs.run("--new")
    there = [record for record in runs.records() if record.run not in {r.run for r in here.values()}]
    assert {record.cell for record in there} == here.keys()
    (folder,) = {runs.folder / "results" / "toys" / record.run for record in there}
    for record in there:
        local = here[record.cell]
        assert (record.status, record.columns, record.metrics) == (local.status, local.columns, local.metrics)
        assert [a.sha256 for a in record.artifacts] == [a.sha256 for a in local.artifacts]
        assert all((folder / kept.path).stat().st_size == kept.bytes for kept in record.artifacts)
        assert record.conformance["preloaded"] is True
        assert "toy begins" in (folder / "logs" / f"{record.pass_id}.log").read_text()
    assert len({record.conformance["slurm_job"] for record in there}) == 2  # a job for each pass
    kept = json.loads((folder / ENV).read_text())
    assert {record.env for record in there} <= {kept["id"], *kept.get("earlier", {})}
    runs.check_nothing_left()


def kept_by_jobs(runs):
    """What passes keep for their next attempt, in the folders of their jobs."""
    return list(runs.folder.glob(f"results/*/*/{kept_files.JOBS}/*/{kept_files.ROOT}/{SCRATCH}/*/at-*"))


def test_a_job_that_is_killed_is_measured_again_from_where_it_was(runs):
    runs.write(defaults={"speed": 0.05, "mode": "keep"}, grid={"at": [0], "length": [2, 20, 100]})
    process = runs.start()
    assert eventually(lambda: kept_by_jobs(runs), 120)
    for job in runs.jobs():
        job.kill()
    said = runs.end(process)
    assert "ended without a word" in said
    assert "its pass is measured again" in said
    last = [record for record in runs.records() if record.params["length"] == 100]
    assert [record.metrics["total"].value for record in last] == [4950]
    assert last[0].conformance["resumed_at"] >= 20
    runs.check_nothing_left()


def killed(runs):
    """A run whose driver is gone, and its jobs with it; how many cells it has answered."""
    runs.write(defaults={"speed": 0.05, "mode": "keep"})
    process = runs.start()
    assert eventually(lambda: len(runs.records()) == 4, 120)
    assert eventually(lambda: kept_by_jobs(runs), 120)
    process.kill()
    process.communicate()
    assert eventually(lambda: not runs.family(), 30)  # nobody gives them a sign of life
    return len(runs.records())


def test_a_driver_that_is_killed_is_gone_on_from_and_its_jobs_end(runs):
    known = killed(runs)
    assert f"({known} answered before)" in runs.run()
    runs.check_all_there_once()
    assert max(record.conformance["resumed_at"] for record in runs.records()) >= 20
    runs.check_nothing_left()


def test_a_local_run_goes_on_from_what_the_jobs_of_a_killed_driver_have_kept(runs):
    known = killed(runs)
    assert f"({known} answered before)" in runs.run(launcher="local")
    assert len(runs.records()) == CELLS
    here = [record for record in runs.records() if "slurm_job" not in record.conformance]
    assert max(record.conformance["resumed_at"] for record in here) >= 20
    runs.check_nothing_left()


def test_ctrl_c_keeps_what_is_answered_and_ends_the_jobs(runs):
    runs.write(defaults={"speed": 0.05})
    process = runs.start()
    assert eventually(lambda: len(runs.records()) >= 2, 120)
    process.send_signal(signal.SIGINT)
    assert "--launcher slurm" in runs.end(process, code=130)
    runs.check_nothing_left()
    runs.run()
    runs.check_all_there_once()


ENDS = {
    "memory": (Status.OOM, "MemoryError"),
    "hang": (Status.TIMEOUT, "timed out after 10 s"),
    "segfault": (Status.ERROR, "crashed with SIGSEGV"),
}


def test_ends_of_a_pass_are_those_of_a_local_one(runs):
    for modes, timeout in ((["memory", "segfault"], 120), (["hang"], 10)):
        grid = {"mode": modes, "length": [2, 20, 30]}
        runs.write(defaults={"at": 20}, grid=grid, timeout=timeout, memory_limit="512MiB")
        runs.run(code=3)
    found = {(record.params["mode"], record.params["length"]): record for record in runs.records()}
    assert len(found) == 9
    for mode, (status, reason) in ENDS.items():
        assert found[mode, 2].status is Status.OK
        assert (found[mode, 20].status, found[mode, 20].reason) == (status, reason)
    runs.check_nothing_left()


def test_the_commands_of_slurm_themselves(runs):
    """The same by `sbatch`, `sacct` and `scancel`, of a Slurm that has one machine."""
    slurm = {"PATH": f"{install(runs.folder / 'slurm')}:{os.environ['PATH']}", "script": REAL}
    runs.run(**slurm)
    runs.check_all_there_once()
    runs.check_nothing_left()
    (script, *_) = (runs.folder / "slurm" / "jobs").glob("1001.sh")  # the first job asks what a node is
    lines = script.read_text().splitlines()
    for line in ("--exclusive", "--no-requeue", "--cpus-per-task=1", "--time=16", "--job-name=bench"):
        assert f"#SBATCH {line}" in lines
    shutil.rmtree(runs.folder / "results")
    runs.write(defaults={"speed": 0.05})
    process = runs.start(**slurm)
    assert eventually(lambda: len(runs.records()) >= 4, 120)
    process.send_signal(signal.SIGINT)
    runs.end(process, code=130)
    runs.check_nothing_left()
    assert len(list((runs.folder / "slurm" / "jobs").glob("*.cancelled"))) == 2
    said = runs.run("--new", code=2, SBATCH_PARTITION="none", **slurm)
    assert "Slurm does not take a job: " in said
    assert "invalid partition specified: none" in said


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (
            {"resources": {"custom": {"h100": 1}}},
            "is of Ray; Slurm does not know h100",
        ),
        ({"timeout": None}, "a Slurm job must say how long it may take, and the suite has no timeout"),
    ],
)
def test_what_slurm_cannot_be_asked_for_is_one_sentence(runs, suite, said):
    runs.write(**suite)
    assert said in runs.run(code=2)
    assert not (runs.folder / "results").exists()


def test_a_machine_without_slurm_is_one_sentence(runs):
    if shutil.which("sbatch"):
        pytest.skip("this machine has Slurm")
    said = runs.run(script=REAL, code=2)
    assert "no Slurm here: there is no sbatch on this machine" in said
    assert not (runs.folder / "results").exists()


WITHOUT = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "submitit" else found(name, *rest)
"""


def test_without_submitit(tmp_path):
    code = WITHOUT + "from bench.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(ROOT / "suites" / "smoke.yaml"), "--launcher", "slurm"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        "error: --launcher slurm needs submitit, which is not installed",
        "  hint: pip install 'ddposink[slurm]'",
    ]


def test_a_node_of_another_kind_or_code_measures_nothing(tmp_path):
    site = imported()
    mine = {"id": "a", "cpu": {"model": "x", "cores": 8}}
    place = site.SlurmSite.__new__(site.SlurmSite)
    place.fingerprint = mine
    place._request = SimpleNamespace(plan=SimpleNamespace(version="1"))
    hello = {"version": "1", "node": "n2", "devices": ["GPU-1"], "fingerprint": mine | {"cpu": {"cores": 4}}}
    with pytest.raises(UserError, match=r"node n2 has another cpu.cores, cpu.model than the first one"):
        place.place(hello, tmp_path, "7")
    with pytest.raises(UserError, match="the code of the workload on a node is 2, here it is 1"):
        place.place(hello | {"version": "2"}, tmp_path, "7")


def test_what_slurm_is_asked_for(monkeypatch):
    site = imported()

    def asked(jobs, timeout, **resources):
        resources = Resources.model_validate(resources)
        return site.asked_for(
            SimpleNamespace(suite=SimpleNamespace(resources=resources, timeout=timeout)), jobs
        )

    alone = asked(1, 90.0)
    assert (alone["timeout_min"], alone["cpus_per_task"], alone["slurm_exclusive"]) == (17, 1, True)
    shared = asked(4, 3600.0, cpus=4, gpus=1, memory="32GiB")
    assert (shared["timeout_min"], shared["cpus_per_task"], shared["gpus_per_node"]) == (75, 4, 1)
    assert shared["mem_gb"] == 32
    assert "slurm_exclusive" not in shared
    monkeypatch.setenv(site.LIMIT, "2:00:00")
    assert asked(1, None)["timeout_min"] == 15  # sbatch prefers what its variable says
