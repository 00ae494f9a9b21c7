"""Files come over the network once, whole and as promised, whatever the network does."""

import gzip
import hashlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import hub
import pytest
from web import Faults, Web, serve

from wronai import downloads
from wronai.downloads import Fetched, Patience, Remote

TEXT = "".join(f"Zażółć gęślą jaźń po raz {i}.\n" for i in range(4000)).encode()
POEM = "Nad rzeką stał młyn,\na młyn mełł len.\n".encode()
QUICK = Patience(attempts=3, pause=0.001, longest=0.01, connect=0.5, idle=0.5)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no hub and no credentials but what a test sets."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remote(web: Web, name: str, content: bytes, size: int | None = None) -> Remote:
    return Remote(f"data.sources[1].urls[{name}]", f"{web.address}/{name}", sha256(content), size)


def fetch(files: list[Remote], folder: Path, said: list[str], limit: int | None = None) -> list[Fetched]:
    return downloads.fetch(files, folder, said.append, limit, patience=QUICK)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_file_rests_under_its_sha256_and_a_second_run_asks_for_nothing(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT, "b.txt": POEM}) as web:
        files = [remote(web, "a.txt", TEXT, len(TEXT)), remote(web, "b.txt", POEM)]
        brought = fetch(files, folder, said)
        assert brought == [Fetched(folder / sha256(TEXT), True), Fetched(folder / sha256(POEM), True)]
        assert brought[0].path.read_bytes() == TEXT
        assert fetch(files, folder, said) == brought
        assert sorted(request.path for request in web.log) == ["a.txt", "b.txt"]
    assert left_in(folder) == sorted([sha256(TEXT), sha256(POEM)])


def test_no_compression_is_asked_for_and_none_is_undone(folder: Path, said: list[str]) -> None:
    packed = gzip.compress(TEXT)
    with serve({"a.txt.gz": packed}, **{"a.txt.gz": Faults(encoding="gzip")}) as web:
        assert fetch([remote(web, "a.txt.gz", packed)], folder, said)[0].path.read_bytes() == packed
        assert web.log[0].headers["Accept-Encoding"] == "identity"


def test_an_empty_file_is_a_file(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": b"", "b.txt": POEM}) as web:
        files = [remote(web, "a.txt", b""), remote(web, "b.txt", POEM)]
        assert [_.whole for _ in fetch(files, folder, said)] == [True, True]
        assert [_.whole for _ in fetch(files, folder / "pilot", said, limit=10)] == [True, False]


def test_two_files_of_one_content_are_fetched_once(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": POEM, "b.txt": POEM}) as web:
        brought = fetch([remote(web, "a.txt", POEM), remote(web, "b.txt", POEM)], folder, said)
        assert brought == [Fetched(folder / sha256(POEM), True)] * 2
        assert [request.path for request in web.log] == ["a.txt"]


def test_two_files_come_at_the_same_time(folder: Path, said: list[str]) -> None:
    slow = Faults(pause=0.01)
    with serve({"a.txt": TEXT, "b.txt": TEXT + POEM}, **{"a.txt": slow, "b.txt": slow}) as web:
        fetch([remote(web, "a.txt", TEXT), remote(web, "b.txt", TEXT + POEM)], folder, said)
        one, other = web.log
    assert one.began < other.ended
    assert other.began < one.ended


@pytest.mark.parametrize("size", [None, len(TEXT)])
def test_after_a_cut_only_the_rest_is_asked_for(folder: Path, said: list[str], size: int | None) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000, 20_000])}) as web:
        fetch([remote(web, "a.txt", TEXT, size)], folder, said)
        assert [request.range for request in web.log] == [None, "bytes=50000-", "bytes=70000-"]
        assert [request.status for request in web.log] == [200, 206, 206]
        assert web.log[2].sent == len(TEXT) - 70_000
    assert left_in(folder) == [sha256(TEXT)]
    assert len(said) == 2
    assert f"the connection closed after 70,000 of {len(TEXT):,} bytes" in said[1]


def test_a_cut_without_a_length_is_seen_by_the_size(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000], length=None)}) as web:
        fetch([remote(web, "a.txt", TEXT, len(TEXT))], folder, said)
        assert [request.range for request in web.log] == [None, "bytes=50000-"]
    assert said == [
        f"data.sources[1].urls[a.txt]: {web.address}/a.txt: the connection closed after 50,000 of {len(TEXT):,} bytes "
        "(attempt 1 of 3); again in 0 s"
    ]


