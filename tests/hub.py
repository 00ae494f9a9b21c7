"""As much of the Hugging Face hub as a download needs, on a free port of this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def serve(folder: Path, repository: str, revision: str, refusals: dict[str, tuple[int, str]]) -> Iterator[str]:
    """The address of a hub whose `repository` holds the files of `folder` at the commit `revision`.

    For each repository in `refusals` it answers with that status and error code, and for all others with 404.
    """

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            files, tree = f"/{repository}/resolve/{revision}/", f"/api/models/{repository}/tree/"
            refused = [refusal for name, refusal in refusals.items() if f"/{name}/" in path]
            if refused:
                status, code = refused[0]
                self._reply(status, b"", {"X-Error-Code": code})
            elif path == tree + revision:
                listed = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file.read_bytes())}
                    for file in sorted(folder.iterdir())
                ]
                self._reply(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
            elif path.startswith(tree):
                self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(files) and (folder / path.removeprefix(files)).is_file():
                content = (folder / path.removeprefix(files)).read_bytes()
                self._reply(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": revision})
            else:
                self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
