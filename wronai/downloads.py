"""Brings files over the network; each rests in a folder under its digest, so that a second run fetches nothing.

What is cut off is kept and resumed, by the next attempt or by the next run. Credentials come from ~/.netrc and the
environment (HF_TOKEN for the hub); no message and no file name holds any.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

import requests
import requests.auth
import requests.exceptions
import urllib3.exceptions

from wronai import locks
from wronai.progress import Progress

CHUNK_BYTES = 1 << 20
HUB = "https://huggingface.co"
GATED = "gated; accept its terms on the hub and set HF_TOKEN to a token that may read it"
WRONG_TOKEN = "the hub does not know the token in HF_TOKEN (HTTP 401); correct it or leave it out"
COMMIT = re.compile(r"[0-9a-f]{40}")
# Up to the @ of the host, or, where a password holds an unescaped / so that no port follows its colon, to the last one.
USER = re.compile(r"(\w://)(?:[^/?#\s]*@|[^/?#\s]*:(?!\d+(?:[/?#\s]|$))\S*@)")
SECRET = re.compile(r"([?&][^=&#\s]*(?:token|key|sig|secret|passw|auth|cred)[^=&#\s]*=)[^&#\s]*", re.IGNORECASE)
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A file on the web; `key` is where params.yaml names it, `bytes` its size if that is known beforehand."""

    key: str
    url: str
    sha256: str
    bytes: int | None = None


@dataclass(frozen=True)
class Fetched:
    """A file on this machine; not `whole` if it is only the first bytes, which no digest can verify."""

    path: Path
    whole: bool


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at the commit `revision`; `key` is the section of params.yaml that names both."""

    key: str
    name: str
    revision: str
    kind: Literal["dataset", "model"] = "dataset"

    def __str__(self) -> str:
        return f"{self.key}: {self.name} at {self.revision}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; `digest` is the sha256 of a large one, and of a small one the id of its git blob."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class HubListing:
    """The files of a commit, sorted by name, and its date (none if the hub has none)."""

    files: list[HubFile]
    date: str | None


@dataclass(frozen=True)
class HubFiles:
    """Files of a hub repository by their name in it, sorted, and the date of the commit (none if the hub has none)."""

    files: list[tuple[str, Path]]
    date: str | None


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried; all but `attempts` in seconds.

    So many `attempts` in a row that bring the file no further end it. `pause` comes before the second and doubles from
    then on, or is what the server asks for, up to `longest`. `idle` is how long a server may send nothing.
    """

    attempts: int = 5
    pause: float = 1.0
    longest: float = 60.0
    connect: float = 10.0
    idle: float = 60.0


PATIENT = Patience()


def fetch(
    files: Sequence[Remote],
    folder: Path,
    say: Say,
    limit: int | None = None,
    workers: int = 4,
    patience: Patience = PATIENT,
) -> list[Fetched]:
    """Bring `files` to `folder`, each as its sha256, several at once; an error has a line for each that failed.

    With `limit` only the first `limit` bytes over all of them: whole files while they fit, then the first n bytes of
    one, as `<sha256>.first-<n>`, and none of the files after it, so that the list is shorter than `files`.
    """
    jobs = [_Job(f"{file.key}: {public(file.url)}", file.url, file.sha256, file.bytes) for file in files]
    return _bring(jobs, folder, say, limit, workers, patience)


def fetch_hub(
    key: str,
    repository: str,
    revision: str,
    pattern: str,
    shards: int | None,
    folder: Path,
    say: Say,
    limit: int | None = None,
    workers: int = 4,
    patience: Patience = PATIENT,
) -> HubFiles:
    """Bring the files of a dataset repository that match `pattern`, sorted by name, of these the first `shards`.

    `revision` is a commit. In `pattern`, * and ? stay inside one folder and ** spans any number of them. With `limit`
    only as many files, each whole, as begin before that many bytes. The list of files is kept too: a second run asks
    the hub for nothing.
    """
    source = Repository(key, repository, revision)
    listing = list_hub(source, folder, say, patience)
    matching = [file for file in listing.files if _matches(file.name.split("/"), pattern.split("/"))]
    if not matching:
        raise FileNotFoundError(f"{source}: no file matches {pattern!r}; there is {some(listing.files)}")
    chosen = matching[:shards]
    begins = itertools.accumulate((file.bytes for file in chosen), initial=0)
    if limit is not None:
        chosen = [file for file, begin in zip(chosen, begins, strict=False) if begin < limit]
    brought = fetch_files(source, chosen, folder, say, workers, patience)
    return HubFiles([(file.name, path) for file, path in zip(chosen, brought, strict=True)], listing.date)