def test_a_cut_in_a_chunked_body_is_resumed(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000], chunked=True)}) as web:
        assert fetch([remote(web, "a.txt", TEXT)], folder, said)[0].path.read_bytes() == TEXT
        assert [request.range for request in web.log] == [None, "bytes=50000-"]


def test_the_next_run_goes_on_where_one_gave_up(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000, 0, 0])}) as web:
        with pytest.raises(OSError, match=r"\(attempt 3 of 3\)$"):
            fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert left_in(folder) == [f"{sha256(TEXT)}.partial", f"{sha256(TEXT)}.partial.from"]
        fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert web.log[-1].range == "bytes=50000-"
        assert web.log[-1].headers["If-Range"] == f'"{hashlib.sha1(TEXT).hexdigest()}"'
    assert left_in(folder) == [sha256(TEXT)]


def test_attempts_that_bring_bytes_do_not_count(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[1000] * 8)}) as web:
        fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert len(web.log) == 9


def test_attempts_that_bring_the_same_bytes_again_do_count(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[1000] * 99, ranges=False)}) as web:
        with pytest.raises(OSError, match=r"attempt 3 of 3"):
            fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert len(web.log) == 3


def test_a_server_without_ranges_is_read_from_the_beginning(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000], ranges=False)}) as web:
        assert fetch([remote(web, "a.txt", TEXT)], folder, said)[0].path.read_bytes() == TEXT
        assert [request.status for request in web.log] == [200, 200]


def test_a_file_that_changed_on_the_server_is_not_spliced(folder: Path, said: list[str]) -> None:
    new = TEXT.replace(b"raz", b"rok")
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000], later=new)}) as web:
        assert fetch([remote(web, "a.txt", new)], folder, said)[0].path.read_bytes() == new
        assert [(request.range, request.status) for request in web.log] == [(None, 200), ("bytes=50000-", 200)]


def test_a_splice_that_the_server_could_not_prevent_is_fetched_again(folder: Path, said: list[str]) -> None:
    new = TEXT.replace(b"raz", b"rok")
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000], later=new, validators=False)}) as web:
        assert fetch([remote(web, "a.txt", new)], folder, said)[0].path.read_bytes() == new
        assert [request.range for request in web.log] == [None, "bytes=50000-", None]
    assert said[-1].endswith("the resumed bytes do not fit together; fetched again")


def test_a_range_that_was_not_asked_for_is_not_appended(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000], range_from=7)}) as web:
        assert fetch([remote(web, "a.txt", TEXT)], folder, said)[0].path.read_bytes() == TEXT
        assert [request.range for request in web.log] == [None, "bytes=50000-", None]
    assert "asked for the bytes from 50,000 on, the server sent 'bytes 7-" in said[1]


def test_a_partial_file_that_is_already_whole_is_taken(folder: Path, said: list[str]) -> None:
    folder.mkdir()
    (folder / f"{sha256(TEXT)}.partial").write_bytes(TEXT)
    with serve({"a.txt": TEXT}) as web:
        fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert [request.status for request in web.log] == [416]
    assert left_in(folder) == [sha256(TEXT)]


@pytest.mark.parametrize("size", [None, len(POEM)])
def test_a_partial_file_that_is_too_long_is_begun_again(folder: Path, said: list[str], size: int | None) -> None:
    folder.mkdir()
    (folder / f"{sha256(POEM)}.partial").write_bytes(TEXT)
    with serve({"a.txt": POEM}) as web:
        assert fetch([remote(web, "a.txt", POEM, size)], folder, said)[0].path.read_bytes() == POEM
        assert [request.status for request in web.log] == ([200] if size else [416, 200])


