"""Score one model: lm_eval's benchmarks item by item, nats of held-out texts, and answers to held-out questions."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from wronai import benchmarks, engines, files, floors, params, prefixes, prompt

Format = Literal["plain", "wronai"]
LABELLED = 5000  # training items that are enough to know the commonest class
SCORES, ITEMS, SUMMARY = "scores.parquet", "items.parquet", "summary.json"


@dataclass
class Scored:
    """What a model scored on the tasks of a bundle.

    `scores`: a row for each task, format, metric and item. `items`: what was asked and said, a row for each task,
    format and item. `summary`: for each task its version, number of examples, metrics and what went wrong how often.
    """

    scores: pd.DataFrame
    items: pd.DataFrame
    summary: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write all of it to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.scores.to_parquet(folder / SCORES, index=False)
        self.items.to_parquet(folder / ITEMS, index=False)
        files.write_json(folder / SUMMARY, self.summary)


def score_bundle(
    engine: Any, bundle: Path, settings: params.Scoring, num_fewshot: int | None, seed: int, formats: Sequence[Format]
) -> Scored:
    """Ask `engine` every item of the tasks in `bundle` (or `settings.limit` of each), once in each of `formats`.

    Before each item stand `num_fewshot` examples, or with None as many as its task says.

    In the WronAI format the question goes through the chat template, in the register that the task's metadata names,
    and a conversation as its turns; a task of `format: raw` writes the format itself. What is generated is greedy.
    """
    with benchmarks.fresh_cache():
        tasks = benchmarks.load(bundle)
        for task in tasks.values():
            benchmarks.check_shots(task, num_fewshot)
        parts = []
        for format_ in formats:
            for (register, raw), names in _alike(tasks, format_).items():
                if raw and format_ == "plain" and "wronai" in formats:
                    continue  # asked in the WronAI format whatever the format: once is enough
                engine.register = register
                engine.turns = _turns([tasks[name] for name in names]) if format_ == "wronai" else {}
                engine.too_long, engine.generated = set(), {}
                results = _evaluate(
                    engine,
                    [tasks[name] for name in names],
                    settings.limit,
                    num_fewshot,
                    seed,
                    chat=format_ == "wronai" and not raw,
                )
                parts.append((format_, results, engine.too_long, engine.generated))
        found = _gathered(tasks, parts, benchmarks.manifest(bundle)["tasks"], seed)
        for name, entry in found.summary.items():
            entry["floors"] = _floors(tasks[name], num_fewshot, settings.limit, seed)
    return found


def _floors(task: Any, num_fewshot: int | None, limit: int | None, seed: int) -> dict[str, float]:
    """What needs no language model for a task of choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return {}
    docs = list(zip(range(limit or len(task.eval_docs)), task.eval_docs, strict=False))
    asked = [benchmarks.item_of(task, doc, number, task.config.task) for number, doc in docs]
    if len({item.choices for item in asked}) > 1:
        return floors.floors(asked, asked, [])
    return floors.floors(
        asked, benchmarks.labelled(task, LABELLED), benchmarks.examples(task, num_fewshot, limit, seed)
    )


def _alike(tasks: dict[str, Any], format_: Format) -> dict[tuple[prompt.Register, bool], list[str]]:
    """The names of the tasks by the register that they are asked in, and whether they write the format themselves."""
    found: dict[tuple[prompt.Register, bool], list[str]] = {}
    for name, task in tasks.items():
        told = task.config.metadata or {}
        register: prompt.Register = told.get("register", "neutral") if format_ == "wronai" else "neutral"
        found.setdefault((register, told.get("format") == "raw"), []).append(name)
    return found


def _turns(tasks: Sequence[Any]) -> dict[str, Sequence[prompt.Message]]:
    """The conversations of tasks whose metadata names a column of messages, by the plain text that lm_eval asks."""
    return {
        task.doc_to_text(doc): doc[column]
        for task in tasks
        if (column := (task.config.metadata or {}).get("messages"))
        for doc in task.eval_docs
    }


