"""As much of the Hugging Face hub as a download needs, on a free port of this machine."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

DATE = "2024-05-17T21:30:00.000Z"  # of the commit


@contextmanager
def serve(
    folder: Path,
    repository: str,
    revision: str,
    refusals: Mapping[str, tuple[int, str]],
    *,
    large: Sequence[str] = (),
    instead: Mapping[str, bytes] | None = None,
    cuts: dict[str, list[int]] | None = None,
    gated: Sequence[str] = (),
    stalls: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
    tokens: Sequence[str] | None = None,
    log: list[tuple[str, str, dict[str, str]]] | None = None,
    others: Mapping[tuple[str, str], Path] | None = None,
    moved: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The address of a hub whose `repository`, of models and of data, holds the files of `folder` at `revision`.

    For each repository in `refusals` it answers with that status and error code, and for all others with 404. By
    their name in the repository, files in `large` are kept as LFS keeps them, by a redirect to another store, in
    `instead` come with other bytes, in `cuts` are cut off after so many bytes, once for each, in `stalls` stop coming
    after so many while the connection stays open, and in `gated` come only with the token "hf_right". `names` are
    branches and tags with their commits. A token that is not in `tokens`, if given, is unknown to it. Method, path and
    headers of each request go to `log`. `others` are the folders of more repositories, and of more commits, by both;
    `main` of a repository is its `revision`, or its first commit in `others`. `moved` are old names with the new ones.
    """
    closed = threading.Event()
    stored = {(repository, revision): folder, **(others or {})}
    mains = dict(reversed(stored))

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if log is not None:
                log.append((self.command, path, dict(self.headers.items())))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            new = [
                path.replace(f"/{old}", f"/{name}", 1)
                for old, name in (moved or {}).items()
                if f"/{old}/" in f"{path}/"
            ]
            refused = [refusal for name, refusal in refusals.items() if f"/{name}/" in f"{path}/"]
            if token and tokens is not None and token not in tokens:
                self._reply(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            elif new:
                self._reply(307, b"", {"Location": new[0]})
            elif refused:
                status, code = refused[0]
                self._reply(status, b"", {"X-Error-Code": code})
            elif (
                match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(tree|revision)/(.+))?", path)
            ) and match[1] in mains:
                kind, asked = match[2], match[3] or mains[match[1]]
                commit = (names or {}).get(asked, asked)
                if (match[1], commit) not in stored:
                    self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
                else:
                    about = {"id": match[1], "sha": commit, "lastModified": DATE, "siblings": []}
                    self._json(self._tree(stored[match[1], commit]) if kind == "tree" else about)
            elif (
                match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([0-9a-f]+)/(.+)", path)
            ) and match.group(1, 2) in stored:
                self._file(stored[match.group(1, 2)], match[3], match[2])
            elif match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
                name = next(name for name in large if _sha256((folder / name).read_bytes()) == match[1])
                self._content(folder, name, revision)
            else:
                self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _tree(self, folder: Path) -> list[dict[str, object]]:
            listed: list[dict[str, object]] = []
            for path in sorted(folder.rglob("*"), reverse=True):  # in no order to rely on
                name = path.relative_to(folder).as_posix()
                if path.is_dir():
                    listed.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
                    continue
                content = path.read_bytes()
                entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
                if name in large:
                    entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
                listed.append(entry)
            return listed

        def _file(self, folder: Path, name: str, commit: str) -> None:
            if not (folder / name).is_file():
                self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if name in gated and self.headers.get("Authorization") != "Bearer hf_right":
                self._reply(401, b"", {"X-Error-Code": "GatedRepo"})
                return
            if name in large:
                digest = _sha256((folder / name).read_bytes())
                self._reply(302, b"", {"Location": f"/lfs/{digest}", "X-Linked-Etag": f'"{digest}"'})
            else:
                self._content(folder, name, commit)

        def _content(self, folder: Path, name: str, commit: str) -> None:
            content = (folder / name).read_bytes()
            etag = _sha256(content) if name in large else _blob(content)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
            content = (instead or {}).get(name, content)
            status = 200
            if (asked := self.headers.get("Range")) and self.headers.get("If-Range", headers["ETag"]) == headers[
                "ETag"
            ]:
                first = int(asked.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                status, content = 206, content[first:]
            coming = (cuts or {}).get(name)
            stall = (stalls or {}).get(name)
            self._reply(status, content, headers, coming.pop(0) if coming and self.command == "GET" else stall)
            if stall is not None:
                self.wfile.flush()
                closed.wait()

        def _json(self, content: object) -> None:
            self._reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _reply(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[:cut])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closed.set()
        server.shutdown()
        server.server_close()


def _blob(content: bytes) -> str:
    """The id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
