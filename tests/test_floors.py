from collections.abc import Sequence

import numpy as np
import pytest

from wronai import floors
from wronai.benchmarks import Item

YES_NO = ("tak", "nie")
SPORT, WEATHER = ("mecz", "bramka", "trener", "liga"), ("deszcz", "mróz", "upał", "wichura")


def item(number: int, gold: int | tuple[int, ...], text: str = "", choices: tuple[str, ...] = YES_NO) -> Item:
    return Item(str(number), text or f"Pytanie {number}?", choices, gold)


def headlines(words: Sequence[Sequence[str]], start: int = 0) -> list[Item]:
    """One for each word, of the class that is the place of its list."""
    pairs = [(word, gold) for gold, of_class in enumerate(words) for word in of_class]
    return [item(start + number, gold, f"Jutro {word}?") for number, (word, gold) in enumerate(pairs)]


def test_chance_is_the_share_of_choices_that_are_right() -> None:
    four = tuple("abcd")
    asked = [item(0, 0), item(1, 1, choices=four), item(2, (0, 3), choices=four)]
    assert floors.floors(asked, asked, []) == {"chance": pytest.approx((1 / 2 + 1 / 4 + 2 / 4) / 3)}


def test_the_majority_is_that_of_the_training_split() -> None:
    asked = [item(number, gold) for number, gold in enumerate([0, 0, 0, 1])]
    labelled = [item(number, gold) for number, gold in enumerate([1, 1, 0])]
    assert floors.floors(asked, labelled, []) == {"chance": 0.5, "majority": 0.25}


def test_without_a_training_split_the_majority_is_that_of_the_items() -> None:
    asked = [item(number, gold) for number, gold in enumerate([0, 0, 0, 1])]
    assert floors.floors(asked, asked, []) == {"chance": 0.5, "majority": 0.75}


def test_of_classes_as_common_the_first_is_the_majority_in_any_order() -> None:
    asked = [item(0, 0), item(1, 1), item(2, 1)]
    for golds in ([0, 1], [1, 0]):
        labelled = [item(number, gold) for number, gold in enumerate(golds)]
        assert floors.floors(asked, labelled, [])["majority"] == pytest.approx(1 / 3)


def test_items_with_choices_of_their_own_have_no_classes() -> None:
    asked = [item(0, 0), item(1, 0, choices=("pies", "kot"))]
    assert floors.floors(asked, asked, [[item(2, 0)]] * 2) == {"chance": 0.5}


def test_a_training_split_with_other_choices_tells_no_majority() -> None:
    asked = [item(0, 0), item(1, 0)]
    assert floors.floors(asked, [item(0, 0, choices=("nie", "tak"))], []) == {"chance": 0.5}


def test_several_right_answers_are_no_class() -> None:
    asked = [item(0, (0,)), item(1, (0, 1))]
    assert floors.floors(asked, asked, [[item(2, 0)]] * 2) == {"chance": pytest.approx(0.75)}


@pytest.mark.parametrize("shots", [[], [[], []], [[item(2, 0)], []]])
def test_without_examples_before_each_item_nothing_is_learnt(shots: list[list[Item]]) -> None:
    assert set(floors.floors([item(0, 0), item(1, 1)], [item(0, 0)], shots)) == {"chance", "majority"}


def test_what_letters_tell_is_learnt_from_the_examples() -> None:
    asked = headlines([["mecze", "bramki", "ligą"], ["deszczu", "mrozy", "upały"]], start=100)
    found = floors.floors(asked, asked, [headlines([SPORT, WEATHER])] * len(asked))
    assert found == {"chance": 0.5, "majority": 0.5, "ngrams": 1.0}


def test_labels_the_other_way_round_are_learnt_as_they_are() -> None:
    asked = headlines([["mecze", "bramki", "ligą"], ["deszczu", "mrozy", "upały"]], start=100)
    assert floors.floors(asked, asked, [headlines([WEATHER, SPORT])] * len(asked))["ngrams"] == 0.0


def test_each_item_is_classified_by_its_own_examples() -> None:
    asked = headlines([["mecze", "bramki"], ["deszczu", "mrozy"]], start=100)
    right, wrong = headlines([SPORT, WEATHER]), headlines([WEATHER, SPORT])  # of the same ids
    assert floors.floors(asked, asked, [right, wrong, right, right])["ngrams"] == 0.75


def test_examples_of_one_class_foretell_it_alone() -> None:
    asked = headlines([["mecze"], ["deszczu", "mrozy", "upały"]], start=100)
    assert floors.floors(asked, asked, [headlines([SPORT])] * 4)["ngrams"] == 0.25
    assert floors.floors(asked, asked, [[item(0, 1)]] * 4)["ngrams"] == 0.75


def test_more_than_two_classes_are_told_apart() -> None:
    words = [SPORT, WEATHER, ("obiad", "zupa", "pierogi", "sernik")]
    three = tuple("abc")
    shots = [Item(each.id, each.text, three, each.gold) for each in headlines(words)]
    asked = [
        item(100 + number, gold, f"Jutro {word}?", three)
        for number, (word, gold) in enumerate([("zupy", 2), ("ligi", 0)])
    ]
    found = floors.floors(asked, asked, [shots] * 2)
    assert (found["chance"], found["ngrams"]) == (pytest.approx(1 / 3), 1.0)


def test_floors_repeat_and_are_plain_numbers() -> None:
    asked = headlines([["mecze", "deszcze"], ["bramek", "mrozów"]], start=100)
    shots = [headlines([SPORT, WEATHER])] * 4
    found = floors.floors(asked, asked, shots)
    assert found == floors.floors(asked, asked, shots)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())
