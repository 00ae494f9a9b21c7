"""Score a model: lm_eval's benchmarks, bits per byte with paired intervals, and answers to read."""

from __future__ import annotations

import logging
import lzma
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from wronai import params, prompt
from wronai.progress import Progress


def benchmarks(model: Any, tokenizer: Any, settings: params.Evaluate, seed: int, *, chat: bool) -> pd.DataFrame:
    """Each item of `settings.tasks` as lm_eval scores it, in the columns task, item, metric, value; a row a metric.

    With `chat` the question is asked through the tokenizer's chat template, else as plain text. Data sets are read
    afresh: lm_eval's cache goes by path and time stamp. Raises ValueError for a task that `include_path` does not hold.
    """
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        import datasets
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        datasets.config.HF_DATASETS_CACHE = Path(cache)
        datasets.disable_progress_bars()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager = TaskManager(include_path=settings.include_path, include_defaults=False)
        if unknown := [task for task in settings.tasks if task not in manager.all_tasks]:
            raise ValueError(
                f"evaluate.tasks: {settings.include_path} has no task {', '.join(unknown)}; it has "
                f"{', '.join(sorted(manager.all_tasks)) or 'none'}"
            )
        results = simple_evaluate(
            model=HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, max_length=settings.max_length
            ),
            tasks=list(settings.tasks),
            num_fewshot=settings.num_fewshot,
            apply_chat_template=chat,
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    rows = [
        {
            "task": task,
            "item": sample["doc"].get("id", str(sample["doc_id"])),
            "metric": metric,
            "value": float(sample[metric]),
        }
        for task, samples in results["samples"].items()
        for sample in samples
        for metric in sample["metrics"]
    ]
    return pd.DataFrame(rows).sort_values(["task", "metric", "item"], ignore_index=True)


def compare(base: pd.DataFrame, tuned: pd.DataFrame) -> dict[str, dict[str, dict[str, float | int]]]:
    """By task and metric: mean and standard error of both models over the same items, and of the paired difference."""
    both = paired(base, tuned, ["task", "item", "metric"])
    found: dict[str, dict[str, dict[str, float | int]]] = {}
    for (task, metric), rows in both.groupby(["task", "metric"]):
        before, after = (rows[f"value_{name}"].to_numpy(np.float64) for name in ("base", "tuned"))
        entry: dict[str, float | int] = {"items": len(rows)}
        for name, values in (("base", before), ("tuned", after), ("difference", after - before)):
            entry[name] = float(values.mean())
            entry[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values)))
        found.setdefault(str(task), {})[str(metric)] = entry
    return found


