"""A web server on a free port of this machine, with the faults that a test asks for and a log of what was asked."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Faults:
    """What is wrong with a path. `refusals` and `cuts` are used up one a request, refusals first."""

    refusals: list[int] = field(default_factory=list)  # statuses
    retry_after: str | None = None  # said with each of them
    cuts: list[int] = field(default_factory=list)  # bytes of the body after which the connection is closed
    ranges: bool = True
    validators: bool = True  # ETag and Last-Modified
    length: int | None = 0  # added to Content-Length; None sends no length at all
    chunked: bool = False  # instead of a length
    sends: bytes | None = None  # instead of the file, from the first request on
    later: bytes | None = None  # instead of the file, from the second request on
    pause: float = 0.0  # seconds before each of ten parts of the body
    range_from: int | None = None  # says so in Content-Range, whatever it sends
    moved: str | None = None  # redirects there
    encoding: str | None = None  # says so in Content-Encoding


@dataclass
class Request:
    """What was asked and answered; `sent` bytes of the body went out, the last of them at `ended`."""

    method: str
    path: str
    headers: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    sent: int = 0
    ended: float = 0.0

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


@dataclass
class Web:
    address: str
    log: list[Request] = field(default_factory=list)


@contextmanager
def serve(files: dict[str, bytes], **faults: Faults) -> Iterator[Web]:
    """Serve `files` by their path without the leading slash; `faults` are by path too (`**{"a.txt": Faults()}`)."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).removeprefix("/")
            self.asked = Request(self.command, path, dict(self.headers.items()))
            with lock:
                web.log.append(self.asked)
                nth = sum(request.path == path for request in web.log)
            self._answer(path, faults.get(path, Faults()), nth)

        def _answer(self, path: str, fault: Faults, nth: int) -> None:
            if fault.moved is not None:
                return self._send(302, b"", {"Location": fault.moved})
            if nth <= len(fault.refusals):
                after = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
                return self._send(fault.refusals[nth - 1], b"", after)
            if path not in files:
                return self._send(404, b"", {})
            whole = files[path] if fault.sends is None else fault.sends
            if fault.later is not None and nth > 1:
                whole = fault.later
            etag = f'"{hashlib.sha1(whole).hexdigest()}"'
            headers = {"ETag": etag, "Last-Modified": formatdate(0, usegmt=True)} if fault.validators else {}
            if fault.encoding is not None:
                headers["Content-Encoding"] = fault.encoding
            asked = self.headers.get("Range")
            if "If-Range" in self.headers and self.headers["If-Range"] not in headers.values():
                asked = None
            status, body = 200, whole
            if asked and fault.ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                if int(first) >= len(whole):
                    return self._send(416, b"", {"Content-Range": f"bytes */{len(whole)}"})
                end = min(int(last), len(whole) - 1) if last else len(whole) - 1
                status, body = 206, whole[int(first) : end + 1]
                said = int(first) if fault.range_from is None else fault.range_from
                headers["Content-Range"] = f"bytes {said}-{end}/{len(whole)}"
            cuts = fault.cuts[nth - 1 - len(fault.refusals) :]
            return self._send(status, body, headers, fault, cuts[0] if cuts else None)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], fault: Faults | None = None, cut: int | None = None
        ) -> None:
            fault = fault or Faults()
            self.asked.status = status
            self.send_response(status)
            if fault.chunked:
                headers["Transfer-Encoding"] = "chunked"
            elif fault.length is not None:
                headers["Content-Length"] = str(len(body) + fault.length)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.close_connection |= bool(fault.length is None or fault.length or cut is not None)
            body = body[:cut]
            ending = b"0\r\n\r\n" if fault.chunked and cut is None else b""
            step = -(-len(body) // 10) if fault.pause else len(body)
            try:
                for start in range(0, len(body), step or 1):
                    time.sleep(fault.pause)
                    part = body[start : start + step]
                    self.asked.sent += len(part)
                    self.asked.ended = time.monotonic()
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if fault.chunked else part)
                self.wfile.write(ending)
            except OSError:  # who asked has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    web = Web(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
