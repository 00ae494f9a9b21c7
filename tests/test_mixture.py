from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from wronai import corpus, mixture

LENGTH = 64


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Documents as clean_text leaves them."""
    path = tmp_path / "documents.parquet"
    corpus.write_table(
        [tiny.document(number, text) for number, text in enumerate(tiny.texts())], corpus.DOCUMENTS, path
    )
    return path


def draw(tokenizer: Any, table: Path, wanted: int | None, length: int = LENGTH, seed: int = tiny.SEED) -> mixture.Drawn:
    return mixture.draw(tokenizer, table, length, wanted, seed, table.parent)


def streams(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [
        [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in texts
    ]


def whole(drawn: mixture.Drawn, begin: int) -> list[list[int]]:
    """The pieces put together to documents, each of which has one begin token."""
    ids = np.concatenate([drawn.pieces[index][0] for index in range(len(drawn.pieces))])
    return [part.tolist() for part in np.split(ids, np.flatnonzero(ids == begin)[1:])]


def test_every_document_is_there_once_between_its_begin_and_end_token(tokenizer: Any, table: Path) -> None:
    drawn = draw(tokenizer, table, None)
    assert sorted(whole(drawn, tokenizer.bos_token_id)) == sorted(streams(tokenizer, tiny.texts()))
    assert drawn.documents == drawn.available == len(tiny.texts())


def test_pieces_are_as_long_as_they_may_be_and_trained_on_whole(tokenizer: Any, table: Path) -> None:
    pieces = draw(tokenizer, table, None).pieces
    assert max(pieces.lengths) == LENGTH
    for index in range(len(pieces)):
        ids, labels = pieces[index]
        assert ids.tolist() == labels.tolist() and len(ids) == pieces.lengths[index]


def test_as_many_pieces_are_drawn_as_first_hold_the_tokens_wanted(tokenizer: Any, table: Path) -> None:
    everything = draw(tokenizer, table, None)
    ends = np.cumsum(everything.pieces.lengths)
    for wanted in (1, int(ends[4]), int(ends[4]) + 1, int(ends[-1]), int(ends[-1]) + 1000):
        drawn = draw(tokenizer, table, wanted)
        count = min(int((ends < wanted).sum()) + 1, len(ends))
        assert drawn.pieces.lengths.tolist() == everything.pieces.lengths[:count].tolist()
        assert all((drawn.pieces[n][0] == everything.pieces[n][0]).all() for n in range(count))


@pytest.mark.parametrize("guess", [0.01, 100.0])
def test_what_is_drawn_does_not_depend_on_the_guess_of_bytes_per_token(
    tokenizer: Any, table: Path, monkeypatch: pytest.MonkeyPatch, guess: float
) -> None:
    expected = draw(tokenizer, table, 2000)
    found = [expected.pieces[index][0].tolist() for index in range(len(expected.pieces))]
    counts = (expected.documents, expected.forged, expected.tokens)
    monkeypatch.setattr(mixture, "BYTES_PER_TOKEN", guess)
    drawn = draw(tokenizer, table, 2000)
    assert [drawn.pieces[index][0].tolist() for index in range(len(drawn.pieces))] == found
    assert (drawn.documents, drawn.forged, drawn.tokens) == counts


def test_another_seed_draws_other_documents(tokenizer: Any, table: Path) -> None:
    first = {tuple(text) for text in whole(draw(tokenizer, table, 1500), tokenizer.bos_token_id)[:-1]}
    other = {tuple(text) for text in whole(draw(tokenizer, table, 1500, seed=7), tokenizer.bos_token_id)[:-1]}
    assert first != other


def test_a_last_token_alone_is_left_out(tokenizer: Any, tmp_path: Path) -> None:
    (stream,) = streams(tokenizer, ["Ala ma kota."])
    corpus.write_table([tiny.document(0, "Ala ma kota.")], corpus.DOCUMENTS, tmp_path / "one.parquet")
    drawn = draw(tokenizer, tmp_path / "one.parquet", None, length=len(stream) - 1)
    assert drawn.pieces.lengths.tolist() == [len(stream) - 1]
    assert drawn.pieces[0][0].tolist() == stream[:-1]


def test_documents_that_hold_a_special_token_are_left_out_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    texts = ["Ala ma kota.", "Znak </s> kończy.", "<answer>"]
    rows = [tiny.document(number, text) for number, text in enumerate(texts)]
    corpus.write_table(rows, corpus.DOCUMENTS, tmp_path / "some.parquet")
    drawn = draw(tokenizer, tmp_path / "some.parquet", None)
    assert (drawn.documents, drawn.available, drawn.forged) == (1, 3, 2)
    assert whole(drawn, tokenizer.bos_token_id) == streams(tokenizer, texts[:1])


def test_without_a_begin_token_a_document_begins_with_its_text(tokenizer: Any, table: Path) -> None:
    expected = sorted(stream[1:] for stream in streams(tokenizer, tiny.texts()))
    tokenizer.bos_token = None
    drawn = draw(tokenizer, table, None, length=10_000)
    assert sorted(drawn.pieces[index][0].tolist() for index in range(len(drawn.pieces))) == expected


def test_a_table_without_documents_gives_no_piece(tokenizer: Any, tmp_path: Path) -> None:
    corpus.write_table([], corpus.DOCUMENTS, tmp_path / "none.parquet")
    assert len(draw(tokenizer, tmp_path / "none.parquet", 100).pieces) == 0
