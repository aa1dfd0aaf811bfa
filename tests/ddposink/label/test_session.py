"""The labelling page over real HTTP, and the file of choices that it writes."""

import csv
import http.client
import json
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddposink.comparisons import read_comparisons
from ddposink.label import Choices, LabelServer, LabelSession, read_pictures
from ddposink.label.session import plan

NASTY = "<img src=x onerror=alert(1)> & 'co'"


def draw(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for prompt, count in (("red apple", 3), ("tiger face", 2), ("alone", 1)):
        for i in range(count):
            draw(tmp_path / "pictures" / prompt / f"{i} #?%2e.png", 10 * i)
    nasty = tmp_path / "pictures" / "odd"
    for i in range(2):
        draw(nasty / f"x{i}.png")
    (nasty / "prompt.txt").write_text(NASTY + "\n")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tmp_path / "pictures"


def start(folder, **options):
    return LabelSession(read_pictures(folder), Choices(folder / "choices.csv", folder), **options)


class Client:
    def __init__(self, server):
        self.server, self.headers = server, {"X-Token": server.token}

    def ask(self, method, path, body=None, token=None, raw=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            target = raw or f"/{self.server.token if token is None else token}/{path}"
            sent = None if body is None else json.dumps(body)
            connection.request(method, target, sent, (self.headers if body is not None else {}) | headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def state(self):
        return json.loads(self.ask("GET", "state")[1])

    def choose(self, pair, choice):
        return self.ask("POST", "choice", {"pair": pair, "choice": choice})


def test_a_session_from_first_to_last_pair(folder):
    with LabelServer(start(folder, judge="me")) as server:
        client = Client(server)
        status, page, headers = client.ask("GET", "")
        assert status == 200
        assert b"page.js" in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        prompts = set()
        for number, choice in enumerate(["a", "b", "tie", "a", "b"]):
            state = client.state()
            assert (state["done"], state["total"]) == (number, 5)  # 3 + 1 + 1 pairs
            prompts.add(state["prompt"])
            status, picture, headers = client.ask("GET", f"picture/{state['a']}")
            assert (status, headers["Content-Type"]) == (200, "image/png")
            assert picture == server.session.pictures[state["a"]].file.read_bytes()
            assert client.choose(state["pair"], choice)[0] == 200
        assert "pair" not in client.state()
        assert prompts == {"red apple", "tiger face", NASTY}
    found = list(read_comparisons(str(folder / "choices.csv")))
    assert [c.choice for c in found] == [1, 0, 0.5, 1, 0]
    assert {c.judge for c in found} == {"me"}
    assert {c.prompt for c in found} == prompts
    assert all(c.a.is_file() and c.b.is_file() and c.a != c.b for c in found)


def test_it_goes_on_where_it_stopped(folder):
    first = start(folder)
    for choice in ("a", "tie"):
        assert first.answer(first.queue[0], choice)
    second = start(folder, seed=7)  # another order; what is judged stays judged
    assert (second.left, second.total) == (3, 5)
    assert second.state()["can_undo"] is False
    assert second.undo() is False  # choices of an earlier session are not taken back
    while second.queue:
        second.answer(second.queue[0], "b")
    with (folder / "choices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({frozenset((row["image_a"], row["image_b"])) for row in rows}) == 5


def test_undo_shows_the_pair_again(folder):
    session = start(folder)
    first = session.queue[0]
    session.answer(first, "a")
    second = session.queue[0]
    session.answer(second, "b")
    assert session.undo()
    assert session.queue[0] == second
    assert session.undo()
    assert session.queue[0] == first
    assert not session.undo()
    session.answer(first, "tie")
    assert [c.choice for c in read_comparisons(str(folder / "choices.csv"))] == [0.5]


def test_a_torn_last_line_is_cut_off(folder):
    session = start(folder)
    session.answer(session.queue[0], "a")
    whole = (folder / "choices.csv").read_bytes()
    (folder / "choices.csv").write_bytes(whole + b'red apple,"red ap')
    again = start(folder)
    assert again.left == 4
    assert (folder / "choices.csv").read_bytes() == whole


def test_a_last_line_that_lacks_only_its_end_is_kept(folder):
    session = start(folder)
    session.answer(session.queue[0], "a")
    whole = (folder / "choices.csv").read_bytes()
    (folder / "choices.csv").write_bytes(whole.removesuffix(b"\n"))  # as an editor may save it
    assert start(folder).left == 4
    assert (folder / "choices.csv").read_bytes() == whole


def test_undo_takes_back_nothing_that_somebody_else_has_written(folder):
    mine, theirs = start(folder, judge="me"), start(folder, judge="you")
    mine.answer(mine.queue[0], "a")
    theirs.answer(theirs.queue[0], "b")
    written = (folder / "choices.csv").read_bytes()
    assert mine.state()["can_undo"] is False
    assert mine.undo() is False
    assert (folder / "choices.csv").read_bytes() == written
    assert theirs.undo() is True
    assert mine.undo() is True  # now it is the last again
    assert (folder / "choices.csv").read_bytes() == b""


def test_a_key_pressed_twice_counts_once(folder):
    with LabelServer(start(folder)) as server:
        client = Client(server)
        pair = client.state()["pair"]
        assert client.choose(pair, "a")[0] == 200
        assert client.choose(pair, "a")[0] == 409
        assert client.choose("0", "a")[0] == 409
        assert client.choose(client.state()["pair"], "c")[0] == 409
        assert client.state()["done"] == 1


def test_only_who_has_the_address_may_look_or_choose(folder):
    with LabelServer(start(folder)) as server:
        client = Client(server)
        good = f"127.0.0.1:{server.port}"
        assert client.ask("GET", "state", Host=good)[0] == 200
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", "127.0.0.1:1", ""):
            assert client.ask("GET", "state", Host=host)[0] == 421
        for token in ("", "x", server.token[:-1], server.token + "x", "é"):
            assert client.ask("GET", "state", raw=f"/{token.encode().hex()}/state")[0] == 403
        assert client.ask("GET", "", raw="/")[0] == 403
        body = {"pair": client.state()["pair"], "choice": "a"}
        assert client.ask("POST", "choice", body, **{"X-Token": "wrong"})[0] == 403
        assert client.ask("POST", "undo", {}, **{"X-Token": ""})[0] == 403
        assert client.state()["done"] == 0
        assert server.url.startswith("http://127.0.0.1:")


def test_it_listens_on_this_machine_only(folder):
    with LabelServer(start(folder)) as server:
        assert server._server.server_address[0] == "127.0.0.1"
        for *_, address in socket.getaddrinfo(socket.gethostname(), server.port, socket.AF_INET):
            if not address[0].startswith("127."):
                with pytest.raises(OSError):
                    socket.create_connection(address, timeout=1)


@pytest.mark.parametrize(
    "path",
    ["picture/../../secret.png", "picture/%2e%2e/secret.png", "picture/-1", "picture/99", "picture/",
     "picture/²", "../secret.png", "secret.png", "page.py", "server.py", "picture/0/../1",
     "picture/" + "9" * 5000],
)  # fmt: skip
def test_there_is_no_way_out_of_the_folder(folder, path):
    with LabelServer(start(folder)) as server:
        raw = f"/{server.token}/{path}".encode("latin-1", "replace").decode("latin-1")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
            line.sendall(f"GET {raw} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode("latin-1"))
            answer = line.recv(4000)
        assert answer.split(b" ")[1] == b"404"
        assert b"secret" not in answer


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"x" * 5000, b"[" * 999])
def test_a_body_that_is_no_choice_is_refused(folder, body):
    with LabelServer(start(folder)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", f"/{server.token}/choice", body, {"X-Token": server.token})
        assert connection.getresponse().status == 400
        connection.close()


def test_pictures_outside_are_not_shown(folder, tmp_path):
    draw(tmp_path / "other.png")
    (folder / "red apple" / "link.png").symlink_to(tmp_path / "other.png")
    assert not [p for p in read_pictures(folder) if p.file.name == "other.png"]
    (folder / "manifest.csv").write_text("prompt,image\nx,../other.png\n")
    with pytest.raises(ValueError, match=r"manifest.csv:2: '../other.png' lies outside of the folder"):
        read_pictures(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,picture\nx,y\n", ":2: expected columns prompt and image"),
        ("prompt,image\nx,nosuch.png\n", ":2: there is no picture 'nosuch.png'"),
        ("prompt,image\nx,choices.csv\n", ":2: 'choices.csv' is none of .png"),
        ("prompt,image\n", "has no two pictures of one prompt"),
    ],
)
def test_a_manifest_that_is_wrong_names_the_line(folder, text, words):
    (folder / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_pictures(folder)


def test_a_manifest_replaces_the_folders(folder):
    names = sorted(p.file.relative_to(folder).as_posix() for p in read_pictures(folder))[:2]
    (folder / "manifest.csv").write_text("".join(["prompt,image\n", *(f"my prompt,{n}\n" for n in names)]))
    assert [p.prompt for p in read_pictures(folder)] == ["my prompt"] * 2


def test_every_pair_once_and_prompts_take_turns(folder):
    pictures = read_pictures(folder)
    pairs = plan(pictures, seed=3, per_prompt=None)
    assert len({frozenset((p.a, p.b)) for p in pairs}) == len(pairs) == 5
    assert all(pictures[p.a].prompt == pictures[p.b].prompt for p in pairs)
    assert len({pictures[p.a].prompt for p in pairs[:3]}) == 3
    assert len(plan(pictures, seed=3, per_prompt=1)) == 3
    sides = [p.a < p.b for seed in range(40) for p in plan(pictures, seed, None)]
    assert 60 < sum(sides) < 140  # of 200: left and right are drawn by lot


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\n1,2", "a poem", "prompt,image_a\nx"])
def test_a_file_of_something_else_is_left_alone(folder, text):
    (folder / "choices.csv").write_text(text)
    with pytest.raises(ValueError, match="no file of choices: expected columns prompt, image_a"):
        start(folder)
    assert (folder / "choices.csv").read_text() == text


def test_a_file_that_is_no_text_is_named(folder):
    (folder / "choices.csv").write_bytes(b"\x89PNG\xff\n\x00")
    with pytest.raises(ValueError, match=r"choices\.csv' is no CSV file in UTF-8"):
        start(folder)


def test_the_command_says_what_is_wrong_and_starts_without_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['bench', 'label', sys.argv[1], '--no-browser']\n"
        "from bench.cli import main\ntry: main()\n"
        "finally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "has no two pictures of one prompt" in done.stderr


def until(page, condition):
    """Playwright's own waiting evaluates text in the page, which the page's policy forbids."""
    for _ in range(500):
        if page.evaluate(f"() => {condition}"):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never true: {condition}")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_page_in_a_browser(folder):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (folder / "red apple").rename(folder / NASTY.replace("/", "").replace("<", "‹"))
    with LabelServer(start(folder)) as server, sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page, faults = browser.new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: faults.append("dialog"))
        page.goto(server.url)
        seen = []
        for key in ("ArrowLeft", "ArrowRight", "u", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowRight"):
            until(page, "at('image-a').complete && at('image-a').naturalWidth > 0 && !busy")
            seen.append(page.inner_text("#prompt"))
            before = page.inner_text("#count")
            page.keyboard.press(key)
            until(page, f"at('count').textContent !== '{before}' && !busy")
        assert NASTY in seen
        assert page.inner_text("#prompt").startswith("All pairs are judged")
        assert page.inner_text("#count") == "5 of 5"
        page.click("#end")
        assert server.finished.wait(5)
        browser.close()
    assert faults == []
    assert [c.choice for c in read_comparisons(str(folder / "choices.csv"))] == [1, 0.5, 1, 1, 0]


def test_the_same_two_pictures_under_two_prompts_are_two_pairs(folder):
    names = sorted(p.file.relative_to(folder).as_posix() for p in read_pictures(folder))[:2]
    lines = [f"{prompt},{name}\n" for prompt in ("cat", "dog") for name in (*names, names[0])]  # one twice
    (folder / "manifest.csv").write_text("".join(["prompt,image\n", *lines]))
    session = start(folder)
    assert len(session.queue) == 2
    session.answer(session.queue[0], "a")
    again = start(folder)
    assert len(again.queue) == 1
    again.answer(again.queue[0], "b")
    assert again.undo()
    assert len(again.queue) == 1
    assert len(start(folder).queue) == 1


def test_a_prompt_is_one_line_and_so_is_a_choice(folder):
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))[:2]]
    (folder / "manifest.csv").write_text("prompt,image\n" + "".join(f'"a red\r\ncat",{n}\n' for n in names))
    assert [picture.prompt for picture in read_pictures(folder)] == ["a red cat"] * 2
    broken = folder / "a\rb.png"
    broken.write_bytes((folder / names[0]).read_bytes())
    (folder / "manifest.csv").write_text(f'prompt,image\nx,{names[0]}\nx,"a\rb.png"\n', newline="")
    with pytest.raises(ValueError, match="line break"):
        read_pictures(folder)
