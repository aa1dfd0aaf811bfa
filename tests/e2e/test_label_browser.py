"""The label page in a real browser: it works for who has the address, and for no page of another origin.

The foreign page even knows the token: whatever it tries, no choice is made and no picture is read.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddposink.label import Choices, LabelServer, LabelSession, read_pictures

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")

# Every way of asking that a page has: what it got ends up in `seen`.
FOREIGN = """<!doctype html><title>foreign</title><body><script>
const at = "%s", token = at.split("/")[3], seen = {};
const tries = {
  read: () => fetch(at + "state").then(r => r.text()),
  opaque: () => fetch(at + "state", {mode: "no-cors"}).then(r => r.text()),
  choose: () => fetch(at + "choice", {method: "POST", headers: {"X-Token": token},
    body: '{"pair": 0, "choice": "a"}'}).then(r => r.text()),
  simple: () => fetch(at + "choice", {method: "POST", mode: "no-cors",
    headers: {"Content-Type": "text/plain"}, body: '{"pair": 0, "choice": "a"}'}).then(r => r.text()),
  end: () => fetch(at + "end", {method: "POST", mode: "no-cors", body: "{}"}).then(r => r.text()),
  beacon: async () => { navigator.sendBeacon(at + "choice", '{"pair": 0, "choice": "a"}'); return ""; },
  picture: () => new Promise((done, fail) => { const i = new Image();
    i.onload = () => done("drawn"); i.onerror = fail; i.src = at + "picture/0"; }),
  script: () => new Promise((done, fail) => { const s = document.createElement("script");
    s.onload = () => done("ran"); s.onerror = fail; s.src = at + "page.js"; document.body.append(s); }),
};
(async () => {
  for (const [name, go] of Object.entries(tries)) {
    try { seen[name] = await go(); } catch (error) { seen[name] = null; }
  }
  document.body.insertAdjacentHTML("beforeend", `<iframe name=inner src="${at}"></iframe>`);
  const form = document.createElement("form");
  form.method = "POST"; form.action = at + "undo"; form.target = "inner";
  document.body.append(form);
  window.result = seen;
})();
</script>"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabelServer]:
    folder = tmp_path / "pictures" / "a red apple"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 90 * i, np.uint8)).save(folder / f"{i}.png")
    choices = Choices(tmp_path / "choices.csv", tmp_path / "pictures")
    with LabelServer(LabelSession(read_pictures(tmp_path / "pictures"), choices)) as server:
        yield server


@pytest.fixture
def foreign(server: LabelServer) -> Iterator[int]:
    """A page of another origin; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (FOREIGN % server.url).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield other.server_address[1]
        other.shutdown()


def test_who_has_the_address_can_choose(browser: Any, server: LabelServer) -> None:
    page = browser.new_page()
    page.goto(server.url)
    count = page.locator("#count")
    playwright.expect(count).to_have_text("0 of 3")
    assert page.locator("#image-a").evaluate("i => i.decode().then(() => i.naturalWidth)") == 8
    page.keyboard.press("ArrowLeft")
    playwright.expect(count).to_have_text("1 of 3")
    page.click("#undo")
    playwright.expect(count).to_have_text("0 of 3")
    page.close()
    assert server.session.left == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # another origin of one site, and another site
def test_a_page_of_another_origin_gets_nothing(
    browser: Any, server: LabelServer, foreign: int, host: str
) -> None:
    page = browser.new_page()
    page.goto(f"http://{host}:{foreign}/")
    page.wait_for_function("window.result !== undefined")
    seen = page.evaluate("window.result")
    assert {name: got for name, got in seen.items() if got} == {}
    assert page.evaluate("document.querySelectorAll('iframe').length") == 1
    assert sum(frame.locator("#prompt").count() for frame in page.frames) == 0
    page.close()
    assert server.session.left == 3
    assert not server.finished.is_set()
    assert not server.session.choices.rows


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.example"}, 421),  # a foreign name that resolves to this machine
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_what_is_asked_in_another_name_is_refused(
    server: LabelServer, headers: dict[str, str], status: int
) -> None:
    for method, path in (("GET", "state"), ("POST", "undo")):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        body = "{}" if method == "POST" else None
        connection.request(method, f"/{server.token}/{path}", body, {"X-Token": server.token} | headers)
        assert connection.getresponse().status == status
        connection.close()


def test_it_listens_on_this_machine_only(server: LabelServer) -> None:
    assert server._server.server_address[0] == "127.0.0.1"
