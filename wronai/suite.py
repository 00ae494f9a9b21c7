"""Score the answers to the WronAI suite: what lm_eval calls as `process_results: !function` of benchmarks/tasks.

A score is a function of one item and of what the model said, a number from 0 to 1 of which more is better, and alike on
every run. An empty answer scores 0 in everything.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from wronai import language, register

Doc = Mapping[str, Any]
Scores = dict[str, float]

_BARE = str.maketrans("ąćęłńóśźżĄĆĘŁŃÓŚŹŻ", "acelnoszzACELNOSZZ")
_MAY_BE_MARKED = frozenset("acelnoszACELNOSZ")  # the letters that Polish writes with a diacritic too
_QUOTES = " \t\"'„”“”‚’«»`*"  # and the bold print of Markdown


def said(results: Sequence[str]) -> str:
    """The generated text, in composed characters, without the white space around it."""
    return unicodedata.normalize("NFC", results[0]).strip()


def restoration(doc: Doc, results: Sequence[str]) -> Scores:
    """How well the first line of the answer gives `text` the diacritics of `target`.

    `diacritics_acc` is the share that is right of the letters that have a diacritic or could have one (`a` as `ą`, `z`
    as `ź` and `ż`); an answer with other letters is aligned by the fewest edits of the bare letters. The items handed
    back unmarked have 78 % of these letters and 90 % of all characters right: read both beside `exact`. Quotes around
    a sentence are no part of it. Raises ValueError for a target in which no letter could have a diacritic.
    """
    answer, target = said(results).partition("\n")[0].strip(_QUOTES), doc["target"].strip(_QUOTES)
    places = right = 0
    bare = target.translate(_BARE)
    for edit in Levenshtein.opcodes(bare, answer.translate(_BARE)):
        for place in range(edit.src_start, edit.src_end):
            if bare[place] in _MAY_BE_MARKED:
                places += 1
                right += edit.tag == "equal" and target[place] == answer[place - edit.src_start + edit.dest_start]
    if not places:
        raise ValueError(f"{doc['target']!r}: no letter of it could have a diacritic; expected a sentence to restore")
    return {
        "exact": float(answer == target),
        "character_acc": Levenshtein.normalized_similarity(target, answer),
        "diacritics_acc": right / places,
    }


def register_formal(doc: Doc, results: Sequence[str]) -> Scores:
    """Whether the answer addresses the user formally (`register.detect`)."""
    return {"acc": float(register.detect(said(results)) == "formal")}


def register_informal(doc: Doc, results: Sequence[str]) -> Scores:
    """Whether the answer addresses the user informally (`register.detect`)."""
    return {"acc": float(register.detect(said(results)) == "informal")}


def with_contexts(docs: Any) -> Any:
    """A data set of {question, formal, informal} with the two prompts of each question, for lm_eval's multiple inputs.

    `contexts` are the question in the WronAI format, asked formally and informally, and `formal_at` is where the formal
    one stands: first in every other item, so that a model that cannot tell is right in half of them.
    """
    places = [place % 2 for place in range(len(docs))]
    contexts = [
        [
            f"<polish><{name}><question>{question}</question><answer>"
            for name in (("informal", "formal") if place else ("formal", "informal"))
        ]
        for question, place in zip(docs["question"], places, strict=True)
    ]
    return docs.add_column("contexts", contexts).add_column("formal_at", places)


def hygiene(doc: Doc, results: Sequence[str]) -> Scores:
    """Whether the answer is Polish (`is_polish`), and whether it repeats neither the question nor itself."""
    answer = said(results)
    is_new = bool(answer) and not repeats(doc["question"], answer)
    return {"polish": float(is_polish(answer)), "no_repeat": float(is_new)}


def is_polish(answer: str) -> bool:
    """Whether an answer is Polish, where a short one is unless it is clearly of another language.

    A text of 80 letters is Polish if `language` is surer of it than not. In a shorter one names count for nothing;
    letters that Polish lacks tell it foreign, and a letter as ą or ł tells it Polish. A number, a name and one common
    word can be of any language and so pass; two or more pass unless the confidence is below 0.05. Of the sentences of
    data/sample that are so short, 997 in 1,000 pass, and of runs of four English words 90 in 1,000. Of JSON only the
    values are read, since keys are English by custom.
    """
    found = loaded(answer)
    text = answer if found is None else "\n".join(values(found))
    letters = [letter for letter in text.lower() if letter.isalpha()]
    if not letters:
        return any(sign.isalnum() for sign in answer)
    if len(letters) >= language.SHORTEST_PARAGRAPH:
        return language.polish_confidence(text) >= 0.5
    if sum(letter > "ɏ" for letter in letters) * 2 > len(letters):  # the last of the Latin ones
        return False
    common = [word for word in re.findall(r"[^\W\d_]+", text) if word[0].islower()]
    if re.search(r"[ß-öø-ɏ](?<![óąćęłńśźżé])", "".join(common)):
        return False
    if len(common) < 2 or re.search(r"[ąęłńśźż]", "".join(common)):
        return True
    return language.polish_confidence(text) >= 0.05


def repeats(question: str, answer: str) -> bool:
    """Whether the answer holds the whole question, or one sentence three times or more; letters and digits count."""
    sentences_ = Counter(filter(None, map(plain, re.split(r"[.!?…]+(?:\s|$)|\n", answer))))
    return f" {plain(question)} " in f" {plain(answer)} " or any(count > 2 for count in sentences_.values())


def plain(text: str) -> str:
    """The words of a text in small letters, with one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


