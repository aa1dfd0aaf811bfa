"""A reward that a server of yours computes: ``http://127.0.0.1:8000/score``.

Asked is one POST of JSON a batch,

    {"prompts": ["red apple", …], "images": ["iVBORw0KGgo…", …]}      (pictures as PNG in base64)

and the answer is JSON too, one number a picture in the same order, higher being better:

    {"rewards": [0.5, …]}

A suite is data and may come from others, so it reaches this machine alone: other hosts are named in the
environment variable DDPOSINK_REWARD_HOSTS by whoever starts the run. No redirect is followed, no proxy is
asked, no more is read than the numbers need. Whatever is wrong with an answer is an error that names the
server; pictures and prompts of the batch come with it.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import math
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from ddposink.rewards.base import RewardFunction, RewardInfo, RewardKind, to_uint8

if TYPE_CHECKING:
    from torch import Tensor

HOSTS, TIMEOUT, RETRIES = "DDPOSINK_REWARD_HOSTS", "DDPOSINK_REWARD_TIMEOUT", "DDPOSINK_REWARD_RETRIES"
SECONDS, TRIES_MORE = 60.0, 2  # for one answer, and how often a server that fails is asked again
BUSY = (429, 502, 503, 504)  # answers of a server that may do better a little later
PAUSE = 0.2  # seconds before the first try after a failure, then twice as long each time
BYTES, BYTES_EACH = 65_536, 64  # the most that an answer may have, and more for every picture


class ServerError(RuntimeError):
    """A reward server did not answer as it should. ``again``: asking once more may help."""

    def __init__(self, server: str, what: str, again: bool = False) -> None:
        super().__init__(f"the reward server {server} {what}")
        self.what, self.again = what, again


class Http(RewardKind):
    """``scheme`` is http or https."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.info = RewardInfo(
            range=(float("-inf"), float("inf")),
            unit="",
            needs="a server that answers at its address",
            licence="that of the server's weights and data",
            source="the server",
            label=f"reward server ({scheme})",
        )

    def parse(self, argument: str) -> str:
        """``//HOST:PORT/PATH``, of this machine or of a host that the environment allows."""
        address = _address(self.scheme, argument)
        if not (loopback(address.hostname or "") or address.netloc.lower() in _allowed()):
            raise ValueError(
                f"'{address.netloc}' is not this machine, and a suite alone may send pictures nowhere else; "
                f"allow it where you start the run: {HOSTS}={address.netloc}"
            )
        return argument

    def identity(self, argument: str) -> dict[str, str]:
        """The address: what stands behind it is not known, so put a version into its path."""
        return {"definition": f"what {self.scheme}:{argument} answers"}

    def load(self, argument: str, device: str) -> RewardFunction:
        """The function; nothing is asked yet. Raises ValueError for a time limit that is none."""
        address = _address(self.scheme, self.parse(argument))
        return Asker(address, _number(TIMEOUT, SECONDS, 1e-3), int(_number(RETRIES, TRIES_MORE, 0)))