def test_a_damaged_file_is_fetched_again(folder: Path, said: list[str]) -> None:
    folder.mkdir()
    (folder / sha256(POEM)).write_bytes(b"co innego")
    with serve({"a.txt": POEM}) as web:
        assert fetch([remote(web, "a.txt", POEM)], folder, said)[0].path.read_bytes() == POEM
    assert said == [f"data.sources[1].urls[a.txt]: {web.address}/a.txt: damaged on the disk; fetched again"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_asks_for_patience_gets_it(folder: Path, said: list[str], status: int) -> None:
    with serve({"a.txt": POEM}, **{"a.txt": Faults(refusals=[status, status], retry_after="0")}) as web:
        assert fetch([remote(web, "a.txt", POEM)], folder, said)[0].whole
        assert [request.status for request in web.log] == [status, status, 200]
    assert f"HTTP {status}" in said[0]


def test_the_pause_is_what_the_server_asks_for_up_to_a_cap(folder: Path, said: list[str]) -> None:
    patience = Patience(attempts=2, pause=60, longest=0.3)
    with serve({"a.txt": POEM}, **{"a.txt": Faults(refusals=[503], retry_after="3600")}) as web:
        downloads.fetch([remote(web, "a.txt", POEM)], folder, said.append, patience=patience)
        assert 0.3 <= web.log[1].began - web.log[0].began < 5


def test_pauses_double(said: list[str]) -> None:
    asked: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            asked.append(timeout or 0.0)
            return False

    def attempt() -> None:
        raise downloads._Broken("zerwane")

    with pytest.raises(OSError, match=r"^data: zerwane \(attempt 5 of 5\)$"):
        downloads._persist("data", attempt, None, said.append, Patience(longest=5.0), Stop())
    assert asked == [1.0, 2.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("wkrótce", None),
        ("Wed, 21 Oct 2015 07:28:00 -0000", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert downloads._retry_after(value) == seconds


def test_a_file_that_is_not_there_is_asked_for_once(folder: Path, said: list[str]) -> None:
    with serve({}) as web:
        with pytest.raises(OSError) as raised:
            fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert len(web.log) == 1
    assert str(raised.value) == f"data.sources[1].urls[a.txt]: {web.address}/a.txt: HTTP 404 Not Found"


def test_a_server_that_says_nothing_is_given_up(folder: Path, said: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        web = Web(f"http://127.0.0.1:{silent.getsockname()[1]}")
        patience = Patience(attempts=2, pause=0.001, idle=0.1)
        with pytest.raises(OSError, match=r"no answer for 0\.1 s \(attempt 2 of 2\)$"):
            downloads.fetch([remote(web, "a.txt", TEXT)], folder, said.append, patience=patience)


def test_a_body_that_stalls_is_given_up(folder: Path, said: list[str]) -> None:
    patience = Patience(attempts=2, pause=0.001, idle=0.1)
    stalled = pytest.raises(OSError, match=r"no answer for 0\.1 s \(attempt 2 of 2\)$")
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(pause=0.5)}) as web, stalled:
        downloads.fetch([remote(web, "a.txt", TEXT)], folder, said.append, patience=patience)


def test_nobody_there_is_one_line(folder: Path, said: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(OSError, match=r"Connection refused \(attempt 3 of 3\)$"):
        fetch([remote(Web(f"http://127.0.0.1:{port}"), "a.txt", TEXT)], folder, said)


def test_wrong_bytes_say_what_was_found_and_leave_nothing(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(sends=POEM)}) as web:
        with pytest.raises(ValueError, match=f"has the sha256 {sha256(POEM)}, expected {sha256(TEXT)}$"):
            fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert len(web.log) == 1
    assert left_in(folder) == []


def test_another_size_is_seen_before_the_body(folder: Path, said: list[str]) -> None:
    with (
        serve({"a.txt": TEXT}) as web,
        pytest.raises(ValueError, match=f"the server has {len(TEXT):,} bytes, expected 7$"),
    ):
        fetch([remote(web, "a.txt", TEXT, 7)], folder, said)
    assert left_in(folder) == []


def test_more_bytes_than_promised_are_not_read_to_their_end(folder: Path, said: list[str]) -> None:
    with (
        serve({"a.txt": TEXT}, **{"a.txt": Faults(length=None)}) as web,
        pytest.raises(ValueError, match="has the sha256"),
    ):
        fetch([remote(web, "a.txt", TEXT, 7)], folder, said)
    assert left_in(folder) == []


def test_a_content_length_that_promises_too_much_does_not_lose_the_file(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(length=5)}) as web:
        assert fetch([remote(web, "a.txt", TEXT)], folder, said)[0].path.read_bytes() == TEXT
        assert [request.status for request in web.log] == [200, 416]


def test_what_does_not_fit_on_the_disk_is_not_begun(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT, "b.txt": POEM}) as web:
        files = [remote(web, "a.txt", TEXT, 10**18), remote(web, "b.txt", POEM)]
        with pytest.raises(
            OSError, match=rf"1,000,000,000,000,000,000 bytes are still to come, and {folder} has [\d,]+ free"
        ):
            fetch(files, folder, said)
        assert web.log == []