def paired(base: pd.DataFrame, tuned: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """A row for each thing that both were scored on. Raises ValueError if one was scored on more than the other."""
    both = base.merge(tuned, on=on, suffixes=("_base", "_tuned"), validate="one_to_one")
    if not len(both) == len(base) == len(tuned):
        raise ValueError(
            f"base and tuned were not scored on the same: {len(base)} and {len(tuned)} rows, {len(both)} of them agree "
            f"in {', '.join(on)}"
        )
    return both


@torch.no_grad()
def nats(model: Any, context: Sequence[int], target: Sequence[int], max_length: int) -> float:
    """Negative log-likelihood in nats of the ids `target` after the ids `context`, which must not be empty.

    What does not fit into `max_length` positions is scored in windows that overlap by half, so that every token but
    the first ones has at least half a window before it.
    """
    ids, total, done = [*context, *target], 0.0, len(context)
    while done < len(ids):
        start = max(0, min(done - max_length // 2, len(ids) - max_length))
        window = torch.tensor([ids[start : start + max_length]], device=model.device)
        logprobs = model(input_ids=window, use_cache=False).logits[0].float().log_softmax(-1)
        end = start + window.shape[1]
        scored = torch.arange(done, end, device=model.device)
        total -= float(logprobs[scored - 1 - start, window[0, scored - start]].sum())
        done = end
    return total


def sample(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` of the `rows`, or all if there are fewer, drawn by `seed`: rows come sorted, so the first are alike."""
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:count]
    return [rows[row] for row in drawn]


def score_documents(model: Any, tokenizer: Any, documents: Sequence[dict[str, Any]], max_length: int) -> pd.DataFrame:
    """Columns id, nats, bytes: each text after the begin token, with its UTF-8 bytes.

    Without a begin token the end token stands before it, as between the documents of a base that has none.
    """
    begin = tokenizer.eos_token_id if tokenizer.bos_token is None else tokenizer.bos_token_id
    sizes = [len(document["text"].encode()) for document in documents]
    progress = Progress("documents", sum(sizes), "bytes")
    rows = []
    for document, size in zip(documents, sizes, strict=True):
        ids = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
        rows.append((document["id"], nats(model, [begin], ids, max_length), size))
        progress.add(size)
    progress.close()
    return pd.DataFrame(rows, columns=["id", "nats", "bytes"])


def score_answers(
    model: Any, tokenizer: Any, examples: Sequence[dict[str, Any]], max_length: int, *, chat: bool
) -> pd.DataFrame:
    """Columns id, nats, bytes: the words of the answers in each conversation, after all that comes before them.

    With `chat` in the WronAI format, else as plain text („Pytanie: …, „Odpowiedź: …). The tokens that close an answer
    are scored in neither, since a base has nothing to close.
    """
    progress = Progress("answers", len(examples), "conversations")
    rows = []
    for example in examples:
        total, size = 0.0, 0
        for end in range(2, len(example["messages"]) + 1, 2):
            turns, answer = example["messages"][: end - 1], example["messages"][end - 1]["content"]
            before = asked(tokenizer, turns, example["register"], chat=chat)
            spoken = answer if chat else f" {answer}"
            context, both = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + spoken)
            )
            target = both[len(context) :]  # by itself a tokenizer might give it a leading space of its own
            context = context[-max(1, max_length - len(target)) :]
            total += nats(model, context, target, max_length)
            size += len(answer.encode())
        rows.append((example["id"], total, size))
        progress.add(1)
    progress.close()
    return pd.DataFrame(rows, columns=["id", "nats", "bytes"])


def asked(tokenizer: Any, turns: Sequence[prompt.Message], register: prompt.Register, *, chat: bool) -> str:
    """The text after which an answer to the last of `turns` comes: in the WronAI format with `chat`, else plain."""
    if not chat:
        return (tokenizer.bos_token or "") + plain(turns)
    return str(tokenizer.apply_chat_template(turns, register=register, add_generation_prompt=True, tokenize=False))


def plain(turns: Sequence[prompt.Message]) -> str:
    """A conversation that ends with a question, as text for a model that knows no chat template."""
    lines = [("Pytanie: " if turn["role"] == "user" else "Odpowiedź: ") + turn["content"] for turn in turns]
    return "\n".join([*lines, "Odpowiedź:"])


def bits_per_byte(scores: pd.DataFrame) -> float:
    """Bits that the model needs for each byte of all texts together; comparable between tokenizers."""
    return float(scores["nats"].sum() / math.log(2) / scores["bytes"].sum())


def compare_bits(base: pd.DataFrame, tuned: pd.DataFrame, resamples: int, seed: int) -> dict[str, float | int]:
    """Bits per byte of both models on the same texts, and the 95 % interval of the difference, tuned less base.

    The interval is a percentile bootstrap that resamples texts, keeping each text's two scores together.
    """
    both = paired(base, tuned, ["id", "bytes"])
    columns = [both[name].to_numpy(np.float64) for name in ("nats_base", "nats_tuned", "bytes")]
    draws = np.random.Generator(np.random.PCG64(seed)).integers(0, len(both), (resamples, len(both)))
    in_base, in_tuned, size = (column[draws].sum(axis=1) for column in columns)
    low, high = np.percentile((in_tuned - in_base) / size / math.log(2), [2.5, 97.5])
    before, after = bits_per_byte(base), bits_per_byte(tuned)
    return {
        "texts": len(both),
        "bytes": int(columns[2].sum()),
        "base": before,
        "tuned": after,
        "difference": after - before,
        "difference_low": float(low),
        "difference_high": float(high),
        "relative": after / before - 1,
    }


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """What `xz -9` needs for each byte of the texts, one after another: a floor for a model worth tuning."""
    data = "\n\n".join(texts).encode()
    return len(lzma.compress(data, preset=9)) * 8 / len(data)


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompts: Sequence[str], settings: params.Evaluate, seed: int) -> list[list[int]]:
    """The ids that `model` generates after each of `prompts`, up to and with its end token, padding left out."""
    torch.manual_seed(seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # it stands on the left and is masked
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else {}
    progress = Progress("answering", len(prompts), "questions")
    answers: list[list[int]] = []
    for start in range(0, len(prompts), settings.batch_size):
        batch = tokenizer(
            list(prompts[start : start + settings.batch_size]),
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        batch.pop("token_type_ids", None)
        out = model.generate(
            **batch,
            max_new_tokens=settings.max_new_tokens,
            do_sample=settings.do_sample,
            repetition_penalty=settings.repetition_penalty,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            answers.append(row[:end])
        progress.add(len(batch["input_ids"]))
    progress.close()
    return answers


def is_closed(ids: Sequence[int], tokenizer: Any, register: prompt.Register) -> bool:
    """Whether an answer ends as the format wants, with each closing token once: `</answer>…</polish>` and the end."""
    wrapped = [f"</{register}>"] if register != "neutral" else []
    closing = tokenizer.convert_tokens_to_ids([prompt.ANSWER_END, *wrapped, "</polish>", tokenizer.eos_token])
    own = set(tokenizer.convert_tokens_to_ids([*prompt.TOKENS, tokenizer.eos_token]))
    return bool([token for token in ids if token in own] == closing == list(ids[-len(closing) :]))