def some(files: Sequence[HubFile]) -> str:
    """What there is instead of a file that is missing, for a message about it."""
    names = [file.name for file in files]
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "") or "none at all"


def list_hub(repository: Repository, folder: Path, say: Say, patience: Patience = PATIENT) -> HubListing:
    """The files of a commit, from `folder` if it was listed before, since a commit does not change.

    Raises ValueError if the revision is a branch, a tag or a short hash, with the commit that it stands for now.
    """
    prefix = "" if repository.kind == "dataset" else "models--"
    kept = folder / f"{prefix}{repository.name.replace('/', '--')}@{repository.revision}.json"
    if COMMIT.fullmatch(repository.revision) and kept.is_file():
        with contextlib.suppress(ValueError):
            return _listing(json.loads(kept.read_text(encoding="utf-8")))
    found = _persist(str(repository), lambda: _ask(repository, patience), None, say, patience, threading.Event())
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(".partial")
    unfinished.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    unfinished.replace(kept)
    return _listing(found)


def fetch_files(
    repository: Repository,
    files: Sequence[HubFile],
    folder: Path,
    say: Say,
    workers: int = 4,
    patience: Patience = PATIENT,
) -> list[Path]:
    """Bring `files` of a repository to `folder`, each whole and under its digest; where they lie, in their order."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, without __all__

    token = _Token(build_hf_headers().get("authorization"))
    jobs = [
        _Job(
            f"{repository}: {file.name}",
            hf_hub_url(
                repository.name,
                file.name,
                repo_type=repository.kind,
                revision=repository.revision,
                endpoint=_endpoint(),
            ),
            file.digest,
            file.bytes,
            token,
            {"GatedRepo": GATED, "401": WRONG_TOKEN},
        )
        for file in files
    ]
    return [file.path for file in _bring(jobs, folder, say, None, workers, patience)]


def check_room(label: str, files: Sequence[HubFile], folder: Path) -> None:
    """OSError if the disk of `folder` does not hold what is still to come of `files`."""
    lacking = {file.digest: file for file in files if not (folder / file.digest).is_file()}.values()
    _check_room(label, sum(max(file.bytes - _size(folder / f"{file.digest}.partial"), 0) for file in lacking), folder)


def public(text: str) -> str:
    """A URL, or a text with URLs in it, without the user, the password and the tokens in their queries."""
    return SECRET.sub(r"\1…", USER.sub(r"\1", text))


@dataclass(frozen=True, eq=False)
class _Job:
    label: str  # what every message about it begins with
    url: str
    digest: str  # 64 digits of a sha256, or 40 of the sha1 of a git blob; also the name of the file
    bytes: int | None
    auth: requests.auth.AuthBase | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)  # what to say of an X-Error-Code, or of a status


class _Token(requests.auth.AuthBase):
    """The hub's token; as `auth` it goes before ~/.netrc, and no redirect to another host takes it along."""

    def __init__(self, authorization: str | None) -> None:
        self._authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._authorization:
            request.headers["Authorization"] = self._authorization
        return request