def test_a_length_that_does_not_fit_on_the_disk_is_not_begun(folder: Path, said: list[str]) -> None:
    with (
        serve({"a.txt": TEXT}, **{"a.txt": Faults(length=10**18)}) as web,
        pytest.raises(OSError, match="still to come"),
    ):
        fetch([remote(web, "a.txt", TEXT)], folder, said)
    assert left_in(folder) == []


def test_every_failure_has_its_line_and_the_others_are_kept(folder: Path, said: list[str]) -> None:
    faults = {"b.txt": Faults(sends=b"nie to"), "d.txt": Faults(cuts=[1000] * 99, ranges=False)}
    with serve({"b.txt": TEXT, "c.txt": POEM, "d.txt": TEXT + POEM}, **faults) as web:
        files = [remote(web, "a.txt", b"a"), remote(web, "b.txt", TEXT), remote(web, "c.txt", POEM)]
        with pytest.raises(OSError) as raised:
            fetch([*files, remote(web, "d.txt", TEXT + POEM)], folder, said)
    lines = str(raised.value).split("\n")
    assert [line[:28] for line in lines] == [f"data.sources[1].urls[{name}.txt]: "[:28] for name in "abd"]
    assert set(left_in(folder)) >= {sha256(POEM), f"{sha256(TEXT + POEM)}.partial"}


def test_what_the_disk_refuses_names_the_key_and_is_not_tried_again(folder: Path, said: list[str]) -> None:
    (folder / f"{sha256(TEXT)}.partial").mkdir(parents=True)
    with serve({"a.txt": TEXT}) as web:
        with pytest.raises(OSError, match=r"^data\.sources\[1\]\.urls\[a\.txt\]: .* Is a directory"):
            fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert len(web.log) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a.txt", "a.txt", "http://", "http://jan:tajne@127.0.0.1:x/a.txt"])
def test_what_is_no_address_says_so(folder: Path, said: list[str], url: str) -> None:
    with pytest.raises(ValueError, match=r"^data: .*no address that can be fetched") as raised:
        fetch([Remote("data", url, sha256(TEXT), None)], folder, said)
    assert "tajne" not in str(raised.value)


def test_redirects_are_followed(folder: Path, said: list[str]) -> None:
    with serve({"b.txt": POEM}, **{"a.txt": Faults(moved="/b.txt")}) as web:
        assert fetch([remote(web, "a.txt", POEM)], folder, said)[0].whole


def test_redirects_in_a_circle_end(folder: Path, said: list[str]) -> None:
    with serve({}, **{"a.txt": Faults(moved="/a.txt")}) as web, pytest.raises(OSError, match=r"^data.*redirects"):
        fetch([remote(web, "a.txt", POEM)], folder, said)
    assert said == []


# The pilot run


def test_a_pilot_takes_whole_files_while_they_fit_and_the_start_of_the_next(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": POEM, "b.txt": TEXT, "c.txt": b"c"}) as web:
        files = [remote(web, "a.txt", POEM), remote(web, "b.txt", TEXT), remote(web, "c.txt", b"c")]
        rest = 1000 - len(POEM)
        brought = fetch(files, folder, said, limit=1000)
        assert brought == [
            Fetched(folder / sha256(POEM), True),
            Fetched(folder / f"{sha256(TEXT)}.first-{rest}", False),
        ]
        assert brought[1].path.read_bytes() == TEXT[:rest]
        assert web.log[-1].range == f"bytes=0-{rest - 1}"
        assert sum(request.sent for request in web.log) == 1000
        made = brought[1].path.stat()
        assert fetch(files, folder, said, limit=1000) == brought
        assert brought[1].path.stat().st_ino == made.st_ino
        assert len(web.log) == 2


@pytest.mark.parametrize(("size", "asked"), [(None, f"bytes=0-{len(POEM) - 1}"), (len(POEM), None)])
def test_a_pilot_may_end_with_a_file(folder: Path, said: list[str], size: int | None, asked: str | None) -> None:
    with serve({"a.txt": POEM, "b.txt": TEXT}) as web:
        files = [remote(web, "a.txt", POEM, size), remote(web, "b.txt", TEXT)]
        assert fetch(files, folder, said, limit=len(POEM)) == [Fetched(folder / sha256(POEM), True)]
        assert [request.range for request in web.log] == [asked]


@pytest.mark.parametrize("size", [None, len(TEXT)])
def test_a_pilot_cuts_off_a_server_without_ranges(folder: Path, said: list[str], size: int | None) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(ranges=False, length=None)}) as web:
        brought = fetch([remote(web, "a.txt", TEXT, size)], folder, said, limit=1000)
    assert [(file.whole, file.path.read_bytes()) for file in brought] == [(False, TEXT[:1000])]
    assert (folder / f"{sha256(TEXT)}.partial").stat().st_size == 1000