def _evaluate(
    engine: Any, tasks: Sequence[Any], limit: int | None, num_fewshot: int | None, seed: int, *, chat: bool
) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"do_sample": False, "temperature": 0.0}, update=True)
    found: dict[str, Any] = simple_evaluate(
        model=engine,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return found


def _gathered(
    tasks: dict[str, Any],
    parts: Sequence[tuple[Format, dict[str, Any], set[str], dict[str, engines.Generation]]],
    described: dict[str, Any],
    seed: int,
) -> Scored:
    scores: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for format_, results, too_long, generated in parts:
        for name, samples in results["samples"].items():
            metrics = [key.split(",")[0] for key in results["results"][name] if "," in key and "_stderr" not in key]
            entry = summary.setdefault(
                name,
                {
                    "version": str(results["versions"][name]),
                    "num_fewshot": results["n-shot"][name],
                    "seed": seed,
                    "items": results["n-samples"][name]["effective"],
                    "items_of_task": described[name]["items"],
                    "leading": _leading(tasks[name], metrics),
                    "higher_is_better": {
                        metric: bool(better) for metric, better in results["higher_is_better"][name].items()
                    },
                    "formats": {},
                },
            )
            rows = [_item(name, format_, sample, too_long, generated) for sample in samples]
            items += rows
            scores += [
                {
                    "task": name,
                    "format": format_,
                    "metric": _metric(metric, sample["filter"]),
                    "item": row["item"],
                    "value": float(sample[metric]),
                }
                for row, sample in zip(rows, samples, strict=True)
                for metric in sample["metrics"]
                if isinstance(sample[metric], int | float | np.number)
            ]
            entry["formats"][format_] = _counted(rows)
    frame = pd.DataFrame(scores).sort_values(["task", "format", "metric", "item"], ignore_index=True)
    return Scored(frame, pd.DataFrame(items).sort_values(["task", "format", "item"], ignore_index=True), summary)


def _metric(name: str, of: str) -> str:
    """A metric's name, with the filter of lm_eval that it was computed after where there is one."""
    return name if of == "none" else f"{name},{of}"


def _leading(task: Any, metrics: Sequence[str]) -> str:
    """The metric that stands for a task in a mean: the first that its YAML lists."""
    listed = [entry["metric"] for entry in task.config.metric_list or [] if isinstance(entry["metric"], str)]
    return next((metric for metric in listed if metric in metrics), metrics[0])


def _item(
    task: str, format_: Format, sample: dict[str, Any], too_long: set[str], generated: dict[str, engines.Generation]
) -> dict[str, Any]:
    contexts = [arguments[0] for arguments in sample["arguments"]]
    said = generated.get(contexts[0])
    likelihoods = [float(answer[0]) for answer in sample["filtered_resps"] if isinstance(answer, list | tuple)]
    return {
        "task": task,
        "format": format_,
        "item": benchmarks.item_id(sample["doc"], sample["doc_id"]),
        "doc": json.dumps(sample["doc"], ensure_ascii=False, default=str),
        "prompt": contexts[0],
        "target": str(sample["target"]),
        "loglikelihoods": likelihoods,  # nats, of each choice
        "prediction": int(np.argmax(likelihoods)) if likelihoods else None,
        "answer": said.text if said else None,
        "tokens": said.tokens if said else None,
        "ended": said.ended if said else None,
        "closed": said.closed if said and format_ == "wronai" else None,
        "cut": any(context in too_long for context in contexts),
    }


def _counted(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many items were cut to fit into the context, and how many answers did not end, or not close."""
    found = {"cut": sum(row["cut"] for row in rows)}
    if any(row["ended"] is not None for row in rows):
        found["not_ended"] = sum(row["ended"] is False for row in rows)
    if any(row["closed"] is not None for row in rows):
        found["not_closed"] = sum(row["closed"] is False for row in rows)
    return found


def windows(ids: Sequence[int], first: int, max_length: int) -> list[prefixes.Request]:
    """Requests of at most `max_length` ids that score each of `ids` from `first` on once.

    What does not fit into one is scored in windows that overlap by half, so that every token but the first ones has at
    least half a window before it. `first` is at least 1.
    """
    found, done = [], first
    while done < len(ids):
        start = max(0, min(done - max_length // 2, len(ids) - max_length))
        end = min(start + max_length, len(ids))
        found.append(prefixes.Request(tuple(ids[start:end]), done - start))
        done = end
    return found


def nats(engine: Any, texts: Sequence[tuple[Sequence[int], int]], max_length: int, what: str) -> list[float]:
    """Negative log-likelihood in nats of the ids of each text from a place on, after all before it."""
    asked = [windows(ids, first, max_length) for ids, first in texts]
    found = iter(engine.score([window for of_text in asked for window in of_text], what, "windows"))
    return [-sum(next(found)[0] for _ in of_text) for of_text in asked]


def score_documents(engine: Any, documents: Sequence[dict[str, Any]], max_length: int) -> pd.DataFrame:
    """Columns source, id, nats, bytes: each text after the begin token, with its UTF-8 bytes.

    Without a begin token the end token stands before it, as between the documents of a base that has none.
    """
    tokenizer = engine.tokenizer
    begin = tokenizer.eos_token_id if tokenizer.bos_token is None else tokenizer.bos_token_id
    texts = [([begin, *tokenizer(row["text"], add_special_tokens=False)["input_ids"]], 1) for row in documents]
    return pd.DataFrame(
        {
            "source": [row["source"] for row in documents],
            "id": [row["id"] for row in documents],
            "nats": nats(engine, texts, max_length, "documents"),
            "bytes": [len(row["text"].encode()) for row in documents],
        }
    )


def score_answers(engine: Any, examples: Sequence[dict[str, Any]], max_length: int, *, chat: bool) -> pd.DataFrame:
    """Columns source, id, nats, bytes: the words of the answers in each conversation, after all that comes before them.

    With `chat` in the WronAI format, else as plain text („Pytanie: …, „Odpowiedź: …). The tokens that close an answer
    are scored in neither, since a base has nothing to close.
    """
    tokenizer = engine.tokenizer
    texts: list[tuple[Sequence[int], int]] = []
    owners: list[int] = []
    sizes = [0] * len(examples)
    for number, example in enumerate(examples):
        for end in range(2, len(example["messages"]) + 1, 2):
            turns, answer = example["messages"][: end - 1], example["messages"][end - 1]["content"]
            before = engines.asked(tokenizer, turns, example["register"], chat=chat)
            spoken = answer if chat else f" {answer}"
            context, both = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + spoken)
            )
            # the whole text's ids: an answer by itself might be given a leading space of its own
            room = max(1, max_length - (len(both) - len(context)))
            start = max(0, len(context) - room)
            texts.append((both[start:], len(context) - start))
            owners.append(number)
            sizes[number] += len(answer.encode())
    totals = [0.0] * len(examples)
    for number, found in zip(owners, nats(engine, texts, max_length, "answers"), strict=True):
        totals[number] += found
    return pd.DataFrame(
        {
            "source": [row["source"] for row in examples],
            "id": [row["id"] for row in examples],
            "nats": totals,
            "bytes": sizes,
        }
    )


def exchanged(examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each conversation with the questions of another, of the same register and number of turns, before its answers.

    One that has no such other is left out.
    """
    alike: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for example in examples:
        alike.setdefault((example["register"], len(example["messages"])), []).append(example)
    return [
        {
            **example,
            "messages": [
                own if own["role"] == "assistant" else others
                for own, others in zip(example["messages"], other["messages"], strict=True)
            ],
        }
        for of_kind in alike.values()
        if len(of_kind) > 1
        for example, other in zip(of_kind, [*of_kind[1:], of_kind[0]], strict=True)
    ]


def answer(
    engine: Any,
    questions: Sequence[tuple[Sequence[prompt.Message], prompt.Register]],
    settings: params.Answers,
    seed: int,
    *,
    chat: bool,
    greedy: bool,
) -> list[engines.Generation]:
    """What the model answers to each (turns, register), sampled as `settings` say, or `greedy`."""
    how: dict[str, Any] = {
        "max_gen_toks": settings.max_new_tokens,
        "until": [] if chat else ["\nPytanie:"],
        "repetition_penalty": settings.repetition_penalty,
        "do_sample": settings.do_sample and not greedy,
    }
    if how["do_sample"]:
        how |= {"temperature": settings.temperature, "top_p": settings.top_p}
    asked = [(engines.asked(engine.tokenizer, turns, register, chat=chat), how) for turns, register in questions]
    torch.manual_seed(seed)
    found: list[engines.Generation] = engine.generate(asked)
    return found


def sample(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` of the `rows`, or all if there are fewer, drawn by `seed`: rows come sorted, so the first are alike."""
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:count]
    return [rows[row] for row in drawn]


def some(documents: Sequence[dict[str, Any]], max_bytes: int | None, limit: int | None) -> list[dict[str, Any]]:
    """Of each source the documents that come first by a hash of their text, up to `max_bytes` and `limit` of them.

    A document that would go beyond `max_bytes` is left out, and so are those after it; the first is always taken.
    """
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in documents:
        by_source.setdefault(row["source"], []).append(row)
    kept: list[dict[str, Any]] = []
    for _, rows in sorted(by_source.items()):
        size = 0
        order = sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).digest())
        for place, row in enumerate(order[:limit]):
            size += len(row["text"].encode())
            if place and max_bytes is not None and size > max_bytes:
                break
            kept.append(row)
    return kept


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """What `xz -9` needs for each byte of the texts, one after another: a floor for a model worth tuning."""
    data = "\n\n".join(texts).encode()
    return len(lzma.compress(data, preset=9)) * 8 / len(data)