class _Broken(Exception):
    """What may go better the next time; `pause` is the server's wish, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Stopped(Exception):
    """The run was interrupted."""


class _Ledger:
    """What is still to come over all files: for the line of progress, and for whether the disk holds it."""

    def __init__(self, folder: Path, files: int) -> None:
        self._folder, self._files = folder, files
        self._left: dict[str, int | None] = {}
        self._finished = self._moved = 0
        self._progress = Progress("download", None, "bytes")
        self._lock = threading.Lock()

    def expect(self, lefts: Mapping[_Job, int | None]) -> None:
        """Count on so many more bytes of these files; OSError if the disk does not hold those of all."""
        if not lefts:
            return
        with self._lock:
            self._left |= {job.digest: left for job, left in lefts.items()}
            known = sum(left or 0 for left in self._left.values())
            self._progress.expect(None if None in self._left.values() else known)
        _check_room(next(iter(lefts)).label, known, self._folder)

    def move(self, job: _Job, count: int) -> None:
        with self._lock:
            left = self._left[job.digest]
            self._left[job.digest] = None if left is None else left - count
            self._moved += count
            self._progress.add(count, self._note())

    def settle(self, job: _Job) -> None:
        with self._lock:
            self._left.pop(job.digest, None)
            self._finished += 1

    def close(self) -> None:
        if self._moved:
            self._progress.close(self._note())

    def _note(self) -> str:
        return f"{self._finished} of {self._files} files"


def _check_room(label: str, coming: int, folder: Path) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if coming > free:
        raise OSError(f"{label}: {coming:,} bytes are still to come, and {folder} has {free:,} free")


def _bring(
    jobs: Sequence[_Job], folder: Path, say: Say, limit: int | None, workers: int, patience: Patience
) -> list[Fetched]:
    unique = list({job.digest: job for job in reversed(jobs)}.values())[::-1]
    folder.mkdir(parents=True, exist_ok=True)
    # Other runs keep away from the partial files; they wait, and then find what this one brought.
    with locks.alone(folder / ".lock", f"{folder}: another run is downloading to it", say):
        ledger = _Ledger(folder, len(unique))
        courier = _Courier(folder, say, ledger, patience)
        try:
            brought = courier.part(unique, limit) if limit is not None else courier.all(unique, workers)
        finally:
            ledger.close()
    return [brought[job.digest] for job in jobs if job.digest in brought]


class _Courier:
    def __init__(self, folder: Path, say: Say, ledger: _Ledger, patience: Patience) -> None:
        self._folder, self._say, self._ledger, self._patience = folder, say, ledger, patience
        self._stop = threading.Event()

    def all(self, jobs: Sequence[_Job], workers: int) -> dict[str, Fetched]:
        """Every job, `workers` at once; those that fail do not keep the others from being finished."""
        lacking = [job for job in jobs if not (self._folder / job.digest).is_file()]
        self._ledger.expect({job: job.bytes and max(job.bytes - _size(self._partial(job)), 0) for job in lacking})
        todo: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[_Job, Fetched | BaseException]] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    job = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((job, self._one(job, None)))
                except BaseException as error:  # or the thread would die, and who waits for it wait for ever
                    done.put((job, error))

        # Daemons, since an interrupted program must not wait for a silent server.
        for _ in range(min(workers, len(jobs))):
            threading.Thread(target=work, daemon=True).start()
        outcomes: dict[str, Fetched | BaseException] = {}
        try:
            for _ in jobs:
                job, outcome = done.get()
                outcomes[job.digest] = outcome
                if isinstance(outcome, BaseException) and not isinstance(outcome, OSError | ValueError):
                    raise outcome
        finally:
            self._stop.set()
        failures = [error for job in jobs if isinstance(error := outcomes[job.digest], OSError | ValueError)]
        if failures:
            kind = ValueError if all(isinstance(error, ValueError) for error in failures) else OSError
            raise kind("\n".join(str(error) for error in failures))
        return {digest: outcome for digest, outcome in outcomes.items() if isinstance(outcome, Fetched)}

    def part(self, jobs: Sequence[_Job], limit: int) -> dict[str, Fetched]:
        """The jobs in order up to `limit` bytes; the size of one decides on the next, so one at a time."""
        brought: dict[str, Fetched] = {}
        for job in jobs:
            if limit <= 0:
                break
            brought[job.digest] = fetched = self._one(job, limit)
            limit = limit - _size(fetched.path) if fetched.whole else 0
        return brought

    def _one(self, job: _Job, cap: int | None) -> Fetched:
        try:
            return self._fetched(job, cap)
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(f"{job.label}: {error}") from error  # the disk's, which know nothing of the job
        finally:
            self._ledger.settle(job)

    def _fetched(self, job: _Job, cap: int | None) -> Fetched:
        """The file of a job, or with `cap` its first bytes if it is longer."""
        if cap is not None and job.bytes is not None and job.bytes <= cap:
            cap = None
        target, partial, prefix = (
            self._folder / job.digest,
            self._partial(job),
            self._folder / f"{job.digest}.first-{cap}",
        )
        if target.is_file():
            if _digest(target, job.digest) == job.digest:
                if cap is None or _size(target) <= cap:
                    return Fetched(target, whole=True)
                return _start(target, cap, prefix)
            self._say(f"{job.label}: damaged on the disk; fetched again")
            target.unlink()
        if cap is not None and _size(prefix) == cap:
            return Fetched(prefix, whole=False)
        for last in (False, True):
            transfer = _Transfer(job, partial, cap, self._ledger, self._patience, self._stop)
            with requests.Session() as session:
                attempt = functools.partial(transfer.attempt, session)
                _persist(job.label, attempt, partial, self._say, self._patience, self._stop)
            if cap is not None and max(transfer.total or 0, _size(partial)) > cap:
                return _start(partial, cap, prefix)
            found = _digest(partial, job.digest)
            if found == job.digest:
                partial.replace(target)
                transfer.validator.unlink(missing_ok=True)
                return Fetched(target, whole=True)
            if cap is not None and transfer.total is None and _size(partial) == cap:
                return _start(partial, cap, prefix)
            partial.unlink()
            transfer.validator.unlink(missing_ok=True)
            if last or not transfer.resumed:
                break
            self._say(f"{job.label}: the resumed bytes do not fit together; fetched again")
        raise ValueError(f"{job.label}: has the {_kind(job.digest)} {found}, expected {job.digest}")

    def _partial(self, job: _Job) -> Path:
        return self._folder / f"{job.digest}.partial"


class _Transfer:
    """Attempts at one file; after each, what came is in `partial`, and where it came from in `validator`."""

    def __init__(
        self, job: _Job, partial: Path, cap: int | None, ledger: _Ledger, patience: Patience, stop: threading.Event
    ) -> None:
        self._job, self._partial, self._cap = job, partial, cap
        self._ledger, self._patience, self._stop = ledger, patience, stop
        self._ranges = True
        self.validator = partial.with_name(f"{partial.name}.from")
        self.total = job.bytes
        self.resumed = False

    def attempt(self, session: requests.Session) -> None:
        """Bring `partial` to its end, or to `cap` bytes; _Broken if that fell short."""
        if self.total is not None and _size(self._partial) > self.total:
            self._partial.unlink()
        have = _size(self._partial) if self._ranges else 0
        if have and have >= min(self._known(), default=have + 1):
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "wronai"}
        if have or (self._cap is not None and self._ranges):
            headers["Range"] = f"bytes={have}-{'' if self._cap is None else self._cap - 1}"
        if have and self.validator.is_file():
            headers["If-Range"] = self.validator.read_text(encoding="utf-8")
        timeout = (self._patience.connect, self._patience.idle)
        with _network(self._job, self._patience):
            response = session.get(self._job.url, headers=headers, auth=self._job.auth, stream=True, timeout=timeout)
        with response:
            response.raw.enforce_content_length = False  # told below, in bytes of the file
            if response.status_code == 416 and "Range" in headers:
                if have and _digest(self._partial, self._job.digest) == self._job.digest:
                    return
                self._partial.unlink(missing_ok=True)
                self._ranges = have > 0
                raise _Broken("the server has no such range", pause=0)
            self._refuse(response)
            have = self._begin(response, have)
            end = min(self._known(), default=None)
            self._ledger.expect({self._job: None if end is None else end - have})
            self._receive(response, have, end)

    def _known(self) -> list[int]:
        """Sizes that end the transfer, the cap among them."""
        return [size for size in (self.total, self._cap) if size is not None]

    def _refuse(self, response: requests.Response) -> None:
        status = response.status_code
        reason = f"HTTP {status} {response.reason}".rstrip()
        if status in (408, 429) or status >= 500:
            raise _Broken(reason, _retry_after(response.headers.get("Retry-After")))
        for known in (response.headers.get("X-Error-Code", ""), str(status)):
            if known in self._job.refusals:
                raise ValueError(f"{self._job.label}: {self._job.refusals[known]}")
        if status not in (200, 206):
            raise OSError(f"{self._job.label}: {reason}")

    def _begin(self, response: requests.Response, have: int) -> int:
        """How many bytes of `partial` the answer continues; notes the size of the whole."""
        total: str | None
        self.total = self._job.bytes
        if response.status_code == 206:
            found = response.headers.get("Content-Range", "")
            match = RANGE.fullmatch(found)
            if match is None or int(match[1]) != have:
                self._ranges = False
                raise _Broken(f"asked for the bytes from {have:,} on, the server sent {found or 'no range'!r}", pause=0)
            self.resumed |= have > 0
            total = match[2]
        else:
            have = 0
            total = response.headers.get("Content-Length")
        if total is not None and total.isdecimal():
            if self._job.bytes not in (None, int(total)):
                raise ValueError(
                    f"{self._job.label}: the server has {int(total):,} bytes, expected {self._job.bytes:,}"
                )
            self.total = int(total)
        return have

    def _receive(self, response: requests.Response, have: int, end: int | None) -> None:
        with self._partial.open("ab" if have else "wb") as out:
            if not have:
                # After the truncation, so that the validator is never that of other bytes.
                etag = response.headers.get("ETag", "W/")
                validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
                self.validator.write_text(validator, encoding="utf-8") if validator else self.validator.unlink(True)
            while end is None or have < end:
                with _network(self._job, self._patience):
                    chunk = response.raw.read1(CHUNK_BYTES, decode_content=False)
                if self._stop.is_set():
                    raise _Stopped
                if not chunk:
                    break
                chunk = chunk if end is None else chunk[: end - have]
                out.write(chunk)
                out.flush()
                have += len(chunk)
                self._ledger.move(self._job, len(chunk))
        if end is not None and have < end:
            raise _Broken(f"the connection closed after {have:,} of {end:,} bytes")


def _persist(
    label: str, attempt: Callable[[], T], partial: Path | None, say: Say, patience: Patience, stop: threading.Event
) -> T:
    """What `attempt` gives; when it is broken, again after a pause, as long as `partial` grows beyond what it was."""
    best, failures = _size(partial) if partial else 0, 0
    while True:
        try:
            return attempt()
        except _Broken as error:
            have = _size(partial) if partial else 0
            failures = 1 if have > best else failures + 1
            best = max(best, have)
            said = f"{label}: {error} (attempt {failures} of {patience.attempts})"
            if failures >= patience.attempts:
                raise OSError(said) from None
            wished = patience.pause * 2.0 ** (failures - 1) if error.pause is None else error.pause
            pause = min(wished, patience.longest)
        say(f"{said}; again in {pause:.0f} s")
        if stop.wait(pause):
            raise _Stopped


@contextlib.contextmanager
def _network(job: _Job, patience: Patience) -> Iterator[None]:
    """Tells what the network does, which is tried again, from a URL that is none and from what the disk does."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
        raise ValueError(f"{job.label}: no address that can be fetched; expected http:// or https://") from None
    except requests.TooManyRedirects as error:
        raise OSError(f"{job.label}: {_reason(error)}") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _Broken(f"no answer for {patience.idle:g} s") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Broken(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """The innermost text of an error, on one line; the outer ones repeat the URL."""
    while isinstance(inner := getattr(error, "reason", None), BaseException) or (
        inner := next((value for value in error.args if isinstance(value, BaseException)), None)
    ):
        error = inner
    return public(" ".join(str(error).split()) or type(error).__name__)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number of them or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, like: str) -> str:
    """The digest of a file, of the kind that `like` is."""

    def start() -> Any:
        if len(like) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % _size(path), usedforsecurity=False)

    with path.open("rb") as file:
        return hashlib.file_digest(file, start).hexdigest()