def test_a_pilot_that_knows_no_size_can_tell_a_whole_file(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": POEM}, **{"a.txt": Faults(ranges=False, length=None)}) as web:
        assert fetch([remote(web, "a.txt", POEM)], folder, said, limit=len(POEM))[0].whole


def test_a_whole_run_goes_on_where_a_pilot_ended(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}) as web:
        fetch([remote(web, "a.txt", TEXT)], folder, said, limit=1000)
        assert fetch([remote(web, "a.txt", TEXT)], folder, said)[0].path.read_bytes() == TEXT
        assert web.log[-1].range == "bytes=1000-"


@pytest.mark.parametrize("size", [None, len(TEXT)])
def test_a_smaller_pilot_needs_no_request(folder: Path, said: list[str], size: int | None) -> None:
    with serve({"a.txt": TEXT}) as web:
        fetch([remote(web, "a.txt", TEXT, size)], folder, said, limit=1000)
        brought = fetch([remote(web, "a.txt", TEXT, size)], folder, said, limit=500)
        assert [(file.whole, file.path.read_bytes()) for file in brought] == [(False, TEXT[:500])]
        assert len(web.log) == 1


def test_a_pilot_of_what_is_here_is_the_same_as_of_what_is_not(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}) as web:
        fetch([remote(web, "a.txt", TEXT)], folder, said)
        brought = fetch([remote(web, "a.txt", TEXT)], folder, said, limit=1000)
        assert brought == [Fetched(folder / f"{sha256(TEXT)}.first-1000", False)]
        assert brought[0].path.read_bytes() == TEXT[:1000]
        assert len(web.log) == 1


def test_a_pilot_refuses_wrong_bytes_and_a_wrong_size(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(sends=POEM)}) as web:
        with pytest.raises(ValueError, match="has the sha256"):
            fetch([remote(web, "a.txt", TEXT)], folder, said, limit=1000)
        with pytest.raises(ValueError, match=f"the server has {len(POEM)} bytes, expected {len(TEXT):,}"):
            fetch([remote(web, "a.txt", TEXT, len(TEXT))], folder, said, limit=20)


# Credentials


def test_credentials_of_a_url_are_used_and_never_told(folder: Path, said: list[str]) -> None:
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(cuts=[50_000, 0, 0])}) as web:
        url = web.address.replace("//", "//jan:tajne%21@") + "/a.txt?Signature=poufne&part=1"
        files = [Remote("data", url, sha256(TEXT), None)]
        with pytest.raises(OSError) as raised:
            fetch(files, folder, said)
        assert web.log[0].headers["Authorization"].startswith("Basic ")
        assert f"{web.address}/a.txt?Signature=…&part=1" in str(raised.value)
        told = [
            *said,
            str(raised.value),
            *left_in(folder),
            *(p.read_bytes().decode("latin1") for p in folder.iterdir()),
        ]
        fetch(files, folder, said)
    assert not [text for text in told + said if "tajne" in text or "poufne" in text or "jan" in text]


def test_credentials_of_netrc_are_used_and_stay_at_home(folder: Path, said: list[str], tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login jan password tajne\n")
    (tmp_path / ".netrc").chmod(0o600)
    with serve({"b.txt": POEM}) as other:
        elsewhere = other.address.replace("127.0.0.1", "localhost") + "/b.txt"
        with serve({}, **{"a.txt": Faults(moved=elsewhere)}) as web:
            fetch([remote(web, "a.txt", POEM)], folder, said)
    assert web.log[0].headers["Authorization"].startswith("Basic ")
    assert "Authorization" not in other.log[0].headers


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://jan:a@b:c@example.org/x?y=1", "https://example.org/x?y=1"),
        ("https://jan:ta/j?ne@example.org/x", "https://example.org/x"),
        ("https://example.org:8080/@jan/x", "https://example.org:8080/@jan/x"),
        ("see http://u@h/a and http://v@h/b", "see http://h/a and http://h/b"),
        ("https://h/a?access_token=1&n=2&X-Amz-Signature=3", "https://h/a?access_token=…&n=2&X-Amz-Signature=…"),
    ],
)
def test_what_is_public_of_a_url(url: str, shown: str) -> None:
    assert downloads.public(url) == shown


