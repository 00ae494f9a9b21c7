"""The data of lm_eval's tasks comes once, from the commit that is pinned, and is checked whenever it is used."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub
import pandas as pd
import pytest

from wronai import downloads, hub_benchmarks
from wronai.hub_benchmarks import DataSet

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
QUICK = downloads.Patience(attempts=2, pause=0.001, longest=0.01, connect=0.5, idle=5.0)
BELEBELE = DataSet("facebook/belebele", "pol_Latn", ("test",), "belebele_pol_Latn")
POLEMO = DataSet("allegro/klej-polemo2-in", None, ("test", "validation", "train"), "polemo2_in")
QUESTIONS = [{"question": f"Kto {i}. napisał „Lalkę”?", "correct_answer_num": str(i % 4 + 1)} for i in range(40)]


def card(licence: str | None, **configurations: Mapping[str, str]) -> str:
    """The README.md of a repository, with the files of each split of each configuration."""
    lines = [f"license: {licence}"] if licence else []
    lines += ["configs:"] if configurations else []
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join(["---", *lines, "---", "# Zbiór", ""])


def write(folder: Path, files: Mapping[str, str | list[dict[str, Any]]]) -> Path:
    """Texts and tables, these in the format that the name of the file ends in."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".parquet":
            pd.DataFrame(content).to_parquet(path)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
        else:
            pd.DataFrame(content).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    """Small repositories in the layouts of those that lm_eval's Polish tasks name."""
    subjects = [{"question": "2 + 2?", "subject": "algebra", "answer": "B"}]
    reviews = [{"sentence": f"Hotel numer {i}, polecam.", "target": "__label__meta_plus_m"} for i in range(6)]
    contents: dict[str, dict[str, str | list[dict[str, Any]]]] = {
        "facebook/belebele": {
            "README.md": card(
                "cc-by-sa-4.0", **{name: {"test": f"data/{name}.jsonl"} for name in ("deu_Latn", "pol_Latn")}
            ),
            "data/deu_Latn.jsonl": QUESTIONS[:3],
            "data/pol_Latn.jsonl": QUESTIONS,
        },
        "CohereLabs/Global-MMLU": {
            "README.md": card(
                "apache-2.0", **{name: {"test": f"{name}/test-*", "dev": f"{name}/dev-*"} for name in ("pl", "de")}
            ),
            **{
                f"{name}/{split}-00000-of-00001.parquet": subjects * count
                for name in ("pl", "de")
                for split, count in (("test", 5), ("dev", 2))
            },
        },
        "CohereForAI/include-base-44": {
            "README.md": card("apache-2.0", Polish={"test": "Polish/test-*", "validation": "Polish/validation-*"}),
            "Polish/test-00000-of-00001.parquet": subjects * 4,
            "Polish/validation-00000-of-00001.parquet": subjects,
        },
        "jumelet/multiblimp": {
            "README.md": card("cc-by-4.0", pol={"train": "pol/data.tsv"}),
            "pol/data.tsv": [{"sen": "Kot śpi.", "wrong_sen": "Kot śpią."}] * 7,
        },
        "allegro/klej-polemo2-in": {
            "README.md": card("cc-by-sa-4.0"),
            "train.csv": reviews,
            "validation.csv": reviews[:2],
            "test.csv": reviews[:3],
        },
        "allegro/klej-polemo2-out": {
            "train.csv": reviews,
            "validation.csv": reviews[:2],
            "test.csv": reviews[:3],
        },
        "LumiOpen/arc_challenge_mt": {
            "README.md": card(None, pl={split: f"pl/{split}.jsonl" for split in ("train", "validation", "test")}),
            **{f"pl/{split}.jsonl": QUESTIONS[:5] for split in ("train", "validation", "test")},
        },
        **{
            f"mrlbenchmarks/global-piqa-{kind}": {
                "README.md": card("cc-by-sa-4.0", pol_latn={"test": "data/pol_latn.tsv"}),
                "data/pol_latn.tsv": [{"prompt": "Aby otworzyć słoik,", "solution0": "kręć.", "solution1": "krzycz."}],
            }
            for kind in ("parallel", "nonparallel")
        },
    }
    return {name: write(tmp_path / "hub" / name, files) for name, files in contents.items()}


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory; no proxy, no hub and no credentials but what a test sets."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "benchmarks"


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    return tmp_path / "tasks/revisions.json"