def _kind(digest: str) -> str:
    return "sha256" if len(digest) == 64 else "git blob id"


def _start(path: Path, count: int, prefix: Path) -> Fetched:
    """The first `count` bytes of a file as `prefix`; a partial file stays where it is, for a whole run to resume."""
    unfinished = prefix.with_name(f"{prefix.name}.partial")
    with path.open("rb") as source, unfinished.open("wb") as out:
        while count and (chunk := source.read(min(count, CHUNK_BYTES))):
            out.write(chunk)
            count -= len(chunk)
    unfinished.replace(prefix)
    return Fetched(prefix, whole=False)


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, both in parts."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[i:], pattern[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _listing(kept: Mapping[str, Any]) -> HubListing:
    return HubListing([HubFile(**entry) for entry in kept["files"]], kept["date"])


def _ask(repository: Repository, patience: Patience) -> dict[str, Any]:
    """`date` of a commit and its `files`, as they are kept on the disk."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.hf_api import RepoFile

    name, revision, kind = repository.name, repository.revision, repository.kind
    api = HfApi(endpoint=_endpoint())
    try:
        info = api.repo_info(name, revision=revision, repo_type=kind, timeout=patience.idle)
        if not COMMIT.fullmatch(revision):
            raise ValueError(
                f"{repository.key}.revision: {revision!r} is a branch, a tag or a short hash of {name}, which may come "
                f"to mean another commit; pin the one that it is now: revision: {info.sha}"
            )
        # Without a time limit of its own, and it does not take one.
        tree = _within(patience.idle, api.list_repo_tree(name, recursive=True, revision=revision, repo_type=kind))
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
    except GatedRepoError:
        raise ValueError(f"{repository}: {GATED}") from None
    except RevisionNotFoundError:
        try:
            main = f"; main is at {api.repo_info(name, repo_type=kind, timeout=patience.idle).sha}"
        except httpx2.HTTPError:
            main = ""
        what = "commit" if COMMIT.fullmatch(revision) else "revision"
        raise ValueError(f"{repository}: no such {what} in the repository{main}") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{repository}: no such {kind} repository, or a private one that HF_TOKEN does not open"
        ) from None
    except OfflineModeIsEnabled:
        raise OSError(f"{repository}: not on this machine yet, and HF_HUB_OFFLINE forbids to ask the hub") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError(f"{repository}: {WRONG_TOKEN}") from None
        if status in (408, 429) or status >= 500:
            raise _Broken(f"HTTP {status}", _retry_after(error.response.headers.get("Retry-After"))) from None
        raise OSError(f"{repository}: HTTP {status} {error.server_message or ''}".rstrip()) from None
    except (httpx2.HTTPError, TimeoutError) as error:
        raise _Broken(f"{public(_endpoint())}: {_reason(error)}") from None
    date = info.last_modified and info.last_modified.date().isoformat()
    entries = [
        {"name": file.path, "bytes": file.size, "digest": file.lfs.sha256 if file.lfs else file.blob_id}
        for file in files
    ]
    return {"date": date, "files": sorted(entries, key=lambda entry: str(entry["name"]))}


def _within(seconds: float, values: Iterable[T]) -> Iterator[T]:
    """The values; TimeoutError if the next takes longer than `seconds`."""
    came: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()
    end = StopIteration()

    def work() -> None:
        try:
            for value in values:
                came.put(value)
            came.put(end)
        except BaseException as error:
            came.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            value = came.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer for {seconds:g} s") from None
        if value is end:
            return
        if isinstance(value, BaseException):
            raise value
        yield value
