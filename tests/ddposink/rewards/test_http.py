"""A reward that a server computes: what goes out, what may come back, and what becomes of everything else."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddposink.rewards import RewardError, load_reward, parse_reward
from ddposink.rewards.http import BYTES, HOSTS, RETRIES, TIMEOUT, loopback
from helpers.reward_server import Server, serving, text

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["red apple", "Grüße ☃", "cat"]


def sleepy(to: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    time.sleep(1.5)


def dripping(to: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """A byte now and then: no single read is late."""
    to.send_response(200)
    to.end_headers()
    for _ in range(30):
        try:
            to.wfile.write(b" ")
        except OSError:
            return
        time.sleep(0.1)


def endless(to: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    to.send_response(200)
    to.end_headers()
    try:
        for _ in range(10_000):
            to.wfile.write(b"[" * BYTES)
    except OSError:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(TIMEOUT, "0.5")
    monkeypatch.setenv(RETRIES, "0")
    with serving() as found:
        yield found


def test_pictures_and_prompts_go_out_and_numbers_come_back(server: Server) -> None:
    def brightness(to: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in content["images"]]
        assert all(one.format == "PNG" for one in pictures)
        values = [float(np.asarray(one).mean() / 255) for one in pictures]
        text(json.dumps({"rewards": values}))(to, content)

    server.answer = brightness
    reward = load_reward(parse_reward(f"{server.url}/v1/score?model=a"))
    assert reward.name == f"{server.url}/v1/score?model=a"
    found = reward(IMAGES, PROMPTS)
    assert torch.allclose(found, IMAGES.mean((1, 2, 3)), atol=1 / 255)
    ((path, content),) = server.asked
    assert path == "/v1/score?model=a"
    assert content["prompts"] == PROMPTS


WRONG = {
    "late": (sleepy, r"is late: no answer within 0.5 s"),
    "dripping": (dripping, r"is late: no whole answer within 0.5 s"),
    "broken off": (text('{"rew', **{"Content-Length": "70"}), r"broke off its answer, 6\d bytes before"),
    "endless": (endless, r"answered more than 65,728 bytes for 3 pictures"),
    "few": (text('{"rewards": [1, 2]}'), r"answered 2 numbers for 3 pictures"),
    "text": (text("<html>hello</html>"), r"answered text, not .*: '<html>hello</html>'"),
    "other": (text("[1, 2, 3]"), r"answered other JSON, not"),
    "deep": (text("[" * 60_000), r"answered text, not"),
    "nan": (text('{"rewards": [1, NaN, 2]}'), r"answered 'nan' for picture 2, not a finite number"),
    "null": (text('{"rewards": [1, 2, null]}'), r"answered 'None' for picture 3"),
    "word": (text('{"rewards": [true, 2, 3]}'), r"answered 'True' for picture 1"),
    "huge": (text('{"rewards": [1e39, 2, 3]}'), r"answered '1e\+39' for picture 1"),
    "long": (text('{"rewards": [1%s, 2, 3]}' % ("0" * 400)), r"answered '10+' for picture 1"),
    "redirect": (text("", 302, Location="http://example.org/"), r"answered with a redirect \(302\)"),
    "missing": (text("no such page", 404), r"answered 404 Not Found: 'no such page'"),
    "busy": (text("later", 503), r"answered 503 Service Unavailable: 'later'"),
    "empty": (text(""), r"answered text, not"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_whatever_is_wrong_names_the_server_and_why(kind: str, server: Server) -> None:
    server.answer, why = WRONG[kind]
    reward = load_reward(parse_reward(f"{server.url}/score"))
    with pytest.raises(RewardError, match=why) as failure:
        reward(IMAGES, PROMPTS)
    assert f"the reward server 127.0.0.1:{server.server_port} " in str(failure.value)
    assert "\n" not in str(failure.value)
    assert failure.value.prompts == PROMPTS  # the batch comes with it
    assert len(server.asked) == 1


def test_no_answer_takes_longer_than_the_limit(server: Server) -> None:
    server.answer = dripping  # for three seconds, over a line whose end is that of the answer
    begun = time.monotonic()
    with pytest.raises(RewardError, match="is late"):
        load_reward(parse_reward(f"{server.url}/score"))(IMAGES, PROMPTS)
    assert time.monotonic() - begun < 2


def test_a_server_that_fails_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "2")
    answers = [text("later", 503), text("later", 502), text('{"rewards": [1, 2, 3]}')]
    server.answer = lambda to, content: answers[len(server.asked) - 1](to, content)
    assert load_reward(parse_reward(f"{server.url}/score"))(IMAGES, PROMPTS).tolist() == [1, 2, 3]
    assert len(server.asked) == 3
    server.answer = text("later", 503)
    with pytest.raises(RewardError, match=r"answered 503 .*\(3 tries\)"):
        load_reward(parse_reward(f"{server.url}/score"))(IMAGES, PROMPTS)
    assert len(server.asked) == 6


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRIES, "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RewardError, match=rf"127.0.0.1:{port} cannot be asked: Connection refused"):
        load_reward(parse_reward(f"http://127.0.0.1:{port}/"))(IMAGES, PROMPTS)


def test_no_proxy_sees_the_pictures(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answer = text('{"rewards": [1, 2, 3]}')
    assert load_reward(parse_reward(f"{server.url}/"))(IMAGES, PROMPTS).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("10.0.0.1", False),
        ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("0.0.0.0", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_this_machine(host: str, own: bool) -> None:
    assert loopback(host) is own


def test_other_hosts_are_allowed_by_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "https://judge.example.org:8443/score"
    with pytest.raises(ValueError, match=rf"not this machine.*{HOSTS}=judge.example.org:8443"):
        parse_reward(name)
    with pytest.raises(ValueError, match="not this machine"):
        parse_reward(f"weighted:1*{name}+1*brisque")
    monkeypatch.setenv(HOSTS, "other.example.org, judge.example.org:8443")
    assert parse_reward(name).name == name
    with pytest.raises(ValueError, match="not this machine"):
        parse_reward("https://judge.example.org/score")  # another port is another server


@pytest.mark.parametrize(
    "name",
    [
        "http", "http:", "http:127.0.0.1", "http://", "http:///score", "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/", "http://127.0.0.1:x/", "http://user:word@127.0.0.1/", "http://127.0.0.1/#a",
        "http://127.0.0.1/a b", "http://127.0.0.1/a\r\nHost: b", "http://[::1/", "http://127.0.0.1@example.org/",
    ],
)  # fmt: skip
def test_what_is_no_address(name: str) -> None:
    with pytest.raises(ValueError, match=r"http"):
        parse_reward(name)


def test_it_can_be_part_of_a_sum(server: Server) -> None:
    server.answer = text('{"rewards": [1, 2, 3]}')
    reward = load_reward(parse_reward(f"weighted:2*{server.url}/score+1*noise"))
    assert (reward(IMAGES, PROMPTS) - load_reward(parse_reward("noise"))(IMAGES, PROMPTS)).tolist() == (
        pytest.approx([2, 4, 6], abs=1e-5)
    )


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_limit_is_a_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, value)
    with pytest.raises(ValueError, match=rf"{TIMEOUT} must be a number"):
        load_reward(parse_reward("http://127.0.0.1:1/"))
