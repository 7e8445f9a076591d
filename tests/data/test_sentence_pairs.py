"""Pairs against numbers from running the reference, and the corpus on disk."""

import pickle
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import BertPairs
from bertjax.data.jobs.token_corpus import TokenizedCorpus
from bertjax.data.preprocess.bert_pairs import to_row
from bertjax.data.preprocess.sentence_pairs import Pair, document_rng, pairs_from_document, truncate_seq_pair
from bertjax.data.tokenizers.row_layout import RowLayout
from bertjax.errors import StorageError, UserError
from bertjax.verify import runner

GOLDEN = runner.load_golden("pairs.json")


class Lists:
    """A corpus in memory."""

    def __init__(self, documents: list[list[list[int]]]) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def num_sentences(self, document: int) -> int:
        return len(self.documents[document])

    def sentence_tokens(self, document: int, sentence: int) -> list[int]:
        return self.documents[document][sentence]


def numbered(lengths: list[list[int]], first: int = 100) -> list[list[list[int]]]:
    """Documents with sentences of these lengths, whose ids count up from `first`."""
    ids = iter(range(first, first + sum(map(sum, lengths))))
    return [[[next(ids) for _ in range(length)] for length in document] for document in lengths]


documents = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=6)


@pytest.mark.parametrize("name", GOLDEN["cases"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_pairs_are_those_of_the_reference_draw_for_draw(name: str, on_disk: bool, tmp_path: Path) -> None:
    """bertjax/verify/goldens/pairs.json names the file and commit that was run."""
    case = GOLDEN["cases"][name]
    made = numbered(case["documents"])
    corpus = TokenizedCorpus.write(tmp_path / "corpus", made, 30000) if on_disk else Lists(made)
    config = BertPairs(sequence_length=case["sequence_length"], short_seq_prob=case["short_seq_prob"])
    rng = random.Random(GOLDEN["seed"])
    found = [
        [pair.tokens_a[0], pair.tokens_a[-1], pair.tokens_b[0], pair.tokens_b[-1], int(pair.is_random_next)]
        for _ in range(case["passes"])
        for document in range(len(corpus))
        for pair in pairs_from_document(document, corpus, config, rng)
    ]
    assert found == case["pairs"]
    assert rng.random() == case["next_random"]  # not one draw more or fewer


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(8, 64), st.integers(0, 2**32))
def test_every_pair_fits_and_comes_from_the_corpus(lengths: list[list[int]], length: int, seed: int) -> None:
    made = numbered(lengths)
    corpus, config = Lists(made), BertPairs(sequence_length=length, short_seq_prob=0.3)
    home = {token: number for number, document in enumerate(made) for token in chain.from_iterable(document)}
    for document in range(len(made)):
        for pair in pairs_from_document(document, corpus, config, random.Random(seed)):
            assert pair.tokens_a and pair.tokens_b and len(pair.tokens_a) + len(pair.tokens_b) <= length - 3
            assert {home[token] for token in pair.tokens_a} == {document}
            assert len({home[token] for token in pair.tokens_b}) == 1
            for part in (pair.tokens_a, pair.tokens_b):
                assert part == list(range(part[0], part[-1] + 1))  # unbroken text
            if not pair.is_random_next:
                assert home[pair.tokens_b[0]] == document and pair.tokens_b[0] > pair.tokens_a[-1]


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(8, 64), st.integers(0, 2**32))
def test_without_nsp_no_token_is_lost_and_whole_sentences_stay_whole(
    lengths: list[list[int]], length: int, seed: int
) -> None:
    made = numbered(lengths)
    config = BertPairs(sequence_length=length, short_seq_prob=0.0, next_sentence=False)
    for document, sentences in enumerate(made):
        pairs = list(pairs_from_document(document, Lists(made), config, random.Random(seed)))
        assert list(chain.from_iterable(pair.tokens_a for pair in pairs)) == list(chain.from_iterable(sentences))
        assert all(pair.tokens_b == [] and pair.is_random_next is None for pair in pairs)
        assert all(len(pair.tokens_a) <= length - 2 for pair in pairs)
        starts = {sentence[0] for sentence in sentences}
        for before, after in zip(pairs, pairs[1:], strict=False):
            # a cut inside a sentence happens only where the example is full
            assert after.tokens_a[0] in starts or len(before.tokens_a) == length - 2


def test_truncation_takes_from_the_longer_and_from_b_when_equal() -> None:
    a, b = truncate_seq_pair(list(range(10)), list(range(100, 104)), 8, random.Random(3))
    assert len(a) == len(b) == 4 and b == [100, 101, 102, 103] and a == list(range(a[0], a[0] + 4))
    a, b = truncate_seq_pair([1, 2], [3, 4], 3, random.Random(3))
    assert a == [1, 2] and len(b) == 1


def test_document_rng_differs_by_seed_pass_and_document() -> None:
    seen = {document_rng(*key).random() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1)]}
    assert len(seen) == 4


