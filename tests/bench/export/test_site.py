"""Publishing: a site of plain files, and tables on a hub that lives in this process."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import registry
from bench.errors import UserError
from bench.export import hub
from bench.export import site as publish
from bench.report.large import load
from bench.results import index
from bench.results.environment import fingerprint_id
from helpers.synthetic import ENV, Synthetic, measured, record, write_run

ROOT = Path(__file__).parents[3]
MACHINE = {key: ENV[key] for key in ("python", "packages", "cpu", "gpus")}


PLAIN = Synthetic(views=())  # no pictures: they take time and are tested elsewhere


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invented workload under its name, as a run folder names it."""
    monkeypatch.setitem(registry._registered, "synthetic", f"{__name__}:PLAIN")


def run(path: Path, name: str = "20260101-000000-abcdef", day: int = 1, **changes: Any) -> Path:
    env = {"id": fingerprint_id(MACHINE), **MACHINE}
    stamp = {
        "started": f"2026-01-{day:02d}T00:00:00.000+00:00",
        "finished": f"2026-01-{day:02d}T00:01:00.000+00:00",
    }
    records = [
        measured("dense", n) | {"run": name, "env": env["id"], **stamp, **changes} for n in (512, 1024)
    ]
    return write_run(
        path, records, env=env, suite={"suite": changes.get("suite", "synthetic")}, planned=records
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_site_is_plain_files_and_publishing_again_changes_nothing(tmp_path: Path) -> None:
    source, site = run(tmp_path / "run"), tmp_path / "site"
    page, note = publish.add(source, site)
    assert note == ""
    assert page == site / "synthetic" / "20260101-000000-abcdef" / "index.html"
    first = content(site)
    assert {"index.html", ".nojekyll"} <= first.keys()
    kept = {name.rpartition("/")[2] for name in first}
    assert {"README.md", "records.jsonl", "records.parquet", "env.json", "full.csv", "published.json"} <= kept
    assert 'download="synthetic.parquet"' in page.read_text()
    publish.add(source, site)
    assert content(site) == first
    assert [p.name for p in site.iterdir() if p.name.startswith(".staging")] == []


def test_results_are_no_site_the_run_itself_would_be_replaced(tmp_path: Path) -> None:
    """A published copy goes without artifacts and logs, which may be hours of training."""
    source = run(tmp_path / "synthetic" / "20260101-000000-abcdef")
    (source / "artifacts").mkdir()
    (source / "artifacts" / "nll.npz").write_bytes(b"hours of work")
    first = content(tmp_path)
    with pytest.raises(UserError, match=r"abcdef was not made by this command, and would be replaced"):
        publish.add(source, tmp_path)
    assert content(tmp_path) == first


def test_a_site_is_as_private_as_its_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--private is of the dataset"):
        publish.publish(str(run(tmp_path / "run")), tmp_path / "site", None, True, tmp_path, Console())
    assert not (tmp_path / "site").exists()


def test_the_index_shows_the_newest_run_and_how_it_compares(tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish.add(run(tmp_path / "one", "20260101-000000-aaaaaa", 1), site)
    publish.add(run(tmp_path / "two", "20260102-000000-bbbbbb", 2), site)
    publish.add(run(tmp_path / "three", "20260103-000000-cccccc", 3, suite="another"), site)
    cards = publish.cards(site)
    assert [card["run"][-6:] for card in cards] == ["cccccc", "bbbbbb", "aaaaaa"]
    assert cards[1]["baseline"] == "20260101-000000-aaaaaa"
    assert cards[1]["verdicts"]["pass"] > 0
    assert cards[2]["baseline"] is None
    index = (site / "index.html").read_text()
    assert index.index("another") < index.index("synthetic/20260102") < index.index("synthetic/20260101")
    assert "equal within tolerance" in index
    links = re.findall(r'<a href="([^"#]+)"', index)
    assert links
    assert all((site / link).is_file() for link in links)
    second = site / "synthetic" / "20260102-000000-bbbbbb"
    assert 'id="comparison"' in (second / "index.html").read_text()


def test_an_older_run_published_late_stays_behind_the_newer(tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish.add(run(tmp_path / "two", "20260102-000000-bbbbbb", 2), site)
    publish.add(run(tmp_path / "one", "20260101-000000-aaaaaa", 1), site)
    assert [card["run"][-6:] for card in publish.cards(site)] == ["bbbbbb", "aaaaaa"]
    assert publish.cards(site)[1]["baseline"] is None


def test_a_run_too_large_to_be_compared_leaves_no_trace_and_names_no_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    before = publish.add(run(tmp_path / "one", "20260101-000000-aaaaaa", 1), site)[0].parent
    monkeypatch.setattr(load, "MOST_CELLS", 1)
    monkeypatch.setattr(index, "BLOCK", 1000)
    known = content(before)
    _, note = publish.add(run(tmp_path / "two", "20260102-000000-bbbbbb", 2), site)
    assert note.startswith(
        "not compared with 20260101-000000-aaaaaa: 20260102-000000-bbbbbb has 2 cells: a page of several"
    )
    assert content(before) == known


def test_what_cannot_be_compared_is_published_all_the_same(tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish.add(run(tmp_path / "one", "20260101-000000-aaaaaa", 1), site)
    old = site / "synthetic" / "20260101-000000-aaaaaa" / "records.jsonl"
    old.write_text(old.read_text().replace('"workload": "synthetic"', '"workload": "else"'))
    _, note = publish.add(run(tmp_path / "two", "20260102-000000-bbbbbb", 2), site)
    assert "not compared with" in note
    assert publish.cards(site)[0]["baseline"] is None


def test_hostile_names_stay_inside_and_inert(tmp_path: Path) -> None:
    site = tmp_path / "site"
    bad = "../../<script>alert(1)</script>"
    page, _ = publish.add(run(tmp_path / "run", bad, suite=bad), site)
    assert page.resolve().is_relative_to(site.resolve())
    assert "<script>alert(1)" not in (site / "index.html").read_text()
    assert "<script>alert(1)" not in page.read_text()


def test_links_in_a_run_folder_lead_nowhere(tmp_path: Path) -> None:
    source, site = run(tmp_path / "run"), tmp_path / "site"
    (tmp_path / "secret").write_text("secret")
    (source / "artifacts").mkdir(exist_ok=True)
    (source / "artifacts" / "link").symlink_to(tmp_path / "secret")
    publish.add(source, site)
    assert b"secret" not in b"".join(content(site).values())


def test_a_full_disk_leaves_the_site_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, site = run(tmp_path / "run"), tmp_path / "site"
    publish.add(source, site)
    before = content(site)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publish, "_write_parquet", full)
    with pytest.raises(UserError, match="No space left"):
        publish.add(source, site)
    assert content(site) == before
    assert not list(site.glob(".staging*"))


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<h1>my own page</h1>")
    source = run(tmp_path / "run")
    with pytest.raises(UserError, match="would be lost"):
        publish.add(source, tmp_path / "mine")
    with pytest.raises(UserError, match="is not a folder"):
        publish.add(source, source / "records.jsonl")
    with pytest.raises(UserError, match="holds no record"):
        publish.add(write_run(tmp_path / "empty", []), tmp_path / "site")
    with pytest.raises(UserError, match="nowhere to publish"):
        publish.publish(str(source), None, None, False, tmp_path, Console())
    assert not (tmp_path / "site").exists()


def test_a_run_with_only_failures_is_published_as_such(tmp_path: Path) -> None:
    failed = [record("dense", 512, status="oom", reason="9 GiB")]
    publish.add(write_run(tmp_path / "run", failed), tmp_path / "site")
    assert "0 of 1 cell measured; 1 oom" in (tmp_path / "site" / "index.html").read_text()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; what was committed is in ``server.files``."""

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, data: Any, code: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server: Any = self.server
        if "/tree/" in self.path:
            files = [{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in server.files]
            return self._answer(files)
        return self._answer(
            {"id": "org/name", "sha": "0" * 40, "siblings": [{"rfilename": p} for p in server.files]}
        )

    def do_POST(self) -> None:
        import base64

        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.seen.append((self.path, self.headers.get("Authorization")))
        if server.refuse:
            return self._answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            server.created = json.loads(body)
            return self._answer(
                {"url": f"{server.url}/datasets/org/name", "name": "org/name", "id": "org/name"}
            )
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
                    ]
                }
            )
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer(
                {"commitUrl": f"{server.url}/datasets/org/name/commit/" + "1" * 40, "commitOid": "1" * 40}
            )
        return self._answer({"error": "not found"}, 404)


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    made.url = f"http://127.0.0.1:{made.server_port}"
    made.files, made.seen, made.refuse, made.created = {}, [], False, None
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def upload(source: Path, server: Any, repo: str = "org/name") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "200"}
    for name in (
        "HF_HUB_OFFLINE",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ):
        env.pop(name, None)
    command = [sys.executable, "-m", "bench", "publish", str(source), "--to-hub", repo]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)


def test_tables_go_to_the_hub(tmp_path: Path, server: Any) -> None:
    import pyarrow.parquet as pq

    source = run(tmp_path / "run")
    (source / "tables").mkdir()
    (source / "tables" / "full.csv").write_text("a\n1\n")
    server.files["data/older/20250101.parquet"] = b"kept"
    done = upload(source, server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.created["type"] == "dataset"
    assert all(token == "Bearer hf_test" for _, token in server.seen)
    name = "20260101-000000-abcdef"
    assert server.files[f"tables/synthetic/{name}/full.csv"] == b"a\n1\n"
    (tmp_path / "back.parquet").write_bytes(server.files[f"data/synthetic/{name}.parquet"])
    assert pq.read_table(tmp_path / "back.parquet").num_rows == 2
    card = server.files["README.md"].decode()
    assert "data/synthetic/*.parquet" in card
    assert "data/older/*.parquet" in card  # what others uploaded stays described


def test_a_refusal_is_one_clear_line(tmp_path: Path, server: Any) -> None:
    server.refuse = True
    done = upload(run(tmp_path / "run"), server)
    assert done.returncode == 2
    assert "the hub refuses" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_name_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a repository name"):
        hub.upload(run(tmp_path / "run"), "no such/name/at all")


def test_the_card_is_yaml_with_one_configuration_per_suite() -> None:
    import yaml

    head = yaml.safe_load(hub.card("org/name", {"b", "a: [x]"}).split("---")[1])
    assert [c["config_name"] for c in head["configs"]] == ["a: [x]", "b"]
    assert head["license"] == "apache-2.0"


@pytest.mark.parametrize("name", ["site[old]", "s[bold]x", "s[%red]"])
def test_the_folder_of_a_site_is_told_as_it_is_written(tmp_path: Path, name: str) -> None:
    out, name = io.StringIO(), name.replace("%", "/")
    target = tmp_path / name
    console = Console(file=out, width=1000)
    publish.publish(str(run(tmp_path / "r")), target, None, False, tmp_path, console)
    assert f"published: {target}" in out.getvalue()
