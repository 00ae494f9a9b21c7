"""What a benchmark gives without a language model: by chance, by the majority class, by character n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from wronai.benchmarks import Item

NGRAMS = (1, 4)  # characters, within words


def floors(asked: Sequence[Item], labelled: Sequence[Item], shots: Sequence[Sequence[Item]]) -> dict[str, float]:
    """Accuracy over the items `asked`, of choices, by what needs no language model.

    `chance`: guessing. Where every item has the same choices also `majority`: the commonest right choice of `labelled`
    (a training split, or the items themselves where there is none), and with few-shot examples `ngrams`: logistic
    regression over TF-IDF of character n-grams, for each item trained on the very examples in `shots` that a model sees
    before it.
    """
    found = {"chance": float(np.mean([_share_right(item) for item in asked]))}
    if len({item.choices for item in (*asked, *labelled)}) > 1 or any(isinstance(item.gold, tuple) for item in asked):
        return found
    commonest, _ = min(Counter(item.gold for item in labelled).items(), key=lambda pair: (-pair[1], str(pair[0])))
    found["majority"] = float(np.mean([item.gold == commonest for item in asked]))
    if shots and all(shots):
        found["ngrams"] = float(np.mean(_classified(asked, shots)))
    return found


def _share_right(item: Item) -> float:
    return (len(item.gold) if isinstance(item.gold, tuple) else 1) / len(item.choices)


def _classified(asked: Sequence[Item], shots: Sequence[Sequence[Item]]) -> list[bool]:
    """Whether each item is classified right after the examples before it."""
    trained: dict[tuple[Item, ...], Any] = {}
    right = []
    for item, examples in zip(asked, shots, strict=True):
        key = tuple(examples)
        if key not in trained:
            trained[key] = _train([example.text for example in examples], [example.gold for example in examples])
        right.append(trained[key]([item.text])[0] == item.gold)
    return right


def _train(texts: Sequence[str], labels: Sequence[Any]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(set(labels)) == 1:
        return lambda asked: [labels[0]] * len(asked)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, sublinear_tf=True)
    return make_pipeline(vectorizer, LogisticRegression(C=100.0, max_iter=1000)).fit(texts, labels).predict
