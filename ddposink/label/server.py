"""The page's server: this machine only, and only for who has the address.

It listens on 127.0.0.1. A random token is part of every address, so that neither another user nor a page
in the same browser can guess one; the Host header must name this machine, which stops a foreign name that
resolves to it; where a browser says which page asks (Origin, Sec-Fetch-Site), it must be this one; a
choice must carry the token in a header of its own, which no foreign page can send.
Pictures are asked for by number, so there is no path to escape by.
"""

from __future__ import annotations

import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any

from ddposink.label.session import LabelSession

MAX_BODY = 1000  # bytes; a choice has about 30
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
STATIC = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
}


class LabelServer:
    """Serves a session while it is open; ``url`` is the address with the token."""

    def __init__(self, session: LabelSession, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.finished = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def __enter__(self) -> LabelServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_until_done(self) -> None:
        """Wait until the person has ended on the page. A last choice can be undone until then."""
        while not self.finished.wait(0.5):  # in slices: Ctrl-C must get through on every system
            pass


def _handler(owner: LabelServer) -> type[BaseHTTPRequestHandler]:
    """A handler class for ``owner``; `http.server` makes an object of it for every request."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "label", ""
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            if (path := self._path()) is None:
                return
            session = owner.session
            if path in STATIC:
                name, kind = STATIC[path]
                self._send((files("ddposink.label") / name).read_bytes(), kind)
            elif path == "state":
                self._send_state()
            elif (number := _number(path)) is not None and number < len(session.pictures):
                picture = session.pictures[number]
                try:
                    self._send(picture.file.read_bytes(), picture.media_type)
                except OSError:
                    self._refuse(HTTPStatus.NOT_FOUND)
            else:
                self._refuse(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            if (path := self._path()) is None or (sent := self._body()) is None:
                return
            if path == "choice":
                number, choice = sent.get("pair"), sent.get("choice")
                if type(number) is not int or not owner.session.answer(number, str(choice)):
                    self._refuse(HTTPStatus.CONFLICT)
                    return
            elif path == "undo":
                owner.session.undo()
            elif path == "end":
                owner.finished.set()
            else:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            self._send_state()

        def _path(self) -> str | None:
            """What is asked for, below the token; None after a refusal."""
            hosts = (f"127.0.0.1:{owner.port}", f"localhost:{owner.port}")
            if self.headers.get("Host") not in hosts:
                self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
                return None
            if not self._asked_by_us(f"http://{self.headers['Host']}"):
                self._refuse(HTTPStatus.FORBIDDEN)
                return None
            token, slash, path = self.path.split("?", 1)[0].removeprefix("/").partition("/")
            if not slash or not secrets.compare_digest(token.encode(), owner.token.encode()):
                self._refuse(HTTPStatus.FORBIDDEN)
                return None
            return path

        def _asked_by_us(self, own: str) -> bool:
            """Whether no other page asks, as far as a browser says; who types the address is none."""
            site = self.headers.get("Sec-Fetch-Site", "none")
            return self.headers.get("Origin", own) == own and site in ("none", "same-origin")

        def _body(self) -> dict[str, Any] | None:
            """The JSON object that was sent with the token; None after a refusal."""
            if not secrets.compare_digest(self.headers.get("X-Token", "").encode(), owner.token.encode()):
                self._refuse(HTTPStatus.FORBIDDEN)
                return None
            try:
                length = int(self.headers.get("Content-Length", ""))
                if not 0 <= length <= MAX_BODY:
                    raise ValueError(length)
                sent = json.loads(self.rfile.read(length) or b"{}")
            except (ValueError, RecursionError):  # the latter of brackets in brackets
                sent = None
            if not isinstance(sent, dict):
                self._refuse(HTTPStatus.BAD_REQUEST)
                return None
            return sent

        def _send_state(self) -> None:
            self._send(json.dumps(owner.session.state()).encode(), "application/json")

        def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: HTTPStatus) -> None:
            self.close_connection = True  # a body may be left unread
            self._send(status.phrase.encode(), "text/plain", status)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: the address holds the token."""

    return Handler


def _number(path: str) -> int | None:
    kind, _, number = path.partition("/")
    short = number.isascii() and number.isdecimal() and len(number) < 10
    return int(number) if kind == "picture" and short else None
