"""Secrets of the environment are taken out of a text, whatever else happens to the environment meanwhile."""

import os
import threading

import pytest

from wronai.redaction import redact


def test_a_user_and_password_in_an_address_are_hidden() -> None:
    assert redact("postgresql://ania:sekret@db.example/wronai?x=1") == "postgresql://***@db.example/wronai?x=1"
    assert redact("https://db.example:5432/a@b") == "https://db.example:5432/a@b"


def test_the_value_of_a_variable_with_the_name_of_a_secret_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_tajne")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("CITY", "Gdańsk")
    assert redact("hf_tajne, abc, Gdańsk") == "***, abc, Gdańsk"


def test_a_variable_that_another_thread_removes_is_no_error() -> None:
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            os.environ["COMES_AND_GOES"] = "1"
            del os.environ["COMES_AND_GOES"]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert {redact("tekst") for _ in range(5000)} == {"tekst"}
    finally:
        over.set()
        thread.join()
