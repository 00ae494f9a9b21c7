import random
import re
from collections.abc import Sequence

import daft
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wronai import duplicates
from wronai.duplicates import MinHash

SHAPE = MinHash()
claim = settings(deadline=None, database=None)  # the first example compiles
MARKET = (
    "W sobotę przed świtem na rynku pod ratuszem rozstawiano stragany, a między nimi chodził stróż z latarnią i liczył "
    "wozy, bo burmistrz kazał mu pilnować, żeby żaden nie zagrodził drogi do studni. Przekupki wołały do siebie przez "
    "mgłę, konie parskały, a pierwszy piekarz otworzył okiennice i wystawił na parapet chleb, którego zapach doszedł "
    "aż pod kościół, gdzie spał pies organisty."
)
SCHOOL = (
    "Nowa nauczycielka fizyki zaczęła od tego, że wyniosła z sali wszystkie tablice ze wzorami i przyniosła wiadro "
    "wody, sznurek oraz stary garnek. Przez miesiąc nie zapisaliśmy ani jednej litery, za to każdy z nas umiał "
    "powiedzieć, dlaczego garnek pływa, dlaczego tonie i co się stanie, gdy sznurek przetniemy akurat w chwili, kiedy "
    "jest na samej górze. Dopiero potem wzory wróciły i okazało się, że są krótsze od naszych zdań."
)


def content_key(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def keys_of(texts: Sequence[str]) -> list[str]:
    return duplicates.content_keys(pa.array(texts, pa.large_string())).to_pylist()


def test_every_character_folds_and_parts_words_as_python_says() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"{one}x{one}" for one in characters[i : i + 512]) for i in range(0, len(characters), 512)]
    assert keys_of(texts) == [content_key(text) for text in texts]


def test_no_fold_writes_more_than_twice_what_it_reads() -> None:
    written = duplicates._folds() >> 56
    read = np.searchsorted([0x80, 0x800, 0x10000], np.arange(duplicates.FOLDED), side="right") + 1
    assert (written <= 2 * read).all()


ALPHABETS = st.sampled_from(
    [
        "aąbcćeęłńóśźżAĄCĆEĘŁŃÓŚŹŻ -_.,\n\u00a0",
        "řžýůěÁŘŠ вйыЁЖЯ σςΣΐάΏ ǅﬁßẞİŉ̇",
        "0123456789²½٣५Ⅷ①_+-–„”…€😀\u00ad\u200b\t",
    ]
)
TEXTS = st.lists(ALPHABETS.flatmap(lambda alphabet: st.text(alphabet, max_size=40)), max_size=8)


@claim
@given(TEXTS)
def test_keys_equal_those_of_the_regular_expression(texts: list[str]) -> None:
    assert keys_of(texts) == [content_key(text) for text in texts]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parts_of_arrays_nulls_and_chunks_are_read_right(kind: pa.DataType) -> None:
    part = pa.array(["nie ten", "Żółw!", None, "", "–"], kind)[1:]
    chunks = pa.chunked_array([part, part[:1]])
    assert duplicates.content_keys(part).to_pylist() == ["żółw", "", "", ""]
    assert duplicates.content_keys(chunks).to_pylist() == ["żółw", "", "", "", "żółw"]


def test_fingerprints_are_those_of_blake2b_and_differ_where_keys_do() -> None:
    prints = duplicates.fingerprints(pa.array(["nie", "żółw", "", "żółw"])[1:]).to_pylist()
    assert prints[0] == prints[2] != prints[1]
    assert prints[1].hex() == "cae66941d9efbd404e4d88758ea67670"  # the published BLAKE2b-128 of no bytes


def bands_of(texts: Sequence[str], shape: MinHash = SHAPE) -> np.ndarray:
    keys = duplicates.content_keys(pa.array(texts, pa.large_string()))
    return duplicates.band_hashes(keys, duplicates.signatures(keys, shape), shape)


def test_the_bands_of_a_plan_are_those_of_arrays() -> None:
    texts = [MARKET, SCHOOL, "", "krótko", "raz dwa trzy cztery pięć", "raz dwa trzy cztery pięć sześć"]
    frame = daft.from_pydict({"key": keys_of(texts)}).select(duplicates.signed(daft.col("key"), SHAPE))
    in_plan = frame.to_arrow()
    assert duplicates.matrix(in_plan.column("bands")).dtype == np.uint64
    assert np.array_equal(duplicates.matrix(in_plan.column("bands")), bands_of(texts))
    whole = duplicates.signatures(pa.array(keys_of(texts)), SHAPE)
    assert np.array_equal(duplicates.matrix(in_plan.column("hashes")), whole.astype(np.uint8))


def test_a_missing_key_has_the_bands_of_an_empty_one() -> None:
    frame = daft.from_arrow(pa.table({"key": pa.array([None, ""], pa.large_string())}))
    one, other = duplicates.matrix(frame.select(duplicates.signed(daft.col("key"), SHAPE)).to_arrow().column(0))
    assert np.array_equal(one, other)


def test_a_band_is_equal_when_all_its_hashes_are() -> None:
    keys = pa.array(["raz dwa trzy cztery pięć sześć"] * 2)
    signed = np.arange(12, dtype=np.uint32).reshape(1, 12).repeat(2, axis=0)
    signed[1, 5] += 1
    bands = duplicates.band_hashes(keys, signed, MinHash(bands=3, rows=4))
    assert (bands[0] == bands[1]).tolist() == [True, False, True]


