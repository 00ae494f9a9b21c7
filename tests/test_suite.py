import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from wronai import prompt, suite

ROOT = Path(__file__).parent.parent
TASKS = sorted(
    path
    for entry in ("language", "understanding", "generation")
    for path in (ROOT / "benchmarks" / "tasks" / entry).glob("*.yaml")
)

TEXT, TARGET = "Zolty zuk spi na lisciu.", "Żółty żuk śpi na liściu."
FORMAL, INFORMAL = "Niech pani najpierw zakręci wodę.", "Najpierw zakręć wodę."
UNASKED = {"format": None, **dict.fromkeys(suite.LIMITS)}


def restored(answer: str, target: str = TARGET) -> suite.Scores:
    return suite.restoration({"text": TEXT, "target": target}, [answer])


def kept(answer: str, **asked: Any) -> float:
    return suite.kept({"id": "x", "question": "?", **UNASKED, **asked}, [answer])["kept"]


def hygienic(answer: str, question: str = "Po co pies merda ogonem?") -> suite.Scores:
    return suite.hygiene({"question": question, **UNASKED}, [answer])


def test_a_restored_sentence_scores_one_in_everything() -> None:
    assert set(restored(TARGET).values()) == {1.0}


@pytest.mark.parametrize(
    "answer", [f"\n  „{TARGET}”  \n\nPoprawiłem pięć słów.", f"**{TARGET}**", "Z\u0307o\u0301łty" + TARGET[5:]]
)
def test_quotes_further_lines_and_decomposed_letters_do_no_harm(answer: str) -> None:
    assert restored(answer)["exact"] == 1


def test_quotes_that_the_sentence_has_itself_are_no_difference() -> None:
    assert restored("„Śpij” – rzekła.", target="„Śpij” – rzekła.")["exact"] == 1


def test_a_sentence_handed_back_unmarked_is_right_in_the_letters_that_need_no_mark() -> None:
    scores = restored("Łoś je", target="Łoś je")
    assert scores["diacritics_acc"] == 1
    scores = restored("Los je", target="Łoś je")
    assert scores == {"exact": 0, "character_acc": pytest.approx(4 / 6), "diacritics_acc": pytest.approx(2 / 4)}


def test_a_needless_diacritic_counts_as_much_as_a_missing_one() -> None:
    assert restored("Łoś ję", target="Łoś je")["diacritics_acc"] == pytest.approx(3 / 4)


def test_an_answer_with_other_letters_is_aligned() -> None:
    assert restored("Oto: Łoś je", target="Łoś je")["diacritics_acc"] == 1
    assert restored("Łoś pije", target="Łoś je")["diacritics_acc"] == 1
    assert restored("Łoś", target="Łoś je")["diacritics_acc"] == pytest.approx(3 / 4)


def test_no_answer_restores_nothing() -> None:
    assert set(restored(" \n").values()) == {0.0}


def test_a_target_that_has_nothing_to_restore_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'Tu by'.*no letter"):
        restored("Tu by", target="Tu by")


def test_register_is_right_only_where_it_is_the_asked_one() -> None:
    formal = "Proszę Pana, czy mógłby Pan zamknąć okno? Dziękuję Panu."
    informal = "Hej, zamknij okno, jeśli możesz. Dzięki, że mi pomagasz!"
    assert suite.register_formal({}, [formal]) == suite.register_informal({}, [informal]) == {"acc": 1.0}
    assert suite.register_formal({}, [informal]) == suite.register_informal({}, [formal]) == {"acc": 0.0}
    assert suite.register_formal({}, [""]) == suite.register_informal({}, [""]) == {"acc": 0.0}


def test_contexts_are_what_the_wronai_format_has_before_an_answer() -> None:
    rows = [{"question": f"Pytanie {number}?", "formal": FORMAL, "informal": INFORMAL} for number in range(4)]
    docs = suite.with_contexts(datasets.Dataset.from_list(rows))
    assert docs["formal_at"] == [0, 1, 0, 1]
    for doc in docs:
        registers: tuple[prompt.Register, ...] = ("informal", "formal") if doc["formal_at"] else ("formal", "informal")
        for context, register in zip(doc["contexts"], registers, strict=True):
            messages = [{"role": "user", "content": doc["question"]}, {"role": "assistant", "content": doc[register]}]
            whole = prompt.render(messages, register)
            assert whole.startswith(context + doc[register] + prompt.ANSWER_END)


