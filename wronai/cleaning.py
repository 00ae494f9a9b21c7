"""The plan that keeps the text worth training on: Daft runs the rules over batches, on this machine or on a cluster.

A text goes through: bytes to characters (`decoding`), mark-up to text (`markup`), `normalization`, foreign paragraphs
out (`language`), the rules of its kind (`quality.RULES`), personal data masked, a look for benchmark items
(`contamination`). All that a batch can decide by itself happens there; what needs all texts at once, duplicates and
who of them stays, is decided here from a few hundred bytes a text, while the texts wait on disk. What is rejected is
kept with its reason and the value that decided. Neither the order of the input nor the number of workers changes a byte
of the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wronai import (
    contamination,
    corpus,
    duplicates,
    language,
    markup,
    normalization,
    params,
    personal_data,
    quality,
    rules_page,
    wikimedia,
)
from wronai.decoding import Rejection, decode, repair
from wronai.quality import MEASURED

os.environ["DAFT_ANALYTICS_ENABLED"] = "0"  # otherwise the import itself is reported over the network
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # it counts plans; the stage counts texts
import daft

SPECIAL_TOKENS = re.compile(r"</?(?:polish|formal|informal|question|answer)>")
HEAD = 200  # characters of a rejected text that are kept
BATCH_BYTES = 4 << 20  # about so much text goes through the rules at once
PATIENCE = 10  # seconds for a cluster to answer; Ray itself would ask for many minutes

Array = np.ndarray[Any, np.dtype[Any]]
Tick = Callable[[int], None]  # is told of so many texts more


@dataclass
class Text:
    """A document as characters, and what happened on the way; `rejection` says why it is none."""

    title: str
    text: str
    encoding: str = ""
    repaired: bool = False
    boilerplate: float = 0.0  # share of the characters
    rejection: Rejection | None = None
    head: str = ""  # how it begins, before boilerplate went: what is shown of it when it is rejected


def read_document(content: bytes, media_type: str, text_kind: str, title: str, rules: params.Rules) -> Text:
    """The running text of a document, before any rule judges it. `media_type` may declare a charset."""
    media_type, _, charset = media_type.partition("; charset=")
    decoded = decode(content, media_type, charset or None)
    if isinstance(decoded, Rejection):
        return Text(title, "", rejection=decoded)
    characters, encoding = decoded
    if media_type == "text/html":
        extracted = markup.article(characters)
        if isinstance(extracted, Rejection):
            return Text(title, "", encoding, rejection=extracted)
        title, characters = title or extracted[0], extracted[1]
    elif media_type == "text/markdown":
        found, characters = markup.markdown_text(characters)
        title = title or found
    elif media_type == "text/x-wiki":
        characters = wikimedia.plain_text(characters)
    sound = repair(characters)
    text = normalization.normalize(sound)
    if text_kind != "verse":
        text = normalization.unwrap(text)
    boilerplate, head = 0.0, text[:HEAD]
    if rules.max_share_boilerplate is not None:
        text, boilerplate = normalization.without_boilerplate(text)
    title = normalization.normalize(repair(title))
    return Text(title, text, encoding, sound != characters, boilerplate, _special_token(text), head)


def _special_token(text: str) -> Rejection | None:
    found = len(SPECIAL_TOKENS.findall(text))
    return Rejection("special_token", found) if found else None


def read_conversation(messages: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], Rejection | None]:
    """The turns normalized, and why the whole is rejected, if it is.

    A conversation alternates user and assistant, begins with the one and ends with the other, and no turn is empty.
    """
    turns = [{"role": turn["role"], "content": normalization.normalize(turn["content"])} for turn in messages]
    roles = [turn["role"] for turn in turns]
    empty = sum(not turn["content"] for turn in turns)
    if empty:
        return turns, Rejection("empty_turn", empty)
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        return turns, Rejection("unbalanced_turns", len(roles))
    return turns, _special_token("\n".join(turn["content"] for turn in turns))


_JUDGED = {
    "text": pa.large_string(),  # of a rejected document or of any conversation the head
    "reason": pa.string(),
    "value": pa.float64(),  # the one that decided
    "values": pa.list_(pa.float64(), len(MEASURED)),  # of MEASURED; NaN where nothing was measured
    "length": pa.int64(),  # characters
    "key": pa.large_string(),  # content key; empty when rejected
    "fingerprint": pa.binary(16),
    "masked": pa.list_(pa.string()),  # a placeholder for each place
    "shared": pa.list_(pa.int64()),  # n-grams shared with each benchmark
}
_DOCUMENTS = {
    "title": pa.large_string(),
    "encoding": pa.string(),
    "repaired": pa.bool_(),
    "cut": pa.int64(),
    "split": pa.string(),
    **_JUDGED,
}
_INSTRUCTIONS = {
    "messages": corpus.MESSAGES,
    "first": pa.string(),  # fingerprint of the first question and its answer, to the letter
    "question": pa.string(),  # fingerprint of the words of the first question
    **_JUDGED,
}


@dataclass(frozen=True)
class Cleaner:
    """All that one batch can decide by itself. It travels to the processes of a cluster."""

    rules: params.Clean
    seed: int
    matcher: contamination.Matcher

    def documents(self, content: pa.Array, media_type: pa.Array, text_kind: pa.Array, title: pa.Array) -> pa.Array:
        kinds = text_kind.to_pylist()
        rows = zip(content.to_pylist(), media_type.to_pylist(), kinds, title.to_pylist(), strict=True)
        read = [read_document(*row, self._rules(row[2])) for row in rows]
        texts, cut = self._without_foreign_paragraphs(read, kinds)
        verdicts = self._judge(texts, kinds, [text.rejection for text in read], [text.boilerplate for text in read])
        titles, masked = [text.title for text in read], [list[str]() for _ in read]
        for row, reason in enumerate(verdicts["reason"]):
            if reason is None and self.rules.mask_personal_data:
                texts[row], in_text = personal_data.mask(texts[row])
                titles[row], in_title = personal_data.mask(titles[row])
                masked[row] = sorted((in_text + in_title).elements())
        columns = {
            "title": titles,
            "encoding": [text.encoding for text in read],
            "repaired": [text.repaired for text in read],
            "cut": cut,
            "masked": masked,
            **verdicts,
            **self._identify(texts, verdicts["reason"]),
        }
        shares = (self.rules.share_validation, self.rules.share_test)
        columns["split"] = [corpus.split_of(key, self.seed, *shares) for key in columns["key"].to_pylist()]
        columns["text"] = [
            text if reason is None else found.head
            for text, reason, found in zip(texts, verdicts["reason"], read, strict=True)
        ]
        return _struct(columns, _DOCUMENTS)

    def instructions(self, messages: pa.Array) -> pa.Array:
        read = [read_conversation(turns) for turns in messages.to_pylist()]
        masked: list[list[str]] = [[] for _ in read]
        for row, (turns, rejection) in enumerate(read):
            if rejection is None and self.rules.mask_personal_data:
                counts: Counter[str] = Counter()
                for turn in turns:
                    turn["content"], found = personal_data.mask(turn["content"])
                    counts += found
                masked[row] = sorted(counts.elements())
        conversations = [turns for turns, _ in read]
        texts = ["\n".join(turn["content"] for turn in turns) for turns in conversations]
        verdicts = self._judge(texts, ["instructions"] * len(read), [rejection for _, rejection in read])
        questions = pa.array([turns[0]["content"] if turns else "" for turns in conversations], pa.large_string())
        columns = {
            "messages": conversations,
            "masked": masked,
            # Case and punctuation are what „popraw” tasks are about, so the same words alone make no duplicate here.
            "first": [_sha256(json.dumps([turn["content"] for turn in turns[:2]])) for turns in conversations],
            "question": [_sha256(key) for key in duplicates.content_keys(questions).to_pylist()],
            **verdicts,
            **self._identify(texts, verdicts["reason"]),
            "text": [text[:HEAD] for text in texts],
        }
        return _struct(columns, _INSTRUCTIONS)

    def _without_foreign_paragraphs(self, read: Sequence[Text], kinds: Sequence[str]) -> tuple[list[str], list[int]]:
        """The texts, and how many characters of each were cut; what is mostly foreign stays, to be judged."""
        texts, cuts = [text.text for text in read], [0] * len(read)
        for kind in sorted(set(kinds)):
            bound = self._rules(kind).min_paragraph_confidence
            rows = [row for row, of in enumerate(kinds) if of == kind and read[row].rejection is None]
            if bound is not None and rows:
                polish, cut = language.screened([texts[row] for row in rows], bound)
                for row, text, characters in zip(rows, polish.to_pylist(), cut.tolist(), strict=True):
                    if 0 < 2 * characters <= len(texts[row]):
                        texts[row], cuts[row] = text, characters
        return texts, cuts

    def _rules(self, kind: str) -> params.Rules:
        rules: params.Rules = getattr(self.rules.rules, kind)
        return rules

    def _judge(
        self,
        texts: Sequence[str],
        kinds: Sequence[str],
        rejections: Sequence[Rejection | None],
        boilerplate: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """reason, value and values of each text: of its rejection if there is one, or of the first rule it fails."""
        array = pa.array(texts, pa.large_string())
        measured = {
            # FineWeb2's bounds are fitted to paragraphs that are parted by one line end, ours by an empty line.
            **quality.measure(pc.replace_substring(array, "\n\n", "\n")),
            "share_boilerplate": np.array(boilerplate or np.zeros(len(texts))),
            "language_confidence": np.full(len(texts), np.nan),
        }
        measured["share_silesian"], measured["share_kashubian"] = language.look_alikes(array)
        # A page whose source kept no line ends would be judged by its last character.
        in_one_line = np.array(pc.invert(pc.match_substring(array, "\n")))
        measured["share_punctuated_lines"] = np.where(in_one_line, np.nan, measured["share_punctuated_lines"])
        reasons = [None if found is None else found.reason for found in rejections]
        decided = [np.nan if found is None else float(found.value) for found in rejections]
        for kind in sorted(set(kinds)):
            rules = self._rules(kind)
            rows = [row for row, of in enumerate(kinds) if of == kind and reasons[row] is None]
            if rules.min_language_confidence is not None and rows:
                measured["language_confidence"][rows] = language.confidences([texts[row] for row in rows])
            failed, values = quality.judge({name: column[rows] for name, column in measured.items()}, rules)
            for row, reason, value in zip(rows, failed.to_pylist(), values.tolist(), strict=True):
                if reason is not None:
                    reasons[row], decided[row] = reason, value
        values = np.column_stack([measured[name] for name in MEASURED])
        values[[row for row, found in enumerate(rejections) if found is not None]] = np.nan
        return {"reason": reasons, "value": decided, "values": _lists(values)}

    def _identify(self, texts: Sequence[str], reasons: Sequence[str | None]) -> dict[str, Any]:
        """What is compared with all other texts, and with the benchmarks; nothing of what is rejected."""
        passed = [text if reason is None else "" for text, reason in zip(texts, reasons, strict=True)]
        keys = duplicates.content_keys(pa.array(passed, pa.large_string()))
        return {
            "length": [len(text) for text in texts],
            "key": keys,
            "fingerprint": duplicates.fingerprints(keys),
            "shared": pa.array(list(self.matcher.counts(keys)), pa.list_(pa.int64())),
        }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lists(table: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(table.ravel()), table.shape[1])


def _struct(columns: Mapping[str, Any], kinds: Mapping[str, pa.DataType]) -> pa.Array:
    arrays = [
        columns[name] if isinstance(columns[name], pa.Array) else pa.array(columns[name], kind)
        for name, kind in kinds.items()
    ]
    return pa.StructArray.from_arrays(arrays, names=list(kinds))


def start(rules: params.Clean) -> None:
    """Let Daft run on the Ray cluster at `clean.ray_address`, if `clean.runner` says ray; once a process.

    ValueError or OSError when there is no Ray here or no cluster there.
    """
    if rules.runner != "ray":
        return
    address = rules.ray_address
    key = f"clean.ray_address is {'null' if address is None else address!r}"
    if address is not None:
        _look_for(address, key)
    try:
        # Without an address Ray would join whatever cluster ran here last, also one that is gone.
        daft.set_runner_ray(address=address or "local", noop_if_initialized=True)
    except ModuleNotFoundError as error:
        raise ValueError(f"clean.runner is ray, and {error}: install the extra wronai[cluster]") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise OSError(f"{key}, and Ray does not start from it: {error}") from error


def _look_for(address: str, key: str) -> None:
    """OSError if nobody listens at `address`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port):
        raise ValueError(f"{key}; expected host:port or ray://host:port of a running cluster, or null")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise OSError(f"{key}, and no cluster answers there: {error}") from error


