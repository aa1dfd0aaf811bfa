import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from bench import doctor
from bench.cli import app


@pytest.fixture
def online(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return monkeypatch


@pytest.mark.parametrize("status", [200, 503])
def test_a_hub_that_answers_is_there(online, status):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert doctor.hub().state == "ok"
    server.server_close()


def test_a_hub_that_refuses_or_keeps_silent_is_missing(online):
    with socket.socket() as listening:  # accepts, but never answers
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        online.setattr(doctor, "HUB_SECONDS", 0.2)
        online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert doctor.hub().state == "missing"
    refused = doctor.hub()
    assert refused.state == "missing"
    assert "cannot be reached" in refused.detail
    assert "skipped" in refused.fix


def test_a_hub_switched_off_is_not_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "no url at all")
    assert doctor.hub().state == "note"


def test_a_nonsense_endpoint_is_an_answer_too(online):
    online.setenv("HF_ENDPOINT", "no url at all")
    assert doctor.hub().state == "missing"


def test_engines_that_python_cannot_find_come_with_a_command(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "trl" else object())
    found = {finding.name: finding for finding in doctor.engines()}
    assert found["trl"].state == "missing"
    assert found["trl"].fix == "pip install 'ddposink[ddpo]'"
    assert found["torch"].state == "ok"


def test_assets_in_the_cache_and_not(tmp_path, monkeypatch):
    from ddposink.assets.catalogue import ASSETS

    monkeypatch.setenv("DDPOSINK_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    gguf = ASSETS["smollm2-135m-gguf"].cache_file
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"")
    findings = list(doctor.assets())
    assert [f.state for f in findings if "smollm2-135m-gguf" in f.detail] == ["ok"]
    without_apt = [f for f in findings if "austen" in f.detail]
    assert [f.state for f in without_apt] == ["missing"]
    assert "folder:DIR" in without_apt[0].fix


def test_a_full_disk_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 2**20}))
    disk = next(f for f in doctor.machine(tmp_path / "results" / "not there yet") if f.name == "disk")
    assert disk.state == "note"
    assert "--results" in disk.fix


def test_a_gpu_and_a_torch_that_cannot_use_it(monkeypatch):
    gpu = {"name": "Imaginary 9000", "memory_bytes": 80 * 2**30, "driver": "1.2"}
    monkeypatch.setattr(doctor.environment, "gpus", lambda: ([gpu], None))
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0+cpu")
    card, torch = doctor.gpus()
    assert card.detail == "Imaginary 9000 (80 GiB, driver 1.2)"
    assert torch.state == "missing"


def test_the_probe_measures_in_a_process_of_its_own():
    finding = doctor.measured_probe()
    assert finding.state == "ok"
    assert "GFLOP/s" in finding.detail
    code = "import sys; from bench import doctor; doctor.measured_probe(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_waiting_costs_is_measured_and_said_where_it_is_much(monkeypatch):
    said = doctor.waiting_probe().detail
    assert re.search(r"\d µs when threads wait passively, \d+ µs when they spin", said)
    told = "import os; print({'PASSIVE': 30, 'ACTIVE': 20}[os.environ['OMP_WAIT_POLICY']])"
    monkeypatch.setattr(doctor, "_WAITING", told)
    assert doctor.waiting_probe().state == "note"
    assert "OMP_WAIT_POLICY=ACTIVE" in doctor.waiting_probe().fix
    monkeypatch.setattr(doctor, "_WAITING", told.replace("30", "24"))
    assert (doctor.waiting_probe().state, doctor.waiting_probe().fix) == ("ok", "")


def test_a_probe_that_fails_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "raise ImportError('no torch here')")
    finding = doctor.measured_probe()
    assert finding.state == "missing"
    assert "no torch here" in finding.detail


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "trl"], "--engine does nothing without --ddpo PIPELINE"),
        (["--set", "sample_num_steps=0"], "--set does nothing without --ddpo PIPELINE"),
        (["--ddpo", "emoji-sd", "--probe"], "--probe does nothing with --ddpo"),
    ],
)
def test_an_option_that_nothing_looks_at_is_refused(words, said):
    done = CliRunner().invoke(app, ["doctor", *words])
    assert done.exit_code == 2
    assert said in done.output