@pytest.mark.parametrize(
    "answer",
    [
        "Pies merda ogonem, kiedy się cieszy, ale czasem także wtedy, gdy jest niespokojny i nie wie, co zrobić.",
        "Z radości.",
        "Bo go lubi",
        "tak",
        "Nie.",
        "Tokio",
        "Mount Everest",
        "pies",
        "42",
        "3,14 km",
        "- chleb\n- masło\n- ser",
        '{"name": "Jan", "age": 30, "tags": ["szewc", null]}',
        '```json\n{"answer": 7}\n```',
        "Kot to nie pies.",
        "Ściana ma 6 m², a kafelek 0,04 m².",
        "Café Müller",
    ],
)
def test_polish_is_what_is_not_clearly_another_language(answer: str) -> None:
    assert hygienic(answer)["polish"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "?!",
        "The dog wags its tail when it is happy, but it may also do so when it is nervous or does not know what to do.",
        "I like dogs and cats.",
        "apple, pear, plum",
        "Собака",
        "modrá",
        '{"powód": "the dog is happy"}',
    ],
)
def test_silence_and_other_languages_are_not_polish(answer: str) -> None:
    assert hygienic(answer)["polish"] == 0


def test_an_answer_that_holds_the_question_repeats_it() -> None:
    assert hygienic("Pytasz, po co pies merda ogonem. Z radości.")["no_repeat"] == 0
    assert hygienic("Pies merda ogonem z radości.")["no_repeat"] == 1
    assert hygienic("Opcja druga.", question="Opcja?")["no_repeat"] == 0
    assert hygienic("Opcjami są dwie.", question="Opcja?")["no_repeat"] == 1


def test_a_sentence_may_come_twice_but_not_three_times() -> None:
    assert hygienic("Nie wiem. Może z radości. Nie wiem!")["no_repeat"] == 1
    assert hygienic("Nie wiem. Nie wiem!\nnie wiem")["no_repeat"] == 0
    assert hygienic("Tak... Tak... A więc tak.")["no_repeat"] == 1


def test_silence_is_no_virtue() -> None:
    assert hygienic(" ") == {"polish": 0, "no_repeat": 0}
    assert kept("", max_words=5) == kept("", max_sentences=1) == 0


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("list", ["- chleb\n- ser", "Oto:\n\n• chleb\n• ser", "– chleb\n– ser"], ["- ser", "chleb, ser", "1. a\n2. b"]),
        ("numbered", ["1. Umyj.\n2. Obierz.", "Kroki:\n1) Umyj.\n2) Obierz."], ["1. Umyj.", "2. a\n3. b", "- a\n- b"]),
        ("one_word", ["Oslo", "oslo.", "„Teraz”.", "biało-czerwona"], ["To Oslo.", "7", "Oslo\nBergen"]),
        ("number", ["102", "1440.", "22,5", "-3", "12 500", "**16**"], ["102 zł", "sto dwa", "17 x 6 = 102", "1 2"]),
        ("yes_no", ["tak", "Nie.", "„Tak”."], ["Tak, leży.", "chyba tak", "owszem"]),
        ("json", ['{"x": "ś"}', '```json\n{"x": "ś"}\n```'], ['["ś"]', "7", "Oto: {}", '{"x": ', "[" * 100_000]),
        ("single_sentence", ["To ptak.", "To ptak", "Stoi przy ul. Długiej."], ["Ptak. Duży.", "Ptak\nDuży", "…"]),
    ],
)  # fmt: skip
def test_each_format_is_told_from_what_looks_like_it(form: str, right: list[str], wrong: list[str]) -> None:
    assert [answer for answer in right if not kept(answer, format=form)] == []
    assert [answer for answer in wrong if kept(answer, format=form)] == []


def test_every_format_has_its_examples_and_another_is_refused() -> None:
    assert set(suite.FORMATS) == {"list", "numbered", "one_word", "number", "yes_no", "json", "single_sentence"}
    with pytest.raises(ValueError, match=r"x: format is 'haiku'; expected null or one of list, numbered"):
        kept("Cisza.", format="haiku")