def test_a_reason_is_the_innermost_one_without_credentials() -> None:
    inner = OSError("no way to\nhttp://jan:tajne@proxy:1/x")
    assert downloads._reason(ConnectionError("outer", inner)) == "no way to http://proxy:1/x"
    assert downloads._reason(TimeoutError()) == "TimeoutError"


# Other runs, and interruptions


def test_a_second_run_at_the_same_time_waits_for_the_first(folder: Path, said: list[str]) -> None:
    folder.mkdir()
    lock = filelock.FileLock(folder / ".lock", thread_local=False)
    lock.acquire()

    def say(line: str) -> None:
        said.append(line)
        lock.release()

    with serve({"a.txt": POEM}) as web:
        downloads.fetch([remote(web, "a.txt", POEM)], folder, say)
    assert said == [f"{folder}: another run is downloading to it; waiting until it is done"]


def test_an_error_of_the_program_stops_all_transfers(folder: Path, said: list[str]) -> None:
    def say(_: str) -> None:
        raise RuntimeError("nobody listens")

    partial = folder / f"{sha256(TEXT)}.partial"
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(pause=0.05), "b.txt": Faults(refusals=[503])}) as web:
        with pytest.raises(RuntimeError, match="nobody listens"):
            downloads.fetch([remote(web, "a.txt", TEXT), remote(web, "b.txt", POEM)], folder, say, patience=QUICK)
        time.sleep(0.1)
        had = partial.stat().st_size if partial.is_file() else 0
        time.sleep(0.2)
        assert (partial.stat().st_size if partial.is_file() else 0) == had


