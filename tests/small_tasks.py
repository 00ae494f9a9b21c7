"""lm_eval tasks of four items, as a user would write them, for the tests of evaluation."""

import json
from pathlib import Path

from wronai import benchmarks

YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{task}.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.0
"""
GENERATED = """\
task: talk
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/talk.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["\\nPytanie:"]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
metadata:
  version: 2.0
  register: formal
"""
TURNS = (
    YAML.replace('"{{{{question}}}}"', '"{{{{turns[0].content}}}} / {{{{turns[2].content}}}}"') + "  messages: turns\n"
)
RAW = YAML.replace('"{{{{question}}}}"', '"<polish><formal><question>{{{{question}}}}</question><answer>"').replace(
    "test_split: test", 'test_split: test\ntarget_delimiter: ""'
)
RAW += "  format: raw\n"


def bundle_of(root: Path, **tasks: str) -> Path:
    """A bundle of tasks of four items, as a user would write them."""
    folder = root / "tasks" / "mine"
    folder.mkdir(parents=True)
    for task, yaml in tasks.items():
        rows = [
            {
                "id": f"{task}-{number}",
                "question": f"Pytanie {number}?",
                "turns": [
                    {"role": "user", "content": f"Mam na imię Ala, a to jest {number}."},
                    {"role": "assistant", "content": "Dzień dobry."},
                    {"role": "user", "content": "Jak mam na imię?"},
                ],
                "choices": ["tak", "nie wiem"],
                "answer": number % 2,
            }
            for number in range(4)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
        (folder / f"{task}.yaml").write_text(yaml.format(task=task, folder=folder), encoding="utf-8")
    benchmarks.prepare(["mine"], root / "tasks", root / "fetched", root / "bundles")
    return root / "bundles" / "mine"
