"""A loopback HTTP proxy before an S3 server that breaks requests by a seeded schedule, in a process of its own.

`with FaultProxy(endpoint) as proxy: proxy.schedule(Schedule(...))`. Requests go on with the Host header that the client
signed, so a server that checks signatures takes them.
"""

import contextlib
import dataclasses
import http.client
import json
import random
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# What goes wrong on real networks and with real servers, now and then.
FAULTS = ("drop-answer", "late-500", "500", "503", "reset", "truncate", "duplicate", "condition-409")
CONDITION_CODES = {
    "condition-409": "ConditionalRequestConflict",
    "condition-501": "NotImplemented",
    "condition-400": "InvalidArgument",
}
# What a server is: always, with `rate=1`.
CHARACTER = ("ignore-condition", "condition-501", "condition-400", "deny", "silent")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which requests go wrong and how: with that chance each, until `budget` of them have.

    `only` limits it to requests whose "METHOD path" holds these words.
    """

    kinds: tuple[str, ...] = ()
    seed: int = 0
    rate: float = 1.0
    budget: int = 1_000_000
    only: str = ""


class FaultProxy:
    """The proxy's process, `url` its endpoint; with a PEM file of key and certificate it speaks TLS."""

    def __init__(self, upstream: str, certificate: Path | None = None) -> None:
        command = [sys.executable, str(Path(__file__)), upstream, *([str(certificate)] if certificate else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._answer()

    def schedule(self, schedule: Schedule) -> list[str]:
        """Go by this schedule from now on; what the former one did, as `kind METHOD path`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(dataclasses.asdict(schedule)) + "\n")
        self.process.stdin.flush()
        done: list[str] = self._answer()
        return done

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class _Faults:
    """The schedule that is in force, and what it did."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.done = schedule, []  # type: ignore[var-annotated]
        self.random, self.lock = random.Random(schedule.seed), threading.Lock()

    def next(self, request: str, *, has_condition: bool) -> str:
        """What goes wrong with that request; an answer about a condition, only where there is one."""
        with self.lock:
            chosen = self.random.random() < self.schedule.rate and len(self.done) < self.schedule.budget
            if not self.schedule.kinds or not chosen or self.schedule.only not in request:
                return ""
            kind = self.random.choice(self.schedule.kinds)
            if "condition" in kind and not has_condition:
                return ""
            self.done.append(f"{kind} {request}")
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: str
    faults: _Faults

    def log_message(self, *_: object) -> None:
        pass

    def _carry(self) -> None:
        body = self._body()
        has_condition = self.headers.get("If-None-Match") is not None
        kind = self.faults.next(f"{self.command} {self.path}", has_condition=has_condition)
        dropped = ("connection", "transfer-encoding", "content-length", "expect")
        headers = [(name, value) for name, value in self.headers.items() if name.lower() not in dropped]
        headers.append(("Content-Length", str(len(body))))
        if kind == "silent":
            time.sleep(3600)
        elif kind == "reset":
            # Closing with nothing to linger for sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif kind in ("500", "503"):
            self._refuse(int(kind), "SlowDown" if kind == "503" else "InternalError")
        elif kind == "deny":
            self._refuse(403, "AccessDenied")
        elif kind.startswith("condition-"):
            self._refuse(int(kind[-3:]), CONDITION_CODES[kind])
        else:
            if kind == "ignore-condition":
                headers = [(name, value) for name, value in headers if name.lower() != "if-none-match"]
            answer, data = self._forward(headers, body)
            if kind == "duplicate":
                answer, data = self._forward(headers, body)
            if kind == "late-500":
                self._refuse(500, "InternalError")
            elif kind == "drop-answer":
                self.close_connection = True
            else:
                self._reply(answer, data, is_cut=kind == "truncate")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _carry  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, headers: list[tuple[str, str]], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer, answer.read()

    def _reply(self, answer: http.client.HTTPResponse, data: bytes, *, is_cut: bool) -> None:
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}", f"Content-Length: {length}"]
        skipped = ("content-length", "transfer-encoding", "connection")
        lines += [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in skipped]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        # An answer without a body is cut within its headers.
        whole = head + data
        self.wfile.write(whole[: len(head) + len(data) // 2] if is_cut and data else head[:20] if is_cut else whole)
        self.close_connection = self.close_connection or is_cut

    def _refuse(self, status: int, code: str) -> None:
        # As AWS does, the body names the key id that signed; what we say of it must not.
        signed = self.headers.get("Authorization", "")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{signed}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that goes away is part of the game."""


def _serve(upstream: str, certificate: str | None = None) -> None:
    """Carry requests until stdin ends; each line there is a new schedule."""
    _Handler.upstream, _Handler.faults = urlsplit(upstream).netloc, _Faults(Schedule())
    server = _Server(("127.0.0.1", 0), _Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _say(f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}")
    for line in sys.stdin:
        former, _Handler.faults = _Handler.faults, _Faults(Schedule(**json.loads(line)))
        _say(former.done)


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
