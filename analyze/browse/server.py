"""A loopback server with the browser's page and its answers, for the one reader who has its address.

It binds 127.0.0.1 and serves two things: the page at /, and POST /ask/NAME. It reads no path from a request
and sends no file. Every request must name a loopback host (any port: `ssh -L` changes it), and a foreign
Origin is refused: that stops pages of other sites, also those that rebind a name of theirs to 127.0.0.1.
Questions carry the token that the printed address holds, as a header, which no other site can add; it is
compared in constant time. The page itself holds no data, so it needs no token.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import re
import secrets
import select
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from saelens_lite.json_data import loads

from .answers import Answers
from .static_files import page_policy, page_text

MOST_BYTES = 1_000_000
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
_TIMEOUT_S = 30.0
logger = logging.getLogger(__name__)


class BrowseServer(ThreadingHTTPServer):
    """The server; `serve_forever` runs it. port: 0 takes a free one"""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, answers: Answers, port: int = 0, token: str | None = None) -> None:
        self.answers, self.token = answers, token or secrets.token_urlsafe(24)
        self.page = page_text("server", None, {}).encode()
        self.policy = page_policy("server") + "; frame-ancestors 'none'"
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        """What to open: with the token, once."""
        return f"http://127.0.0.1:{self.server_address[1]}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who goes away is no error of the server."""
        logger.debug("a request ended early", exc_info=True)


class _Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: BrowseServer
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    server_version, sys_version = "saelens_lite", ""

    def do_GET(self) -> None:
        with self._refusals():
            self._check_origin()
            if self.path.partition("?")[0] != "/":
                raise _Refused(404, "there is only the page, at /")
            self._send(200, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        with self._refusals():
            self._check_origin()
            name = re.fullmatch(r"/ask/(\w{1,20})", self.path)
            if name is None:
                raise _Refused(404, "questions are asked at /ask/NAME")
            given = self.headers.get("X-Saelens-Lite-Token", "")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
                raise _Refused(
                    403, "this page's token is not that of the running server: open the address it printed"
                )
            params = self._params()
            try:
                found = self.server.answers.answer(name[1], params)
            except (ValueError, TypeError, RuntimeError) as error:
                raise _Refused(400, str(error)) from error
            except Exception as error:
                logger.exception("the question %r failed", name[1])
                raise _Refused(500, f"the server failed: {type(error).__name__}, see its output") from error
            if isinstance(found, bytes):
                self._send(200, "application/octet-stream", found)
            elif isinstance(found, dict):
                self._send(200, "application/json", json.dumps(found).encode())
            else:
                self._stream(found)

    def _params(self) -> Any:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "expected a body of application/json")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,9}", length):
            raise _Refused(411, "expected Content-Length")
        if int(length) > MOST_BYTES:
            raise _Refused(413, f"expected at most {MOST_BYTES:,} bytes, got {int(length):,}")
        try:
            return loads(self.rfile.read(int(length)).decode("utf-8"))
        except ValueError as error:
            raise _Refused(400, f"expected JSON: {error}") from error

    def _check_origin(self) -> None:
        """Host first: an Origin that equals a Host of anybody's proves nothing."""
        host = self.headers.get_all("Host", [])
        if len(host) != 1 or not _HOST.fullmatch(host[0]):
            raise _Refused(403, "expected a Host of this machine: 127.0.0.1, localhost or [::1]")
        origin = self.headers.get_all("Origin", [])
        if origin and origin != [f"http://{host[0]}"]:
            raise _Refused(403, f"expected no Origin, or http://{host[0]}")

    def _stream(self, found: Iterator[dict[str, Any]]) -> None:
        """A line of JSON for each piece, as it comes; ends with the reader's connection."""
        self._head(200, "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with contextlib.closing(found):  # type: ignore[type-var]
            try:
                for piece in found:
                    self._chunk(piece)
                    if self._gone():
                        return
            except (ValueError, TypeError, RuntimeError) as error:
                self._chunk({"error": str(error)})
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, piece: dict[str, Any]) -> None:
        line = json.dumps(piece).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _gone(self) -> bool:
        """Whether the reader closed the connection, on which it asks one question."""
        ready = select.select([self.connection], [], [], 0)[0]
        try:
            return bool(ready) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except _Refused as refused:
            self.close_connection = True  # what is left of its body is not read
            self._send(refused.status, "text/plain; charset=utf-8", str(refused).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self._head(status, kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Security-Policy", self.server.policy),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: the first request's line holds the token."""


@contextlib.contextmanager
def serving(server: BrowseServer) -> Iterator[BrowseServer]:
    """The server in a thread of its own inside, closed after."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