def test_short_keys_are_near_their_equals_alone() -> None:
    texts = ["dom 43192", "dom 355431", "Dom, 43192", "", "–"]
    keys = duplicates.content_keys(pa.array(texts))
    signed = duplicates.signatures(keys, SHAPE)
    assert np.array_equal(signed[0], signed[1])  # the first two differ, and Daft's 32 bits do not show it
    assert duplicates.clusters(bands_of(texts)).tolist() == [0, 1, 0, 3, 3]


def clusters_one_by_one(bands: np.ndarray) -> list[int]:
    roots = list(range(len(bands)))
    for column in bands.T.tolist():
        for one in range(len(bands)):
            for other in range(one):
                if column[one] == column[other] and roots[one] != roots[other]:
                    low, high = sorted((roots[one], roots[other]))
                    roots = [low if root == high else root for root in roots]
    return roots


BANDS = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([0, 1, 2, 3, 7, 2**32, 2**63, 2**64 - 1]), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    ).map(lambda rows: np.array(rows, np.uint64).reshape(shape))
)


@claim
@given(BANDS)
def test_clusters_are_the_components_that_comparing_all_pairs_finds(bands: np.ndarray) -> None:
    assert duplicates.clusters(bands).tolist() == clusters_one_by_one(bands)


def test_a_cluster_is_connected_through_a_chain_and_columns_do_not_mix() -> None:
    bands = np.array([[1, 2, 3], [4, 5, 6], [7, 5, 8], [9, 1, 8], [3, 2 + 9, 9]], np.uint64)
    assert duplicates.clusters(bands).tolist() == [0, 1, 1, 1, 4]


def test_many_hashes_that_meet_in_one_slot_still_end() -> None:
    bands = np.zeros((5000, 2), np.uint64)
    bands[:, 1] = np.arange(5000, dtype=np.uint64) << np.uint64(40)
    assert not duplicates.clusters(bands).any()
    assert duplicates.clusters(bands[:, 1:]).tolist() == list(range(5000))


MEMBERS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@claim
@given(MEMBERS, st.randoms(use_true_random=False))
def test_the_longest_stays_and_of_equals_the_first_id(members: list[tuple[int, int]], shuffler: random.Random) -> None:
    ranks = list(range(len(members)))
    shuffler.shuffle(ranks)
    of_root = [next(i for i, (cluster, _) in enumerate(members) if cluster == mine) for mine, _ in members]
    stays = [
        min((i for i in range(len(members)) if of_root[i] == root), key=lambda i: (-members[i][1], ranks[i]))
        for root in of_root
    ]
    lengths = np.array([length for _, length in members])
    found = duplicates.representatives(np.array(of_root), lengths, np.array(ranks))
    assert found.tolist() == stays


COPIES = (
    MARKET,
    MARKET.upper(),
    f"{MARKET} Potem wzeszło słońce.",
    MARKET.replace("piekarz", "szewc"),
    SCHOOL,
    SCHOOL.replace(" ", "\n"),
    "Tak.",
    "tak",
    "Nie.",
    "…",
)
DOCUMENTS = [(f"{source}/{i}", text) for source in ("strony", "książki") for i, text in enumerate(COPIES)]


def kept(documents: Sequence[tuple[str, str]]) -> set[str]:
    roots = duplicates.clusters(bands_of([text for _, text in documents]))
    ids = [id for id, _ in documents]
    ranks = np.argsort(np.argsort(ids))
    lengths = np.array([len(text) for _, text in documents])
    return {ids[i] for i in duplicates.representatives(roots, lengths, ranks)}


@settings(claim, max_examples=25)
@given(st.permutations(DOCUMENTS))
def test_the_order_of_texts_does_not_change_what_is_kept(documents: list[tuple[str, str]]) -> None:
    assert kept(documents) == {"książki/2", "książki/4", "książki/6", "książki/8", "książki/9"}


def test_a_text_that_another_source_has_stays_once() -> None:
    assert kept([("strony/0", MARKET), ("książki/0", MARKET.lower()), ("strony/1", SCHOOL)]) == {
        "książki/0",
        "strony/1",
    }


def test_similarity_is_about_the_share_of_common_ngrams() -> None:
    texts = (MARKET, f"{MARKET} Potem wzeszło słońce.", SCHOOL)
    grams = []
    for text in texts:
        words = content_key(text).split()
        grams.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    keys = pa.array([content_key(text) for text in texts])
    hashes = duplicates.signatures(keys, SHAPE).astype(np.uint8)
    found = duplicates.similarities(hashes[[0, 0, 0]], hashes)
    expected = [len(grams[0] & other) / len(grams[0] | other) for other in grams]
    assert found[0] == 1.0
    assert found.tolist() == pytest.approx(expected, abs=0.1)


def test_no_text_has_no_cluster() -> None:
    empty = pa.array([], pa.string())
    assert bands_of([]).shape == (0, 14)
    assert duplicates.clusters(bands_of([])).tolist() == []
    assert duplicates.fingerprints(empty).to_pylist() == duplicates.content_keys(empty).to_pylist() == []