@dataclass(frozen=True)
class Asker:
    """Asks the server at ``address``; ``seconds`` for one answer, ``more`` tries after one that failed."""

    address: SplitResult
    seconds: float
    more: int

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts → (B,) float32. Raises ServerError."""
        import torch

        pictures = [_png(picture) for picture in to_uint8(images).numpy()]
        body = json.dumps({"prompts": prompts, "images": pictures}).encode()
        for attempt in range(self.more + 1):
            try:
                values = self._read(self._post(body, len(prompts)), len(prompts))
                break
            except ServerError as error:
                if not error.again:
                    raise
                if attempt == self.more:
                    raise self._fault(f"{error.what} ({attempt + 1} tries)") from error
                time.sleep(PAUSE * 2**attempt)
        return torch.tensor(values, dtype=torch.float32, device=images.device)

    def _post(self, body: bytes, count: int) -> bytes:
        """The answer, within the time limit as a whole and no longer than its numbers need."""
        kind = http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.address.hostname or "", self.address.port, timeout=self.seconds)
        late, lines = threading.Event(), list[socket.socket]()
        watch = threading.Timer(self.seconds, _give_up, (lines, late))
        watch.daemon = True
        watch.start()
        path = (self.address.path or "/") + (f"?{self.address.query}" if self.address.query else "")
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.connect()
            lines.append(connection.sock)  # which the connection forgets where an answer ends with the line
            if late.is_set():
                raise TimeoutError
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            found = answer.read(BYTES + BYTES_EACH * count + 1)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise self._fault(f"is late: no answer within {self.seconds:g} s", again=True) from error
            raise self._fault(f"cannot be asked: {_reason(error)}", again=True) from error
        finally:
            watch.cancel()
            connection.close()
        if late.is_set():
            raise self._fault(f"is late: no whole answer within {self.seconds:g} s", again=True)
        if 300 <= answer.status < 400:
            raise self._fault(f"answered with a redirect ({answer.status}), which is not followed")
        if answer.status != 200:
            what = f"answered {answer.status} {answer.reason}: {_begin(found)}"
            raise self._fault(what, again=answer.status in BUSY)
        if answer.length and len(found) < BYTES + BYTES_EACH * count:  # of the announced length is left
            raise self._fault(f"broke off its answer, {answer.length:,} bytes before its end", again=True)
        if len(found) > BYTES + BYTES_EACH * count:
            raise self._fault(f"answered more than {BYTES + BYTES_EACH * count:,} bytes for {count} pictures")
        return found

    def _read(self, answer: bytes, count: int) -> list[float]:
        """The numbers in an answer."""
        form = 'not {"rewards": [a number for every picture]}'
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise self._fault(f"answered text, {form}: {_begin(answer)}") from error
        values = content.get("rewards") if isinstance(content, dict) else None
        if not isinstance(values, list):
            raise self._fault(f"answered other JSON, {form}: {_begin(answer)}")
        if len(values) != count:
            raise self._fault(f"answered {len(values)} numbers for {count} pictures")
        for index, value in enumerate(values):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) <= 3e38:  # nor NaN; a whole number may be too large for a float
                raise self._fault(
                    f"answered {str(value)[:40]!r} for picture {index + 1}, not a finite number"
                )
        return [float(value) for value in values]

    def _fault(self, what: str, again: bool = False) -> ServerError:
        return ServerError(self.address.netloc, what, again)


def loopback(host: str) -> bool:
    """Whether ``host`` is this machine by what it says, not by what somebody's name server says."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(scheme: str, argument: str) -> SplitResult:
    """Raises ValueError unless it is one."""
    usual = f"write {scheme}://127.0.0.1:8000/score"
    try:
        found = urlsplit(f"{scheme}:{argument}")
        port = found.port
    except ValueError as error:
        raise ValueError(f"'{scheme}:{argument}' is no address ({error}); {usual}") from error
    plain = argument.isascii() and argument.isprintable() and " " not in argument
    if not argument.startswith("//") or not found.hostname or not plain or port == 0:
        raise ValueError(f"'{scheme}:{argument}' is no address; {usual}")
    if found.username is not None or found.fragment:
        raise ValueError(f"an address has no user, password or fragment here; {usual}")
    return found


def _allowed() -> set[str]:
    """Hosts, with their ports, that whoever started the run allows."""
    return {host.strip().lower() for host in os.environ.get(HOSTS, "").split(",") if host.strip()}


def _number(name: str, usual: float, least: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else usual
    except ValueError:
        value = math.nan
    if not least <= value < 1e6:
        raise ValueError(f"{name} must be a number of at least {least:g}, not {text!r}")
    return value


def _give_up(lines: list[socket.socket], late: threading.Event) -> None:
    """Wake whoever waits for a server that sends a little now and then, for ever."""
    late.set()
    for line in lines:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)


def _png(picture: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _begin(answer: bytes) -> str:
    return repr(answer[:60].decode("utf-8", "replace")) + ("…" if len(answer) > 60 else "")


server, secure_server = Http("http"), Http("https")