def test_row_of_a_pair() -> None:
    row = to_row(Pair([11, 12], [13], True), 8, layout=RowLayout(1, 2), pad_id=9)
    expected = {
        "input_ids": [1, 11, 12, 2, 13, 2, 9, 9],
        "token_type_ids": [0, 0, 0, 0, 1, 1, 0, 0],
        "segment_ids": [1, 1, 1, 1, 1, 1, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 0, 0],
        "cls_positions": [0],
        "nsp_labels": [1],
        "nsp_weights": [1.0],
    }
    assert {name: value.tolist() for name, value in row.items()} == expected
    assert row["nsp_weights"].dtype == np.float32
    assert all(value.dtype == np.int32 for name, value in row.items() if name != "nsp_weights")


def test_row_without_nsp_and_one_that_does_not_fit() -> None:
    row = to_row(Pair([11, 12], [], None), 8, layout=RowLayout(1, 2))
    assert row["input_ids"].tolist() == [1, 11, 12, 2, 0, 0, 0, 0]
    assert row["nsp_weights"].tolist() == [0.0] and not row["token_type_ids"].any()
    with pytest.raises(ValueError, match="does not fit"):
        to_row(Pair([1] * 5, [1] * 5, False), 8, layout=RowLayout(1, 2))


# ---- the corpus on disk ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(documents=st.lists(st.lists(st.lists(st.integers(0, 69_999), max_size=5), max_size=5), max_size=6))
@pytest.mark.parametrize("vocab_size", [70_000])
def test_corpus_comes_back_without_its_empty_parts(
    documents: list[list[list[int]]], vocab_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = [[s for s in document if s] for document in documents]
    kept = [document for document in kept if document]
    folder = tmp_path_factory.mktemp("corpora") / "one"
    if not kept:
        with pytest.raises(UserError, match="holds no text"):
            TokenizedCorpus.write(folder, documents, vocab_size)
        assert not list(folder.parent.iterdir())
        return
    corpus = TokenizedCorpus.write(folder, iter(documents), vocab_size)
    found = [[corpus.sentence_tokens(d, s) for s in range(corpus.num_sentences(d))] for d in range(len(corpus))]
    assert found == kept
    assert [len(corpus.document_tokens(d)) for d in range(len(corpus))] == [sum(map(len, d)) for d in kept]


def test_small_ids_take_two_bytes_and_large_ones_four(tmp_path: Path) -> None:
    two = TokenizedCorpus.write(tmp_path / "two", [[[65_535, 1]]], 1 << 16)
    four = TokenizedCorpus.write(tmp_path / "four", [[[65_536, 1]]], (1 << 16) + 1)
    assert (two.folder / "tokens.bin").stat().st_size == 4 and (four.folder / "tokens.bin").stat().st_size == 8
    assert two.sentence_tokens(0, 0) == [65_535, 1] and four.sentence_tokens(0, 0) == [65_536, 1]


def test_an_interrupted_write_leaves_the_old_corpus(tmp_path: Path) -> None:
    def fails():
        yield [[1, 2]]
        raise RuntimeError("the source broke")

    TokenizedCorpus.write(tmp_path / "corpus", [[[7]]], 10)
    with pytest.raises(RuntimeError, match="broke"):
        TokenizedCorpus.write(tmp_path / "corpus", fails(), 10)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        TokenizedCorpus.write(tmp_path / "corpus", [[[10]]], 10)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert TokenizedCorpus(tmp_path / "corpus").sentence_tokens(0, 0) == [7]
    assert TokenizedCorpus.write(tmp_path / "corpus", [[[8]]], 10).sentence_tokens(0, 0) == [8]


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.bin", "documents.bin", "corpus.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_corpus_is_refused_by_name(name: str, damage: str, tmp_path: Path) -> None:
    TokenizedCorpus.write(tmp_path / "corpus", [[[1, 2], [3]], [[4]]], 10)
    path = tmp_path / "corpus" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1] if name != "corpus.json" else b"{")
    else:
        path.unlink()
    with pytest.raises(StorageError, match=name) as caught:
        TokenizedCorpus(tmp_path / "corpus")
    assert "\n" not in str(caught.value) and "remove the folder" in str(caught.value)


def test_offsets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    TokenizedCorpus.write(tmp_path / "corpus", [[[1, 2], [3]]], 10)
    np.array([0, 2, 9], "<u8").tofile(tmp_path / "corpus" / "sentences.bin")
    with pytest.raises(StorageError, match="offsets"):
        TokenizedCorpus(tmp_path / "corpus")


def test_a_corpus_pickles_as_its_folder(tmp_path: Path) -> None:
    corpus = TokenizedCorpus.write(tmp_path / "corpus", [[list(range(500))]], 1000)
    packed = pickle.dumps(corpus)
    assert len(packed) < 400 and pickle.loads(packed).sentence_tokens(0, 0) == list(range(500))