INTERRUPTED = """
import signal, sys
from pathlib import Path
from wronai.downloads import Remote, fetch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
url, sha256, other, folder = sys.argv[1:]
files = [Remote("data", url + "/a.txt", sha256), Remote("data", other + "/b.txt", "0" * 64)]
fetch(files, Path(folder), print)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes a request and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_interrupted_program_ends_at_once_and_keeps_what_came(folder: Path, said: list[str], silent: str) -> None:
    partial = folder / f"{sha256(TEXT)}.partial"
    with serve({"a.txt": TEXT}, **{"a.txt": Faults(pause=0.5)}) as web:
        command = [sys.executable, "-c", INTERRUPTED, web.address, sha256(TEXT), silent, str(folder)]
        program = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            until = time.monotonic() + 30
            while not (partial.is_file() and partial.stat().st_size) and time.monotonic() < until:
                time.sleep(0.01)
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=5)
        finally:
            program.kill()
        assert b"KeyboardInterrupt" in errors
        had = partial.stat().st_size
        assert 0 < had < len(TEXT)
    with serve({"a.txt": TEXT}) as web:
        fetch([remote(web, "a.txt", TEXT)], folder, said)
        assert web.log[0].range == f"bytes={had}-"


# The hub

BOOK = "".join(f"Rozdział {i}. Było ich wielu.\n" for i in range(2000)).encode()
SHARDS = {
    "README.md": b"# Zbi\xc3\xb3r\n",
    "data/train-00000.jsonl": BOOK,
    "data/train-00001.jsonl": BOOK + b"1",
    "data/pl/train-00002.jsonl": BOOK + b"2",
    "data/small.csv": POEM,
}
LARGE = [name for name in SHARDS if name.endswith(".jsonl")]
Requests = list[tuple[str, str, dict[str, str]]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, content in SHARDS.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_bytes(content)
    return tmp_path / "repository"


def fetch_hub(
    folder: Path,
    said: list[str],
    pattern: str = "data/**/*.jsonl",
    shards: int | None = None,
    limit: int | None = None,
    revision: str = COMMIT,
    name: str = "wronai/teksty",
) -> downloads.HubFiles:
    return downloads.fetch_hub(
        "data.sources[2]", name, revision, pattern, shards, folder, said.append, limit, patience=QUICK
    )


@contextmanager
def served(repository: Path, monkeypatch: pytest.MonkeyPatch, **faults: Any) -> Iterator[Requests]:
    """A hub with `repository` as the dataset wronai/teksty, which HF_ENDPOINT points to; gives the log of requests."""
    log: Requests = []
    refusals = faults.pop("refusals", {})
    with hub.serve(repository, "wronai/teksty", COMMIT, refusals, large=LARGE, log=log, **faults) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield log


def test_hub_files_come_sorted_with_the_date_and_once(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(repository, monkeypatch) as log:
        brought = fetch_hub(folder, said)
        assert brought == downloads.HubFiles(
            [(name, folder / sha256(SHARDS[name])) for name in sorted(LARGE)], hub.DATE.split("T")[0]
        )
        assert [path.read_bytes() for _, path in brought.files] == [SHARDS[name] for name in sorted(LARGE)]
        asked = len(log)
        assert fetch_hub(folder, said) == brought
        assert len(log) == asked
    assert said == []


def test_a_small_hub_file_is_checked_by_its_git_blob(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(repository, monkeypatch):
        [(name, path)] = fetch_hub(folder, said, "data/*.csv").files
    assert (name, path.name) == ("data/small.csv", hashlib.sha1(b"blob %d\0" % len(POEM) + POEM).hexdigest())
    with served(repository, monkeypatch, instead={"data/small.csv": POEM[:-1] + b"!"}):
        path.unlink()
        with pytest.raises(
            ValueError, match=rf"at {COMMIT}: data/small\.csv: has the git blob id \w+, expected {path.name}$"
        ):
            fetch_hub(folder, said, "data/*.csv")


@pytest.mark.parametrize(
    ("shards", "limit", "count"),
    [(2, None, 2), (9, None, 3), (None, 1, 1), (None, len(BOOK) + 1, 1), (None, len(BOOK) + 2, 2)],
)
def test_of_the_shards_only_the_first_come(
    folder: Path,
    said: list[str],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: int | None,
    limit: int | None,
    count: int,
) -> None:
    with served(repository, monkeypatch) as log:
        brought = fetch_hub(folder, said, shards=shards, limit=limit)
        assert sum("/resolve/" in path for _, path, _ in log) == count
    assert [name for name, _ in brought.files] == sorted(LARGE)[:count]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/*.jsonl", ["data/train-00000.jsonl", "data/train-00001.jsonl"]),
        ("**/*-00002.jsonl", ["data/pl/train-00002.jsonl"]),
        ("**", sorted(SHARDS)),
        ("*", ["README.md"]),
        ("data/**/train-0000[12].jsonl", ["data/pl/train-00002.jsonl", "data/train-00001.jsonl"]),
        ("data/small.csv", ["data/small.csv"]),
        ("small.csv", []),
        ("data", []),
    ],
)
def test_a_pattern_matches_whole_paths_folder_by_folder(pattern: str, found: list[str]) -> None:
    assert [name for name in sorted(SHARDS) if downloads._matches(name.split("/"), pattern.split("/"))] == found


def test_a_hub_file_that_was_cut_off_is_resumed(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "data/train-00000.jsonl"
    with served(repository, monkeypatch, cuts={name: [1000]}) as log:
        fetch_hub(folder, said, name)
        ranges = [headers.get("Range") for _, path, headers in log if "/resolve/" in path]
    assert ranges == [None, "bytes=1000-"]


def test_wrong_bytes_of_a_hub_name_the_file(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "data/train-00000.jsonl"
    short, other = BOOK[:-1], BOOK[:-1] + b"!"
    where = f"data.sources[2]: wronai/teksty at {COMMIT}: {name}: "
    for sent, told in (
        (short, f"the server has {len(short):,} bytes, expected {len(BOOK):,}"),
        (other, f"has the sha256 {sha256(other)}, expected {sha256(BOOK)}"),
    ):
        with served(repository, monkeypatch, instead={name: sent}), pytest.raises(ValueError) as raised:
            fetch_hub(folder, said, name)
        assert str(raised.value) == where + told
    assert [path for path in left_in(folder) if not path.endswith(".json")] == []


def test_a_token_opens_a_gated_repository_and_is_never_told(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "data/train-00000.jsonl"
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login jan password tajne\n")
    (tmp_path / ".netrc").chmod(0o600)
    with served(repository, monkeypatch, gated=[name]):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(
            ValueError, match=r"train-00000\.jsonl: gated; accept its terms on the hub and set HF_TOKEN"
        ) as raised:
            fetch_hub(folder, said, name)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        fetch_hub(folder, said, name)
    told = [*said, str(raised.value), *left_in(folder), *(path.read_text() for path in folder.iterdir())]
    assert not [text for text in told if "hf_wrong" in text or "hf_right" in text]


@pytest.mark.parametrize(
    ("asked", "kind", "reason"),
    [
        ({"revision": "f" * 40}, ValueError, f"no such commit in the repository; main is at {COMMIT}"),
        (
            {"name": "wronai/nic"},
            ValueError,
            "no such dataset repository, or a private one that HF_TOKEN does not open",
        ),
        ({"name": "wronai/closed"}, ValueError, downloads.GATED),
        ({"name": "wronai/broken"}, OSError, "HTTP 501 (attempt 3 of 3)"),
        ({"name": "wronai/odd"}, OSError, "HTTP 418"),
        (
            {"pattern": "*.parquet"},
            FileNotFoundError,
            "no file matches '*.parquet'; there is README.md, data/pl/train-00002.jsonl, data/small.csv, "
            "data/train-00000.jsonl, data/train-00001.jsonl",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    folder: Path,
    said: list[str],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    kind: type[Exception],
    reason: str,
) -> None:
    refusals = {"wronai/closed": (403, "GatedRepo"), "wronai/broken": (501, ""), "wronai/odd": (418, "")}
    with served(repository, monkeypatch, refusals=refusals), pytest.raises(kind) as raised:
        fetch_hub(folder, said, **asked)
    name, revision = asked.get("name", "wronai/teksty"), asked.get("revision", COMMIT)
    assert str(raised.value) == f"data.sources[2]: {name} at {revision}: {reason}"


def test_a_hub_that_is_away_is_one_line_without_credentials(
    folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://jan:tajne@127.0.0.1:{port}")
    with pytest.raises(OSError) as raised:
        fetch_hub(folder, said)
    where = f"data.sources[2]: wronai/teksty at {COMMIT}: http://127.0.0.1:{port}: "
    assert str(raised.value) == where + "[Errno 111] Connection refused (attempt 3 of 3)"
    assert "tajne" not in "".join(said)


@pytest.mark.parametrize("silent", ["revision", "tree"])
def test_a_hub_that_falls_silent_is_given_up(
    folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    about, tree = (f"api/datasets/wronai/teksty/{kind}/{COMMIT}" for kind in ("revision", "tree"))
    patience = Patience(attempts=2, pause=0.001, idle=0.2)
    faults = {f"api/datasets/wronai/teksty/{silent}/{COMMIT}": Faults(pause=9)}
    with serve({about: b'{"id": "wronai/teksty"}', tree: b"[]"}, **faults) as web:
        monkeypatch.setenv("HF_ENDPOINT", web.address)
        with pytest.raises(OSError, match=r"(timed out|no answer for 0\.2 s) \(attempt 2 of 2\)$"):
            downloads.fetch_hub("data", "wronai/teksty", COMMIT, "**", None, folder, said.append, patience=patience)
        assert web.log[-1].path.split("/")[-2] == silent


def test_a_hub_without_files_and_dates_says_so(folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    about, tree = (f"api/datasets/wronai/teksty/{kind}/{COMMIT}" for kind in ("revision", "tree"))
    with serve({about: b'{"id": "wronai/teksty"}', tree: b"[]"}) as web:
        monkeypatch.setenv("HF_ENDPOINT", web.address)
        with pytest.raises(FileNotFoundError, match=r"no file matches '\*\*'; there is none at all$"):
            fetch_hub(folder, said, "**")


def test_a_damaged_list_of_files_is_asked_for_again(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    (folder / f"wronai--teksty@{COMMIT}.json").write_text('{"date": ')
    with served(repository, monkeypatch):
        assert len(fetch_hub(folder, said).files) == 3


def test_an_offline_hub_is_asked_for_nothing(
    folder: Path, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with (
        served(repository, monkeypatch) as log,
        pytest.raises(OSError, match=r"HF_HUB_OFFLINE forbids to ask the hub$"),
    ):
        fetch_hub(folder, said)
    assert log == []