LIMITS = tuple(f"{end}_{unit}" for unit in ("items", "words", "sentences") for end in ("min", "max"))


def asking(docs: Any) -> Any:
    """The items of a data set that ask for a length or a format: those that `kept` can judge."""
    return docs.select(
        [place for place, doc in enumerate(docs) if any(doc[name] is not None for name in ("format", *LIMITS))]
    )


def kept(doc: Doc, results: Sequence[str]) -> Scores:
    """Whether the answer has the length and the format that the item asks for. Raises ValueError for another format.

    The items of a list are its lines that begin with a dash or a bullet, those of a numbered one its lines that begin
    with a number; a sentence before them, and the fence of code around JSON, do no harm.
    """
    answer = said(results)
    if doc["format"] not in (None, *FORMATS):
        raise ValueError(f"{doc['id']}: format is {doc['format']!r}; expected null or one of {', '.join(FORMATS)}")
    items = (_NUMBER if doc["format"] == "numbered" else _BULLET).findall(answer)
    counts = {"items": len(items), "words": len(words(answer)), "sentences": len(sentences(answer))}
    fits = all(
        (doc[f"min_{unit}"] or 0) <= count <= (math.inf if doc[f"max_{unit}"] is None else doc[f"max_{unit}"])
        for unit, count in counts.items()
    )
    formed = doc["format"] is None or FORMATS[doc["format"]](answer)
    return {"kept": float(bool(answer) and fits and formed)}


_BULLET = re.compile(r"^\s*[-–—•*·]\s+(?=\S)", re.M)
_NUMBER = re.compile(r"^\s*(\d+)[.)]\s+(?=\S)", re.M)


def _without_marks(answer: str) -> str:
    return _NUMBER.sub("", _BULLET.sub("", answer))


def words(answer: str) -> list[str]:
    """The words of an answer, without the marks of its lists; „biało-czerwony” and „3,5” are one each."""
    return re.findall(r"\w+(?:[-'’.,]\w+)*", _without_marks(answer))


# An end of a sentence is followed by what begins another or by nothing; the end of a line is one too.
_STOP = re.compile(r"[.!?…]+[”\"»)]*(?=\s+[^\sa-ząćęłńóśźż]|\s*$)|\n+")
_ABBREVIATIONS = ("al", "gen", "im", "inż", "m.in", "mgr", "np", "pl", "płk", "prof", "św", "tzn", "tzw", "ul")


def sentences(answer: str) -> list[str]:
    """The sentences of an answer, a line of a list being one. „ul. Długa” and „J. Nowak” end none."""
    text = _without_marks(answer)
    found, begin = [], 0
    for stop in _STOP.finditer(text):
        *_, last = ["", *text[begin : stop.start()].split()]
        initial = len(last) == 1 and last.isupper()
        if stop.group() == "." and stop.end() < len(text) and (initial or last.lower() in _ABBREVIATIONS):
            continue
        found.append(text[begin : stop.end()])
        begin = stop.end()
    return list(filter(plain, (*found, text[begin:])))


def loaded(answer: str) -> Any:
    """The object or the list that an answer is in JSON, fenced as code or not; None if it is something else."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):  # the latter from a model that writes nothing but brackets
        return None
    return found if isinstance(found, dict | list) else None


def values(found: Any) -> list[str]:
    """The texts that JSON holds, its keys left out."""
    if isinstance(found, dict | list):
        return [text for item in (found.values() if isinstance(found, dict) else found) for text in values(item)]
    return [found] if isinstance(found, str) else []


def _is_numbered(answer: str) -> bool:
    numbers = [int(number) for number in _NUMBER.findall(answer)]
    return len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1))


def _is_only(pattern: str) -> Callable[[str], bool]:
    """What tells whether an answer is this and nothing else but quotes and a stop."""
    whole = re.compile(pattern, re.IGNORECASE)
    return lambda answer: whole.fullmatch(answer.strip(_QUOTES + ".!")) is not None


FORMATS: dict[str, Callable[[str], bool]] = {
    "list": lambda answer: len(_BULLET.findall(answer)) > 1,
    "numbered": _is_numbered,
    "one_word": _is_only(r"[^\W\d_]+(?:-[^\W\d_]+)*"),
    "number": _is_only(r"[-−–]?\d+(?:[ \u00a0]\d{3})*(?:[.,]\d+)?"),
    "yes_no": _is_only("tak|nie"),
    "json": lambda answer: isinstance(loaded(answer), dict),
    "single_sentence": lambda answer: len(sentences(answer)) == 1,
}
