"""Runs of a suite of toys in a folder, on a Ray cluster or without."""

import json
import subprocess
import sys

from helpers.raycluster import passes_left
from helpers.toyruns import check_all_there_once, eventually, whole_records

START = """
from bench import registry
registry.register("toy", "helpers.toy:Toy")
from bench.cli import main
main()
"""
SUITE = {
    "suite": "toys",
    "workload": "toy",
    "defaults": {"speed": 0.01},
    "grid": {"at": [0, 1, 2, 3], "length": [2, 20, 100]},  # a pass for each `at`, which changes nothing
}
CELLS = 12


class Runs:
    """Runs of one suite in one folder, on the cluster unless told otherwise."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        self.started = []
        self.write()

    def write(self, **more):
        (self.folder / "toys.yaml").write_text(json.dumps(SUITE | more))

    def start(self, *words, local=False, **environment):
        where = [] if local else ["--launcher", "ray", "--address", self.cluster.address]
        process = subprocess.Popen(
            [sys.executable, "-c", START, "toys.yaml", *where, *words],
            cwd=self.folder,
            env=self.cluster.environment() | {"COLUMNS": "200"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words, code=0, **rest):
        return self.end(self.start(*words, **rest), code)

    def end(self, process, code=0):
        out, err = process.communicate(timeout=400)
        assert "Traceback" not in err, err
        assert process.returncode == code, (process.returncode, out, err)
        return out + err

    def records(self):
        return whole_records(self.folder / "results")

    def await_records(self, count):
        assert eventually(lambda: len(self.records()) >= count, 120)

    def check_all_there_once(self):
        check_all_there_once(self.records(), CELLS)

    def check_nothing_left(self):
        assert eventually(lambda: not passes_left(self.cluster), 10), passes_left(self.cluster)