def test_a_limit_holds_at_both_ends_and_null_is_none() -> None:
    two = "Rosa osiada na trawie. Rano znika."
    for unit, count in (("sentences", 2), ("words", 6)):
        assert kept(two, **{f"min_{unit}": count}) == kept(two, **{f"max_{unit}": count}) == 1
        assert kept(two, **{f"min_{unit}": count + 1}) == kept(two, **{f"max_{unit}": count - 1}) == 0
    for form, listed in (
        ("list", "Weź:\n- chleb,\n- ser,\n- 2 jabłka."),
        ("numbered", "1. Umyj.\n2. Obierz.\n3. Zjedz."),
    ):
        assert kept(listed, format=form, min_items=3, max_items=3) == 1
        assert kept(listed, format=form, min_items=4) == kept(listed, format=form, max_items=2) == 0


def test_words_leave_out_the_marks_of_a_list() -> None:
    assert suite.words("1. Kup 3,5 kg ziemniaków.\n2. Weź biało-czerwony worek.\n- Idź – szybko!") == [
        *("Kup", "3,5", "kg", "ziemniaków"),
        *("Weź", "biało-czerwony", "worek"),
        *("Idź", "szybko"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("Mieszka tu prof. J. Nowak, m.in. autor map.", 1),
        ("To było w 1918 r. Potem wrócił.", 2),
        ("Kto tam? „Ja.” Wszedł… i usiadł.", 3),
        ("1. Umyj ręce.\n2. Usiądź", 2),
        ("Zapytał: „Co?” i wyszedł.", 1),
        ("", 0),
    ],
)
def test_sentences_end_where_a_reader_ends_them(answer: str, count: int) -> None:
    assert len(suite.sentences(answer)) == count


def test_only_items_that_ask_for_something_are_judged_by_what_they_ask() -> None:
    rows = [{"id": "a", **UNASKED}, {"id": "b", **UNASKED, "format": "list"}, {"id": "c", **UNASKED, "max_words": 5}]
    assert suite.asking(datasets.Dataset.from_list(rows))["id"] == ["b", "c"]


CHOICE = {"choices": ["dobry wybór", "zły", "gorszy"], "answer": 0}
TURNS = [("user", "Co to dzik?"), ("assistant", "Zwierzę."), ("user", "A „młode”?")]
QUESTIONS = ["Kran cieknie. Co robić?", "Jak odkręcić słoik?", "Od czego zacząć malowanie?"]
HYGIENE = [
    {"question": "Po co psu ogon?", **UNASKED},
    {"question": "Czy Gdynia leży nad morzem?", **UNASKED, "format": "yes_no"},
    {"question": "Jak smakuje rabarbar? Użyj dwóch słów.", **UNASKED, "max_words": 2},
]
ITEMS: dict[str, list[dict[str, Any]]] = {
    **{name: [CHOICE] * 3 for name in ("diacritics", "agreement", "grammar")},
    "idiom": [{"idiom": "mieć muchy w nosie", "context": "Szef ma muchy w nosie.", **CHOICE}] * 3,
    "proverb": [{"beginning": "Gdzie kucharek sześć,", **CHOICE}] * 3,
    "register_text": [{"question": question, "formal": FORMAL, "informal": INFORMAL} for question in QUESTIONS],
    "reading": [{"passage": "Ala ma kota.", "question": "Kto ma kota?", **CHOICE}] * 3,
    "sentiment": [{"text": "Zupa była zimna.", **CHOICE}] * 3,
    "topic": [{"text": "Mecz skończył się remisem.", **CHOICE}] * 3,
    "turns": [{"messages": [{"role": role, "content": content} for role, content in TURNS], **CHOICE}] * 3,
    "restoration": [{"text": TEXT, "target": TARGET}] * 3,
    "register": [{"question": question} for question in QUESTIONS],
    "hygiene": HYGIENE,
}
ANSWERS = {
    f"Przepisz zdanie, dodając polskie znaki: {TEXT}": TARGET,
    **dict.fromkeys(QUESTIONS, "Proszę Pana, czy mógłby Pan to zrobić? Dziękuję Panu."),
    HYGIENE[0]["question"]: "The dog needs it to talk.",
    HYGIENE[1]["question"]: "Tak.",
    HYGIENE[2]["question"]: "Bardzo, bardzo kwaśno",
}