def _run(
    parts: Sequence[Path],
    method: Callable[..., pa.Array],
    inputs: Sequence[str],
    kept: Sequence[str],
    kinds: Mapping[str, pa.DataType],
    rules: params.Clean,
) -> Iterator[pa.Table]:
    """The columns `kept` of the tables in `parts` and what `method` makes of `inputs`, batch by batch, in any order."""
    shape = duplicates.MinHash(rules.minhash_bands, rules.minhash_rows, rules.minhash_ngram)
    files = [pq.ParquetFile(part).metadata for part in parts]
    rows = sum(file.num_rows for file in files)
    size = sum(file.row_group(group).total_byte_size for file in files for group in range(file.num_row_groups))

    @daft.func.batch(  # type: ignore[untyped-decorator]
        return_dtype=daft.DataType.from_arrow_type(pa.struct(list(kinds.items()))),
        unnest=True,
        batch_size=max(BATCH_BYTES * rows // max(size, 1), 1),
    )
    def cleaned(*columns: daft.Series) -> pa.Array:
        return method(*(column.to_arrow() for column in columns))

    frame = daft.read_parquet([str(part) for part in parts])
    frame = frame.select(*kept, cleaned(*(daft.col(name) for name in inputs)))
    frame = frame.select(daft.col("*"), duplicates.signed(daft.col("key"), shape)).exclude("key")
    for batch in frame.to_arrow_iter():
        yield pa.Table.from_batches([batch])


@dataclass
class Judged:
    """What was decided of the texts of one role, in the order of their ids, while the texts wait in `runs`."""

    role: str
    runs: corpus.SortedRuns
    facts: pa.Table  # source, kind, encoding, masked, …: all that is not text
    reasons: Array  # of str; None for what is kept
    values: Array
    splits: Array  # of str
    histograms: rules_page.Histograms
    contaminated: Array  # of those not rejected for another reason, how many share words with each benchmark

    @property
    def kept(self) -> pa.Array:
        return pa.array([reason is None for reason in self.reasons], pa.bool_())

    def masked(self) -> Counter[str]:
        """How often each kind of personal data was masked in what is kept."""
        return Counter(self.facts.column("masked").filter(self.kept).combine_chunks().flatten().to_pylist())


def judge_documents(parts: Sequence[Path], cleaner: Cleaner, runs: Path, tick: Tick) -> Judged:
    """Decide of each raw document in the tables `parts`; the texts wait in the folder `runs`."""
    kept, inputs = ("id", "source", "genre", "text_kind"), ("content", "media_type", "text_kind", "title")
    batches = _run(parts, cleaner.documents, inputs, kept, _DOCUMENTS, cleaner.rules)
    judged = _collect("documents", batches, ("id", "source", "genre", "title", "text"), cleaner.rules, runs, tick)
    rows = _open(judged)
    facts = judged.facts.take(rows)
    exact = _exact(facts.column("fingerprint"))
    bands = np.column_stack([duplicates.matrix(facts.column("bands")), exact])
    stays = duplicates.representatives(
        duplicates.clusters(bands), facts.column("length").to_numpy(), np.arange(len(rows))
    )
    copies = np.flatnonzero(stays != np.arange(len(rows)))
    hashes = duplicates.matrix(facts.column("hashes"))
    same = exact[copies] == exact[stays[copies]]
    judged.reasons[rows[copies]] = np.where(same, "exact_duplicate", "near_duplicate")
    judged.values[rows[copies]] = np.where(same, 1.0, duplicates.similarities(hashes[copies], hashes[stays[copies]]))
    _contamination(judged, cleaner)
    judged.splits = judged.facts.column("split").to_numpy()
    return judged


def judge_instructions(parts: Sequence[Path], cleaner: Cleaner, runs: Path, tick: Tick) -> Judged:
    """Decide of each conversation in the tables `parts`; the conversations wait in the folder `runs`.

    Those with the same question, or nearly the same words, go to one split.
    """
    kept = ("id", "source", "register", "task")
    batches = _run(parts, cleaner.instructions, ("messages",), kept, _INSTRUCTIONS, cleaner.rules)
    judged = _collect("instructions", batches, (*kept, "messages", "text"), cleaner.rules, runs, tick)
    rows = _open(judged)
    first = pc.dictionary_encode(judged.facts.column("first").take(rows).combine_chunks()).indices.to_numpy()
    again = np.ones(len(rows), dtype=bool)
    again[np.unique(first, return_index=True)[1]] = False
    judged.reasons[rows[again]], judged.values[rows[again]] = "exact_duplicate", 1.0
    _contamination(judged, cleaner)
    rows = _open(judged)
    facts = judged.facts.take(rows)
    questions = facts.column("question").to_pylist()
    asked = pc.dictionary_encode(facts.column("question").combine_chunks()).indices.to_numpy()
    roots = duplicates.clusters(np.column_stack([duplicates.matrix(facts.column("bands")), asked]).astype(np.uint64))
    names: dict[int, str] = {}
    for root, question in zip(roots.tolist(), questions, strict=True):
        names[root] = min(names.get(root, question), question)
    rules = cleaner.rules
    for row, root in zip(rows.tolist(), roots.tolist(), strict=True):
        judged.splits[row] = corpus.split_of(names[root], cleaner.seed, rules.share_validation, rules.share_test)
    return judged


def _collect(
    role: str, batches: Iterable[pa.Table], texts: Sequence[str], rules: params.Clean, folder: Path, tick: Tick
) -> Judged:
    runs = corpus.SortedRuns(folder)
    histograms = rules_page.Histograms(rules.rules)
    collected = []
    for batch in batches:
        kinds = batch.column("text_kind") if "text_kind" in batch.column_names else ["instructions"] * batch.num_rows
        histograms.add(np.array(kinds), duplicates.matrix(batch.column("values")))
        runs.add(batch.select(texts))
        tick(batch.num_rows)
        # Taken, that is copied: a column of Daft's keeps the memory of its whole batch, so of the texts.
        facts = batch.drop_columns([*(set(texts) - {"source"}), "values"])
        collected.append(facts.take(np.arange(batch.num_rows)))
    order = runs.order()
    facts = pa.concat_tables(collected).take(order)
    reasons = np.array(facts.column("reason").to_pylist(), dtype=object)
    values = facts.column("value").to_numpy().copy()
    splits = np.full(len(reasons), "", dtype=object)
    return Judged(role, runs, facts, reasons, values, splits, histograms, np.zeros(0, dtype=np.int64))


def _open(judged: Judged) -> Array:
    """The rows that nothing has rejected so far."""
    return np.flatnonzero([reason is None for reason in judged.reasons])


def _exact(fingerprints: pa.ChunkedArray) -> Array:
    """The first 8 bytes of each fingerprint as a number: equal for exact duplicates."""
    whole = fingerprints.combine_chunks()
    return np.frombuffer(b"".join(value[:8] for value in whole.to_pylist()), dtype=np.uint64)


def _contamination(judged: Judged, cleaner: Cleaner) -> None:
    """Count what shares words with a benchmark and is not rejected yet; reject it if `clean.contamination` is drop."""
    rows = _open(judged)
    shared = judged.facts.column("shared").take(rows).to_pylist()
    counts = np.array(shared, dtype=np.int64).reshape(len(rows), len(cleaner.matcher.benchmarks))
    judged.contaminated = (counts > 0).sum(axis=0)
    if cleaner.rules.contamination == "drop":
        found = counts.sum(axis=1)
        judged.reasons[rows[found > 0]] = "contaminated"
        judged.values[rows] = np.where(found > 0, found, judged.values[rows])


def write(
    judged: Judged, schema: pa.Schema, clean: Path, rejects: corpus.TableWriter, examples: rules_page.Examples
) -> None:
    """Write what is kept to `clean`/train.parquet and so on, what is not with its reason to `rejects`."""
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(corpus.TableWriter(clean / f"{split}.parquet", schema))
            for split in corpus.SPLITS
        }
        start = 0
        for texts in judged.runs:
            end = start + texts.num_rows
            reasons, values, splits = (column[start:end] for column in (judged.reasons, judged.values, judged.splits))
            start = end
            kept = np.array([reason is None for reason in reasons], dtype=bool)
            for split, writer in writers.items():
                writer.add(texts.filter(pa.array(kept & (splits == split))).select(schema.names).cast(schema))
            columns = {
                "role": [judged.role] * len(texts),
                "reason": reasons,
                "value": np.round(values.astype(float), 4),
                "text": pc.utf8_slice_codeunits(texts.column("text"), 0, HEAD),
            }
            table = pa.table({"id": texts.column("id"), "source": texts.column("source"), **columns})
            rejected = table.filter(pa.array(~kept)).select(corpus.REJECTED.names).cast(corpus.REJECTED)
            rejects.add(rejected)
            for row in rejected.to_pylist():
                examples.add(row["id"], row["source"], row["reason"], row["value"], row["text"])
