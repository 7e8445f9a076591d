"""How documents are dealt out in units, and how a pair of texts is cut to fit."""

from hypothesis import given
from hypothesis import strategies as st

from bertjax.data.preprocess.bert_pairs import pairs_units
from bertjax.data.preprocess.classify import truncate_pair


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 3), st.integers(1, 200))
def test_units_cover_every_document_of_every_pass_once(tokens: list[int], repeats: int, size: int):
    units = list(pairs_units(tokens, repeats, size))
    assert [unit.number for unit in units] == list(range(len(units)))
    covered = [(unit.repeat, document) for unit in units for document in range(unit.first, unit.last)]
    assert covered == [(repeat, document) for repeat in range(repeats) for document in range(len(tokens))]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 40))
def test_cutting_a_pair_is_popping_the_longer_text(size_a: int, size_b: int, room: int):
    a, b = list(range(size_a)), list(range(100, 100 + size_b))
    cut = truncate_pair(a, b, room)
    while len(a) + len(b) > room:  # run_classifier.py: _truncate_seq_pair
        (a if len(a) > len(b) else b).pop()
    assert cut == (a, b)