class Scripted(LM):
    """A model that knows good choices and registers, says what ANSWERS hold, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [
            (float((continuation == FORMAL) == ("<formal>" in context)) - 1, False)
            if continuation in (FORMAL, INFORMAL)
            else (float(continuation == " dobry wybór") - 1, False)
            for context, continuation in (request.args for request in requests)
        ]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked += [request.args for request in requests]
        return [ANSWERS[request.args[0]] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Scripted]:
    """What lm_eval finds of the shipped tasks on three items each, and the model that it asked."""
    folder, model = tmp_path_factory.mktemp("tasks"), Scripted()
    for path in TASKS:
        text = path.read_text(encoding="utf-8").replace("benchmarks/tasks/", f"{folder}/")
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).write_text(text, encoding="utf-8")
        data = Path(yaml.load(text, yaml.BaseLoader)["dataset_kwargs"]["data_files"]["test"])
        rows = [{"id": f"{data.stem}-{number}", **item} for number, item in enumerate(ITEMS[data.stem])]
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        found = simple_evaluate(model, tasks=manager.all_tasks, task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return found, model


def test_a_task_is_named_after_its_file_and_says_what_its_metrics_mean() -> None:
    for path in TASKS:
        task = yaml.load(path.read_text(encoding="utf-8").replace("!function", ""), yaml.SafeLoader)
        assert task["task"] == f"wronai_{path.stem}"
        assert task["metadata"]["version"] == 1.0
        assert Path(task["dataset_kwargs"]["data_files"]["test"]).parent == path.parent.relative_to(ROOT)
        for metric in task["metric_list"]:
            assert (metric["aggregation"], metric["higher_is_better"]) == ("mean", True)


def test_lm_eval_scores_every_task_by_the_metrics_it_lists(evaluated: tuple[dict[str, Any], Scripted]) -> None:
    found, _ = evaluated
    chosen = {"acc": 1.0, "acc_norm": 1.0}
    expected: dict[str, dict[str, float]] = {
        **dict.fromkeys(("diacritics", "agreement", "grammar", "idiom", "proverb"), chosen),
        **dict.fromkeys(("reading", "sentiment", "topic", "turns"), chosen),
        "register_text_formal": {"acc": 1.0},
        "register_text_informal": {"acc": 1.0},
        "restoration": {"exact": 1.0, "character_acc": 1.0, "diacritics_acc": 1.0},
        "register_formal": {"acc": 1.0},
        "register_informal": {"acc": 0.0},
        "hygiene": {"polish": pytest.approx(2 / 3), "no_repeat": 1.0},
        "format": {"kept": 0.5},
    }
    assert {
        task.removeprefix("wronai_"): {
            name.removesuffix(",none"): value
            for name, value in results.items()
            if name.endswith(",none") and "stderr" not in name
        }
        for task, results in found["results"].items()
    } == {path.stem: expected[path.stem] for path in TASKS}
    assert found["n-samples"]["wronai_format"]["original"] == 2


def test_the_right_register_stands_in_either_place(evaluated: tuple[dict[str, Any], Scripted]) -> None:
    found, _ = evaluated
    for register, places in (("formal", [0, 1, 0]), ("informal", [1, 0, 1])):
        samples = found["samples"][f"wronai_register_text_{register}"]
        asked = [[context for context, _ in sample["arguments"]] for sample in samples]
        assert all(f"<polish><{register}>" in contexts[place] for contexts, place in zip(asked, places, strict=True))
        assert {answer for sample in samples for _, answer in sample["arguments"]} == {samples[0]["doc"][register]}


def test_a_model_without_a_chat_format_reads_turns_as_plain_text(evaluated: tuple[dict[str, Any], Scripted]) -> None:
    _, model = evaluated
    plain = "Pytanie: Co to dzik?\nOdpowiedź: Zwierzę.\nPytanie: A „młode”?\nOdpowiedź:"
    assert (plain, " dobry wybór") in model.asked


def test_generation_is_greedy_and_short(evaluated: tuple[dict[str, Any], Scripted]) -> None:
    _, model = evaluated
    settings = {context: arguments for context, arguments in model.asked if isinstance(arguments, dict)}
    assert set(settings) == set(ANSWERS)
    asked_for = {item["question"] for item in HYGIENE}
    for context, arguments in settings.items():
        assert arguments == {
            "do_sample": False,
            "max_gen_toks": 64 if TEXT in context else 192 if context in asked_for else 96,
            "until": ["\nPytanie:", "\n\n\n"],
        }
