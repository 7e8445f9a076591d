"""Sentence splitting: cases written by hand, and what must hold for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.data.sentences import split_sentences

# one case a line; the sentences are apart by " | "
CASES = """
He came. She left. | He came. / She left.
Mr. Herbert met Dr. Bull at St. Paul's. They spoke. | Mr. Herbert met Dr. Bull at St. Paul's. / They spoke.
It cost 3.5 million. In 1990 it fell. | It cost 3.5 million. / In 1990 it fell.
J. R. R. Tolkien wrote it. A. A. Milne did not. | J. R. R. Tolkien wrote it. / A. A. Milne did not.
The U.S. Army came. He lived in the U.S. The war ended. | The U.S. Army came. / He lived in the U.S. / The war ended.
They sold bread, milk, etc. The shop closed. | They sold bread, milk, etc. / The shop closed.
"Stop!" he said. "Why?" She ran. | "Stop!" he said. / "Why?" / She ran.
“It is now or never,” said Dr. Bull. “Go!” | “It is now or never,” said Dr. Bull. / “Go!”
It reached No. 6 and No. 8. He said no. She agreed. | It reached No. 6 and No. 8. / He said no. / She agreed.
Charles Martel (d. 741) won. He ruled (r. 718) long. | Charles Martel (d. 741) won. / He ruled (r. 718) long.
See fig. 3 and pp. 10. Then stop. | See fig. 3 and pp. 10. / Then stop.
1. The first point. 2. The second. | 1. The first point. / 2. The second.
Wait... He left. So, e.g. Rome, i.e. Italy. | Wait... / He left. / So, e.g. Rome, i.e. Italy.
It is known.[12] However, it is rare. | It is known.[12] / However, it is rare.
He ended his life (in prison.) Nobody knew. | He ended his life (in prison.) / Nobody knew.
It rose at 5 p.m. in the east. | It rose at 5 p.m. in the east.
Vitamin C. The rest follows. | Vitamin C. / The rest follows.
"""


@pytest.mark.parametrize("case", [line for line in CASES.strip().split("\n")])
def test_splits_as_a_reader_would(case: str) -> None:
    text, expected = case.split(" | ")
    assert split_sentences(text) == expected.split(" / ")


def test_structure_ends_sentences() -> None:
    text = (
        "# Early life\nHe was born\nin Rome\n\nand died.\n- one item\n- another one. With two\n  lines\n## Notes\nEnd"
    )
    assert split_sentences(text) == [
        "Early life",
        "He was born in Rome",
        "and died.",
        "one item",
        "another one.",
        "With two lines",
        "Notes",
        "End",
    ]


def test_text_without_spaces_between_sentences() -> None:
    assert split_sentences("これは文です。次の文です。") == ["これは文です。", "次の文です。"]


@given(st.text(alphabet=st.sampled_from("aB1.?!,'\"“” \n()[]é-#"), max_size=200))
def test_keeps_every_visible_character_in_order(text: str) -> None:
    found = split_sentences(text)
    kept = "".join("".join(found).split())
    rest = iter("".join(text.split()))
    assert all(character in rest for character in kept)  # a subsequence: only list and heading markers go
    if "#" not in text and "-" not in text:
        assert kept == "".join(text.split())
    assert all(sentence and sentence == " ".join(sentence.split()) for sentence in found)


@given(st.lists(st.sampled_from(["The cat sat.", "Why not?", "It is 3.5 m.", "Go!"]), max_size=8))
def test_plain_sentences_come_back(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences


def test_real_text_has_sane_sentences(shared_data) -> None:
    import json
    import lzma

    with lzma.open(shared_data / "text" / "wikipedia_squad_train.jsonl.xz", "rt") as file:
        texts = [json.loads(next(file))["text"] for _ in range(40)]
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    assert 110 < sum(map(len, sentences)) / len(sentences) < 190
    assert sum(sentence[-1] in ".!?\"'”)]" for sentence in sentences) > 0.95 * len(sentences)
    assert sum(sentence[0].islower() for sentence in sentences) < 0.02 * len(sentences)
    assert sum(sentence.endswith((" Dr.", " Mr.", " Mrs.", " St.")) for sentence in sentences) <= 0.002 * len(sentences)