Requests = list[tuple[str, str, dict[str, str]]]


@contextmanager
def served(stored: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, **faults: Any) -> Iterator[Requests]:
    """A hub with these repositories, which HF_ENDPOINT points to; gives the log of requests."""
    log: Requests = []
    first, *rest = stored
    refusals = faults.pop("refusals", {})
    others = {(name, COMMIT): stored[name] for name in rest} | faults.pop("others", {})
    with hub.serve(stored[first], first, COMMIT, refusals, log=log, others=others, **faults) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield log


def fetch(folder: Path, pins: Path, *wanted: DataSet, mirror: Path | None = None) -> list[str]:
    said: list[str] = []
    hub_benchmarks.fetch(wanted, folder, pins, said.append, mirror, QUICK)
    return said


def holds(folder: Path) -> list[str]:
    """Everything but what is kept to be resumed."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (".lock", ".partial"))


POLISH = {
    "belebele_pol_Latn": {("facebook/belebele", "pol_Latn")},
    "global_mmlu_full_pl": {("CohereForAI/Global-MMLU", "pl")},
    "include_base_44_polish*": {("CohereForAI/include-base-44", "Polish")},
    "multiblimp_pol": {("jumelet/multiblimp", "pol")},
    "polemo2_in": {("allegro/klej-polemo2-in", None)},
    "polemo2_out": {("allegro/klej-polemo2-out", None)},
    "arc_challenge_mt_pl": {("LumiOpen/arc_challenge_mt", "pl")},
    "global_piqa_*_pol_latn": {
        ("mrlbenchmarks/global-piqa-nonparallel", "pol_latn"),
        ("mrlbenchmarks/global-piqa-parallel", "pol_latn"),
    },
}


@pytest.mark.parametrize(("name", "expected"), POLISH.items())
def test_polish_tasks_of_lm_eval_read_data_sets_of_the_hub(name: str, expected: set[tuple[str, str | None]]) -> None:
    needs = [hub_benchmarks.data_set(task, hub_benchmarks.config(task)) for task in hub_benchmarks.resolve(name)]
    assert {(need.repository, need.configuration) for need in needs if need} == expected
    assert all(need and need.splits for need in needs)


def test_the_data_of_lm_evals_polish_tasks_comes_once(
    stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(stored, monkeypatch, moved={"CohereForAI/Global-MMLU": "CohereLabs/Global-MMLU"}) as log:
        assert hub_benchmarks.main(list(POLISH)) == 0
        lines = capsys.readouterr().out.splitlines()
        asked = len(log)
        assert hub_benchmarks.main(list(POLISH)) == 0
        assert len(log) == asked
    assert capsys.readouterr().out == "nothing needs fetching: data/downloads/benchmarks has the data of every task\n"
    assert lines == [
        "facebook/belebele pol_Latn at 01234567: test 40 rows, 0.00 MB",
        "CohereForAI/Global-MMLU pl at 01234567: test 5, dev 2 rows, 0.00 MB",
        "CohereForAI/include-base-44 Polish at 01234567: test 4 rows, 0.00 MB",
        "jumelet/multiblimp pol at 01234567: train 7 rows, 0.00 MB",
        "allegro/klej-polemo2-in at 01234567: test 3, validation 2, train 6 rows, 0.00 MB",
        "allegro/klej-polemo2-out at 01234567: test 3, validation 2, train 6 rows, 0.00 MB",
        "LumiOpen/arc_challenge_mt pl at 01234567: test 5, validation 5, train 5 rows, 0.00 MB",
        "mrlbenchmarks/global-piqa-nonparallel pol_latn at 01234567: test 1 rows, 0.00 MB",
        "mrlbenchmarks/global-piqa-parallel pol_latn at 01234567: test 1 rows, 0.00 MB",
    ]
    assert not any("deu_Latn" in path or "/de/" in path for _, path, _ in log)
    for name in POLISH:
        for task in hub_benchmarks.resolve(name):
            wanted = hub_benchmarks.data_set(task, hub_benchmarks.config(task))
            assert wanted and set(hub_benchmarks.located(wanted, hub_benchmarks.FOLDER)) == set(wanted.splits)
    pinned = json.loads(hub_benchmarks.PINS.read_text())
    assert list(pinned) == sorted(pinned)
    assert set(pinned.values()) == {COMMIT}
    assert len(pinned) == 9


def test_a_data_set_lies_as_parquet_beside_its_manifest(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(stored, monkeypatch):
        fetch(folder, pins, BELEBELE)
    home = folder / "facebook--belebele/pol_Latn"
    [path] = hub_benchmarks.located(BELEBELE, folder).values()
    assert path == home / "test.parquet"
    assert pd.read_parquet(path).to_dict("records") == QUESTIONS
    assert json.loads((home / "manifest.json").read_text()) == {
        "repository": "facebook/belebele",
        "revision": COMMIT,
        "configuration": "pol_Latn",
        "licence": "cc-by-sa-4.0",
        "splits": {"test": {"rows": 40, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}},
    }
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "facebook--belebele"]


def test_a_pinned_commit_gives_the_same_bytes_after_main_moved_on(
    stored: dict[str, Path], folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(stored, monkeypatch):
        fetch(folder, pins, BELEBELE)
    newer = write(tmp_path / "newer", {"README.md": card(None, pol_Latn={"test": "a.csv"}), "a.csv": QUESTIONS[:1]})
    pins.write_text(json.dumps({"facebook/belebele": OLDER}))
    others = {("facebook/belebele", OLDER): stored["facebook/belebele"]}
    again = tmp_path / "again"
    with served({"facebook/belebele": newer}, monkeypatch, others=others):
        fetch(again, pins, BELEBELE)
        [first], [second] = (hub_benchmarks.located(BELEBELE, place).values() for place in (folder, again))
        assert first.read_bytes() == second.read_bytes()
        pins.unlink()
        assert fetch(again, pins, BELEBELE) == ["facebook/belebele pol_Latn at 01234567: test 1 rows, 0.00 MB"]
    assert json.loads(pins.read_text()) == {"facebook/belebele": COMMIT}


def test_a_pin_that_changes_brings_the_other_commit(
    stored: dict[str, Path], folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write(tmp_path / "older", {"README.md": card(None, pol_Latn={"test": "a.csv"}), "a.csv": QUESTIONS[:1]})
    with served(stored, monkeypatch, others={("facebook/belebele", OLDER): older}):
        fetch(folder, pins, BELEBELE)
        pins.write_text(json.dumps({"facebook/belebele": OLDER}))
        assert fetch(folder, pins, BELEBELE) == ["facebook/belebele pol_Latn at 89abcdef: test 1 rows, 0.00 MB"]
        assert fetch(folder, pins, BELEBELE)[0].startswith("nothing needs fetching")


def test_what_is_there_at_the_commit_of_main_is_only_pinned(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(stored, monkeypatch):
        fetch(folder, pins, BELEBELE)
        pins.unlink()
        assert fetch(folder, pins, BELEBELE)[0].startswith("nothing needs fetching")
    assert json.loads(pins.read_text()) == {"facebook/belebele": COMMIT}


def test_a_task_that_reads_more_splits_keeps_those_of_others(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = DataSet(POLEMO.repository, None, ("test",), "polemo2_in")
    train = DataSet(POLEMO.repository, None, ("train",), "polemo2_train")
    with served(stored, monkeypatch):
        fetch(folder, pins, test)
        with pytest.raises(FileNotFoundError, match=r"^task polemo2_train: allegro/klej-polemo2-in: not in .*benchma"):
            hub_benchmarks.located(train, folder)
        with pytest.raises(FileNotFoundError, match=r"polemo2-in \(split validation, train\): not in"):
            hub_benchmarks.located(POLEMO, folder)
        fetch(folder, pins, train)
    assert set(hub_benchmarks.located(test, folder)) == {"test"}
    assert set(hub_benchmarks.located(train, folder)) == {"train"}


def test_a_damaged_file_is_told_and_fetched_again(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(stored, monkeypatch):
        fetch(folder, pins, BELEBELE)
        [path] = hub_benchmarks.located(BELEBELE, folder).values()
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"test\.parquet has the sha256 \w+, expected \w+ .*make benchmarks-fetch"):
            hub_benchmarks.located(BELEBELE, folder)
        said = fetch(folder, pins, BELEBELE)
    assert said == [
        f"{path}: damaged on the disk; fetched again",
        "facebook/belebele pol_Latn at 01234567: test 40 rows, 0.00 MB",
    ]
    hub_benchmarks.located(BELEBELE, folder)
    (path.parent / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: not JSON; delete .*pol_Latn, and `make benchmarks-fetch`"):
        hub_benchmarks.located(BELEBELE, folder)


def test_data_that_was_never_fetched_is_one_message(folder: Path) -> None:
    expected = f"task belebele_pol_Latn: facebook/belebele pol_Latn: not in {folder}; `make benchmarks-fetch` brings it"
    with pytest.raises(FileNotFoundError) as told:
        hub_benchmarks.located(BELEBELE, folder)
    assert str(told.value) == expected


def test_a_cut_download_leaves_nothing_half_written_and_is_resumed(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "data/pol_Latn.jsonl"
    with served(stored, monkeypatch, cuts={name: [100, 0, 0]}) as log:
        with pytest.raises(OSError, match=r"pol_Latn\.jsonl: the connection closed after 100 of .*attempt 2 of 2"):
            fetch(folder, pins, BELEBELE)
        assert holds(folder) == []
        assert not pins.exists()
        fetch(folder, pins, BELEBELE)
    assert [headers.get("Range") for _, path, headers in log if path.endswith(name)][-1] == "bytes=100-"
    assert pd.read_parquet(folder / "facebook--belebele/pol_Latn/test.parquet").to_dict("records") == QUESTIONS


def test_a_failed_fetch_keeps_what_was_there(
    stored: dict[str, Path], folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write(tmp_path / "b", {"README.md": card(None, pol_Latn={"test": "a.jsonl"}), "a.jsonl": "{nie JSON\n"})
    with served(stored, monkeypatch, others={("facebook/belebele", OLDER): broken}):
        fetch(folder, pins, BELEBELE)
        pins.write_text(json.dumps({"facebook/belebele": OLDER}))
        with pytest.raises(
            ValueError, match=r"^task belebele_pol_Latn: facebook/belebele pol_Latn: its files cannot b"
        ):
            fetch(folder, pins, BELEBELE)
    assert pd.read_parquet(hub_benchmarks.located(BELEBELE, folder)["test"]).to_dict("records") == QUESTIONS


@pytest.mark.parametrize("separator", ["/", "--"])
def test_a_mirror_stands_for_the_hub(
    separator: str, stored: dict[str, Path], folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    mirror = tmp_path / "mirror"
    here = mirror / f"facebook{separator}belebele"
    here.parent.mkdir(parents=True)
    stored["facebook/belebele"].rename(here)
    [line] = fetch(folder, pins, BELEBELE, mirror=mirror)
    assert line.endswith("test 40 rows, 0.00 MB")
    assert pd.read_parquet(hub_benchmarks.located(BELEBELE, folder)["test"]).to_dict("records") == QUESTIONS
    assert not pins.exists()
    assert fetch(folder, pins, BELEBELE, mirror=mirror)[0].startswith("nothing needs fetching")
    write(here, {"data/deu_Latn.jsonl": QUESTIONS})
    assert fetch(folder, pins, BELEBELE, mirror=mirror)[0].startswith("nothing needs fetching")
    write(here, {"data/pol_Latn.jsonl": QUESTIONS[:9]})
    assert fetch(folder, pins, BELEBELE, mirror=mirror)[0].endswith("test 9 rows, 0.00 MB")


def test_what_is_there_at_the_pinned_commit_goes_before_a_mirror(
    stored: dict[str, Path], folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(stored, monkeypatch):
        fetch(folder, pins, BELEBELE)
    assert fetch(folder, pins, BELEBELE, mirror=tmp_path / "hub")[0].startswith("nothing needs fetching")


def test_a_mirror_that_lacks_what_is_wanted_is_one_message(folder: Path, pins: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; expected one with data set repositories"):
        fetch(folder, pins, BELEBELE, mirror=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"not in the mirror; there is neither .*k/belebele nor .*k--belebele$"):
        fetch(folder, pins, BELEBELE, mirror=tmp_path)


REFUSALS = {
    "no such": ((404, "RepoNotFound"), r"no such data set on the hub, or a private one that HF_TOKEN does not open$"),
    "gated": ((403, "GatedRepo"), r"gated; accept its terms on the hub and set HF_TOKEN to a token that may read it$"),
    "unauthorized": ((401, ""), r"no such data set on the hub, or a private one that HF_TOKEN does not open$"),
    "ill": ((501, ""), r"http://127\.0\.0\.1:\d+: HTTP 501$"),
}


@pytest.mark.parametrize(("refusal", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_is_one_line(
    refusal: tuple[int, str],
    message: str,
    stored: dict[str, Path],
    folder: Path,
    pins: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        served(stored, monkeypatch, refusals={"facebook/belebele": refusal}),
        pytest.raises((ValueError, OSError), match=rf"^task belebele_pol_Latn: facebook/belebele pol_Latn: {message}"),
    ):
        fetch(folder, pins, BELEBELE)
    assert holds(folder) == []


def test_a_token_opens_gated_files_and_a_wrong_one_is_told(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = ["README.md", "data/pol_Latn.jsonl"]
    with served(stored, monkeypatch, gated=gated, tokens=["hf_right"]):
        with pytest.raises(
            ValueError, match=r"^task belebele_pol_Latn: .*README\.md: gated; accept its terms on the h"
        ):
            fetch(folder, pins, BELEBELE)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(
            ValueError, match=r"facebook/belebele pol_Latn: the hub does not know the token in HF_TOKEN"
        ):
            fetch(folder, pins, BELEBELE)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        fetch(folder, pins, BELEBELE)


def test_a_pinned_commit_that_the_hub_lacks_is_one_line(
    stored: dict[str, Path], folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.parent.mkdir()
    pins.write_text(json.dumps({"facebook/belebele": OLDER}))
    with (
        served(stored, monkeypatch),
        pytest.raises(ValueError, match=rf"^task belebele_pol_Latn: facebook/belebele at {OLDER}: no such commit in"),
    ):
        fetch(folder, pins, BELEBELE)


@pytest.mark.parametrize("pinned", [False, True])
def test_no_connection_is_one_line(pinned: bool, folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://jan:tajne@127.0.0.1:9")
    if pinned:
        pins.parent.mkdir()
        pins.write_text(json.dumps({"facebook/belebele": COMMIT}))
    with pytest.raises(OSError, match=r"^task belebele_pol_Latn: facebook/belebele .*http://127\.0\.0\.1:9: ") as told:
        fetch(folder, pins, BELEBELE)
    assert "refused" in str(told.value)
    assert "tajne" not in str(told.value)


def test_an_offline_hub_is_one_line(folder: Path, pins: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]; from pathlib import Path; from wronai import hub_benchmarks as h\n"
        "try: h.fetch([h.DataSet('a/b', None, ('test',), 't')], Path('f'), Path('p'), print)\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)],
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "task t: a/b: not on this machine yet, and HF_HUB_OFFLINE forbids to ask the hub\n"


MANY = {
    name: {"test": "a.csv"} for name in ("ang", "bul", "ces", "deu", "est", "fin", "gle", "hun", "isl", "pol", "por")
}
WRONG = {
    "script": ({"zbior.py": "", "a.csv": QUESTIONS}, "pl", "needs the loading script zbior.py, and no code of others"),
    "unknown configuration": (
        {"README.md": card(None, pl={"test": "a.csv"}, de={"test": "a.csv"}), "a.csv": QUESTIONS},
        "polish",
        "no such configuration (dataset_name); expected pl or de",
    ),
    "one of many": (
        {"README.md": card(None, **MANY), "a.csv": QUESTIONS},
        "poll",
        "no such configuration (dataset_name); expected pol or ",
    ),
    "configuration of a plain repository": (
        {"test.csv": QUESTIONS},
        "pl",
        "no such configuration (dataset_name); expected default",
    ),
    "no default": (
        {"README.md": card(None, pl={"test": "a.csv"}, de={"test": "a.csv"}), "a.csv": QUESTIONS},
        None,
        "has no default configuration; dataset_name must be one of pl, de",
    ),
    "no split": ({"train.csv": QUESTIONS, "validation.csv": QUESTIONS}, None, "no split test; there are train, valida"),
    "no data": (
        {"README.md": card(None), "notes.md": "nic"},
        None,
        "its files are read as harbor; expected one of json",
    ),
    "empty": ({"README.md": card(None)}, None, "The directory at kto/zbior doesn't contain any data files"),
    "files that are not there": (
        {"README.md": card(None, pl={"test": "b.csv"}), "a.csv": QUESTIONS},
        "pl",
        "Unable to find 'kto/zbior/b.csv'",
    ),
    "pictures": ({"test/a.png": ""}, None, "its files are read as imagefolder; expected one of json, csv"),
    "not a table": ({"test.jsonl": "{nie JSON\n"}, None, "its files cannot be read: "),
}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("files", "configuration", "message"), WRONG.values(), ids=WRONG)
def test_a_repository_that_cannot_be_used_is_one_line(
    files: dict[str, str | list[dict[str, Any]]],
    configuration: str | None,
    message: str,
    mirrored: bool,
    folder: Path,
    pins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = {"kto/zbior": write(tmp_path / "hub/kto/zbior", files)}
    wanted = DataSet("kto/zbior", configuration, ("test",), "zadanie")
    with served(stored, monkeypatch), pytest.raises(ValueError) as told:
        fetch(folder, pins, wanted, mirror=tmp_path / "hub" if mirrored else None)
    assert str(told.value).startswith(f"{wanted}: {message}")
    assert "\n" not in str(told.value)
    assert str(tmp_path) not in str(told.value)
    assert holds(folder) == []
    assert not pins.exists()


def test_a_card_cannot_name_files_outside_of_its_repository(
    folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = write(tmp_path, {"secret.csv": QUESTIONS}) / "secret.csv"
    stored = {"kto/zbior": write(tmp_path / "hub/kto/zbior", {"README.md": card(None, pl={"test": str(secret)})})}
    with served(stored, monkeypatch), pytest.raises(ValueError, match="its card names data outside of the repository"):
        fetch(folder, pins, DataSet("kto/zbior", "pl", ("test",), "zadanie"))


def test_a_name_that_leads_out_of_the_repository_is_refused(
    folder: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.parent.mkdir()
    pins.write_text(json.dumps({"facebook/belebele": COMMIT}))
    listing = downloads.HubListing([downloads.HubFile("../README.md", 0, "0" * 40)], None)
    monkeypatch.setattr(downloads, "list_hub", lambda *_: listing)
    with pytest.raises(ValueError, match=r"a file is named '\.\./README\.md', which leads out of the repository$"):
        fetch(folder, pins, BELEBELE)


def test_a_name_that_no_repository_can_have_is_one_line(folder: Path, pins: Path) -> None:
    with pytest.raises(ValueError, match=r"^task t: a--b/c: Cannot have -- or \.\. in repo_id"):
        fetch(folder, pins, DataSet("a--b/c", None, ("test",), "t"))


def test_a_zip_archive_is_read(folder: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    repository = write(tmp_path / "hub/kto/zbior", {"README.md": card(None, pl={"test": "test.zip"})})
    with zipfile.ZipFile(repository / "test.zip", "w") as archive:
        archive.writestr("a.jsonl", "".join(json.dumps(row) + "\n" for row in QUESTIONS))
    with served({"kto/zbior": repository}, monkeypatch):
        fetch(folder, pins, wanted := DataSet("kto/zbior", "pl", ("test",), "zadanie"))
    assert pd.read_parquet(hub_benchmarks.located(wanted, folder)["test"]).to_dict("records") == QUESTIONS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "revisions.json: not JSON: "),
        ("[]", "revisions.json: expected a mapping of repositories to commits, found list"),
        ('{"a/b": "main"}', "revisions.json: a/b: expected the 40 hex digits of a commit, found 'main'"),
    ],
)
def test_wrong_pins_are_told(text: str, message: str, folder: Path, pins: Path) -> None:
    pins.parent.mkdir()
    pins.write_text(text)
    with pytest.raises(ValueError, match=message):
        fetch(folder, pins, BELEBELE)


def test_a_name_stands_for_a_task_a_group_a_tag_or_a_pattern() -> None:
    assert hub_benchmarks.resolve("polemo2_in") == ["polemo2_in"]
    assert hub_benchmarks.resolve("polemo2") == ["polemo2_in", "polemo2_out"]
    subjects = hub_benchmarks.resolve("global_mmlu_full_pl")
    assert len(subjects) == len(set(subjects)) == 57
    assert hub_benchmarks.resolve("polemo2_*") == ["polemo2_in", "polemo2_out"]
    assert {"polemo2", "polemo2_in", "global_mmlu_full_pl"} <= set(hub_benchmarks.known())
    assert hub_benchmarks.known() == sorted(hub_benchmarks.known())


@pytest.mark.parametrize("name", ["belebele_pol_latn", "belebele_pol_Latin", "belebel_pol_Latn?"])
def test_an_unknown_name_is_told_with_the_nearest(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no task, group or tag of lm_eval; the nearest are belebele_pol_Latn, \S+, "
    ):
        hub_benchmarks.resolve(name)


@pytest.mark.parametrize("group", ["openllm", "t0_eval", "flan_held_in"])
def test_a_group_that_changes_its_tasks_is_refused(group: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^the group {group} has its own .* for \S+, which is lost with the group; name"
    ):
        hub_benchmarks.resolve(group)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["nieznane"], "'nieznane', of the group grupa, is no task in lm_eval"),
        (["grupa"], "'grupa', of the group grupa, is that group in lm_eval"),
        ([{"dataset_path": "a/b"}], "the group grupa has its own dataset_path for None"),
    ],
)
def test_a_group_without_sense_is_told(members: list[Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(kind=SimpleNamespace(name="GROUP"), cfg={"group": "grupa", "task": members})
    monkeypatch.setattr(hub_benchmarks, "_index", lambda: {"grupa": entry})
    with pytest.raises(ValueError, match=message):
        hub_benchmarks.resolve("grupa")


def test_a_task_is_known_by_its_resolved_yaml_and_its_file() -> None:
    described = hub_benchmarks.config("polemo2_out")
    assert described["dataset_path"] == "allegro/klej-polemo2-out"
    assert described["output_type"] == "generate_until"  # from the file that it includes
    described.clear()
    assert hub_benchmarks.config("polemo2_out")
    assert hub_benchmarks.yaml_of("polemo2_out").relative_to(hub_benchmarks.library()).parts[0] == "polemo2"
    with pytest.raises(ValueError, match=r"^'polemo2' is no task of lm_eval; resolve\(\) gives the tasks of a group"):
        hub_benchmarks.config("polemo2")


def test_local_data_needs_nothing(tmp_path: Path) -> None:
    files = {"dataset_kwargs": {"data_files": {"test": "benchmarks/tasks/a.jsonl"}}, "test_split": "test"}
    for loader in ("json", "csv", "text", "parquet"):
        assert hub_benchmarks.data_set("t", {"dataset_path": loader, **files}) is None
    assert hub_benchmarks.data_set("t", {"dataset_path": str(tmp_path), "test_split": "test"}) is None


def test_every_split_that_a_task_names_is_wanted_once() -> None:
    described = {
        "dataset_path": "kto/zbior",
        "dataset_name": 2024,
        "dataset_kwargs": {"trust_remote_code": True},
        "test_split": "test",
        "training_split": None,
        "fewshot_split": "dev",
        "fewshot_config": {"split": "test"},
    }
    assert hub_benchmarks.data_set("t", described) == DataSet("kto/zbior", "2024", ("test", "dev"), "t")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"class": "x.Y"}, "gets its data by code of its own; only data sets of the hub"),
        ({"custom_dataset": "x.load"}, "gets its data by code of its own"),
        ({}, "has no dataset_path"),
        ({"dataset_path": "a/b/c"}, "dataset_path: 'a/b/c' is neither a folder of this machine, nor one of json, csv"),
        ({"dataset_path": "../b"}, "dataset_path: '../b' is neither"),
        ({"dataset_path": "a/b"}, "names no split of a/b; expected test_split"),
        (
            {"dataset_path": "a/b", "dataset_kwargs": {"data_files": "x.csv"}, "test_split": "test"},
            "dataset_kwargs: data_files of a/b cannot be fetched; only whole configurations",
        ),
        (
            {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": ["hf://datasets/a/b/c.jsonl"]}}},
            "dataset_kwargs.data_files: hf://datasets/a/b/c.jsonl is on the network",
        ),
    ],
)
def test_a_task_whose_data_cannot_be_fetched_is_told(described: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as told:
        hub_benchmarks.data_set("zadanie", described)
    assert str(told.value).startswith(f"task zadanie: {message}")


TASK = "task: moje\ndataset_path: facebook/belebele\ndataset_name: pol_Latn\ntest_split: test\n"


def test_the_tasks_of_params_yaml_are_the_default(
    stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        Path(),
        {
            "params.yaml": "evaluate:\n  include_path: benchmarks/tasks\n  tasks: [own, polemo2]\n",
            "benchmarks/tasks/own/moje.yaml": "include: common.yaml\n" + TASK.replace("test_split: test\n", ""),
            "benchmarks/tasks/own/common.yaml": "test_split: test\nprocess_results: !function nowhere.score\n",
            "benchmarks/tasks/own/local.yaml": "task: u siebie\ndataset_path: json\ntest_split: test\n",
        },
    )
    with served(stored, monkeypatch):
        assert hub_benchmarks.main([]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "facebook/belebele pol_Latn at 01234567",
        "allegro/klej-polemo2-in at 01234567",
        "allegro/klej-polemo2-out at 01234567",
    ]
    assert hub_benchmarks.located(BELEBELE, hub_benchmarks.FOLDER)


def test_local_tasks_alone_ask_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    write(Path(), {"own/a.yaml": "task: a\ndataset_path: json\ntest_split: test\n"})
    assert hub_benchmarks.main(["own"]) == 0
    assert capsys.readouterr().out.startswith("nothing needs fetching")


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, [], "params.yaml: not found; run this from the root of the project"),
        ({"params.yaml": "seed: 1\n"}, [], "params.yaml: expected evaluate.tasks, a list, and evaluate.include_path"),
        ({"params.yaml": "evaluate: {tasks: [a]}\n"}, [], "params.yaml: expected evaluate.tasks"),
        ({"own/readme.txt": ""}, ["own"], "own: no .yaml file in it defines a task"),
        ({"own/a.yaml": "task: [\n"}, ["own"], "own/a.yaml: "),
        ({"own/a.yaml": "include: b.yaml\ntask: a\n"}, ["own"], "own/a.yaml: "),
        ({"own/a.yaml": "task: a\n"}, ["own"], "task a: has no dataset_path"),
        ({}, ["polemo3"], "'polemo3' is no task, group or tag of lm_eval; the nearest are polemo2, "),
        ({"own/a.yaml": TASK}, ["own"], "task moje: facebook/belebele pol_Latn: no connection to http://127.0.0.1:9: "),
        ({"own/a.yaml": TASK}, ["--mirror", "m", "own"], "m: no such folder"),
    ],
)
def test_the_command_tells_what_is_wrong_in_one_line(
    files: dict[str, str | list[dict[str, Any]]],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    write(Path(), files)
    assert hub_benchmarks.main(arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_neither_lm_eval_nor_datasets_is_imported_before_it_is_needed() -> None:
    code = "import sys, wronai.hub_benchmarks; sys.exit(bool({'lm_eval', 'datasets', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
