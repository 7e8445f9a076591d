"""The prompts beyond the reference's own strings (those are in `bertjax verify`): labels, forms of records, errors."""

import math
import re
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import Prompt, TextToText
from bertjax.data.preprocess.prompts import t5_prompts
from bertjax.data.preprocess.prompts.registry import get_prompt
from bertjax.data.preprocess.prompts.t5_prompts import TextExample, pad_punctuation
from bertjax.errors import UserError
from bertjax.verify.prompts import BY_RULE, FROM_REFERENCE_TESTS, make_examples


def one(prompt: str, record: dict) -> TextExample:
    (example,) = make_examples(prompt, record)
    return example


def test_every_prompt_of_the_schema_is_checked():
    assert {prompt for prompt, _, _ in FROM_REFERENCE_TESTS + BY_RULE} == set(Prompt.__args__)


@pytest.mark.parametrize("label", ["contradiction", "CONTRADICTION", 2, "2", 2.0])
def test_a_label_in_any_form(label):
    example = one("glue_mnli", {"premise": "P", "hypothesis": "H", "label": label, "idx": 7})
    assert (example.targets, example.references) == ("contradiction", ("contradiction",))
    assert example.extra == {"label": 2, "id": 7}


@pytest.mark.parametrize(("label", "number"), [(True, 1), ("true", 1), (False, 0), ("0", 0), (1, 1)])
def test_truth_values(label, number):
    example = one("super_glue_boolq", {"passage": "P", "question": "Q", "label": label})
    assert example.extra["label"] == number and example.targets == ("False", "True")[number]
    copa = {"premise": "P", "choice1": "A", "choice2": "B", "question": "cause"}
    assert label == "true" or one("super_glue_copa", copa | {"label": label}).targets == f"choice{number + 1}"


@pytest.mark.parametrize("label", [-1, "-1", "", None])
def test_a_hidden_label_is_unknown(label):
    example = one("glue_sst2", {"sentence": "S", "label": label})
    assert (example.targets, example.references, example.extra) == ("<unk>", (), {"label": -1})


@pytest.mark.parametrize("label", ["good", 2, -2, 0.5, "1.0", math.nan, [1]])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(UserError, match="is none of negative, positive"):
        make_examples("glue_sst2", {"sentence": "S", "label": label})


@pytest.mark.parametrize(
    ("prompt", "record", "says"),
    [
        ("glue_sst2", {"text": "S", "label": 1}, "no field 'sentence'; there are: text, label"),
        ("glue_sst2", {"sentence": "S"}, "no field 'label'; there are: sentence"),
        ("glue_sst2", {"sentence": None, "label": 1}, "field 'sentence' holds nothing"),
        ("glue_sst2", {"sentence": {"a": 1}, "label": 1}, "field 'sentence' holds a dict"),
        ("glue_stsb", {"sentence1": "A", "sentence2": "B", "label": "high"}, "label 'high' is not a number"),
        ("glue_sst2", {"sentence": "A", "label": float("inf")}, "label 'inf' is none of"),
        ("glue_stsb", {"sentence1": "A", "sentence2": "B", "label": 6.8e37}, "label '6.8e+37' is no rating"),
        ("glue_stsb", {"sentence1": "A", "sentence2": "B", "label": float("nan")}, "label 'nan' is no rating"),
        ("squad", {"question": "Q", "context": "C", "answers": [None]}, "an answer is nothing"),
        ("summarize", {"document": "D", "summary": []}, "'summary' is empty"),
        ("translate", {"en": "A", "fr": "B"}, "no field 'de'; there are: en, fr"),
        ("super_glue_wsc", {"text": "A b c", "span1_text": "A", "span2_text": "d", "span2_index": 1}, "is not word 1"),
        ("glue_wnli", {"sentence1": "Nobody came.", "sentence2": "Ann came."}, "has no pronoun"),
    ],
)
def test_what_a_record_lacks(prompt, record, says):
    with pytest.raises(UserError, match=re.escape(says)):
        make_examples(prompt, record)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=4))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["text", "value", "aliases", "question", "query", "en", "a"]), inner, max_size=3
        ),
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("prompt", Prompt.__args__)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_record_is_read_or_refused_in_one_line(prompt, data):
    known = [record for name, record, _ in FROM_REFERENCE_TESTS + BY_RULE if name == prompt]
    record = dict(data.draw(st.sampled_from(known)))
    for name in data.draw(st.lists(st.sampled_from([*record, "idx", "translation", "target"]), min_size=1, max_size=2)):
        record[name] = data.draw(VALUES)
    try:
        made = make_examples(prompt, record)
    except UserError as error:
        assert "\n" not in repr(str(error)) and len(str(error)) < 300
        return
    for example in made:
        texts = (example.inputs, example.targets, *example.references)
        assert all(isinstance(text, str) for text in texts) and isinstance(example.extra, dict)


def test_extra_columns_are_left_out():
    wic = {"word": "W", "sentence1": "A", "sentence2": "B", "start1": 1, "end1": 2, "pos": "N", "label": 0, "idx": 3}
    assert one("super_glue_wic", wic).inputs == "wic sentence1: A sentence2: B word: W"


@given(st.floats(0, 5, allow_nan=False, width=32))
def test_ratings_are_fifths_rounded_half_to_even(rating):
    """Against decimal arithmetic, where the product by five in float32 is no tie that rounding made."""
    found = one("glue_stsb", {"sentence1": "A", "sentence2": "B", "label": rating})
    fifths = Decimal(rating) * 5
    if abs(fifths % 1 - Decimal("0.5")) > Decimal("1e-5"):
        assert found.targets == f"{fifths.quantize(Decimal(1), ROUND_HALF_EVEN) / 5:.1f}"
    assert found.extra["label"] == rating


@given(st.text(alphabet="aZ0_ .,'\t\n\u00e9\u2028\v-", max_size=30))
def test_padding_punctuation(text):
    padded = pad_punctuation(text)
    assert re.sub(r"[\t\n\f\r ]", "", padded) == re.sub(r"[\t\n\f\r ]", "", text)
    assert "  " not in padded and pad_punctuation(padded) == padded
    assert not re.search(r"[^ ][.,'\u00e9-]|[.,'\u00e9-][^ ]", padded)


# ---- groups, several answers ----------------------------------------------------------------------------------------


def test_multirc_is_grouped_by_question():
    record = {"paragraph": "P", "question": "Q", "answer": "A", "label": 0}
    assert one("super_glue_multirc", record | {"idx": {"paragraph": 1, "question": 9, "answer": 2}}).extra["group"] == 9
    assert one("super_glue_multirc", record).extra["group"] == ("P", "Q")


def test_record_gives_an_example_for_each_answer():
    record = {"query": "@placeholder ran.", "entities": ["Ann", "Bo"], "passage": 'Ann said "go".\n@highlight\nBo ran'}
    made = make_examples("super_glue_record", record | {"answers": ["Ann", "Bo"], "idx": {"passage": 3, "query": 4}})
    assert [example.targets for example in made] == ["Ann", "Bo"]
    assert all(example.references == ("Ann", "Bo") and example.extra["group"] == (3, 4) for example in made)
    assert made[0].inputs.endswith('passage: Ann said "go". Bo ran')


@pytest.mark.parametrize(
    "answers",
    [["U.S.", "USA"], {"text": ["U.S.", "USA"], "answer_start": [0, 5]}, [{"text": "U.S."}, {"text": "USA"}]],
)
def test_squad_pads_the_answers_and_keeps_them(answers):
    example = one("squad", {"id": "q1", "question": "Where?", "context": "In the  U.S.", "answers": answers})
    assert example.inputs == "question: Where ? context: In the U . S . "
    assert (example.targets, example.references) == ("U . S . ", ("U . S . ", "USA"))
    assert example.extra == {"id": "q1", "answers": ("U.S.", "USA")}


def test_a_question_without_answers_has_the_empty_text_as_target():
    example = one("squad", {"question": "Q", "context": "C", "answers": {"text": []}})
    assert (example.targets, example.references, example.extra) == ("", (), {"answers": ()})


def test_trivia_answers():
    assert one("trivia_qa_closed_book", {"question": "Q", "answer": ["A", "B"]}).references == ("A", "B")
    value = {"value": "A", "aliases": ["B", "A"], "normalized_value": "a"}
    assert one("trivia_qa_closed_book", {"question": "Q", "answer": value}).references == ("A", "B")


# ---- translation, summaries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("languages", [["English", "Romanian"], ["en", "ro"]])
@pytest.mark.parametrize(
    "record", [{"en": "A", "ro": "B"}, {"translation": {"en": "A", "ro": "B"}}, {"source": "A", "target": "B"}]
)
def test_translation(languages, record):
    (example,) = get_prompt(TextToText(prompt="translate", languages=languages))(record)
    assert (example.inputs, example.targets) == ("translate English to Romanian: A", "B")


def test_a_language_without_a_code_needs_its_fields():
    klingon = get_prompt(TextToText(prompt="translate", languages=["Klingon", "English"]))
    assert klingon({"source": "A", "en": "B"})[0].inputs == "translate Klingon to English: A"
    with pytest.raises(UserError, match="no field 'source'"):
        klingon({"tlh": "A", "en": "B"})


def test_the_languages_have_different_codes():
    assert len(set(t5_prompts.LANGUAGES.values())) == len(t5_prompts.LANGUAGES)


def test_a_summary_of_sentences_with_several_references():
    example = one("summarize", {"document": ["One.", "Two."], "summary": ["S1", "S2"]})
    assert (example.inputs, example.targets, example.references) == ("summarize: One. Two.", "S1", ("S1", "S2"))


# ---- Winograd -------------------------------------------------------------------------------------------------------


def test_wsc_marks_by_index_and_keeps_the_label():
    record = {"text": "X met Bo , and he laughed at him .", "span1_text": "Bo", "span2_text": "him", "idx": 5}
    example = one("super_glue_wsc", record | {"span2_index": 8, "label": 0})
    assert example.inputs == "wsc: X met Bo , and he laughed at *him* ." and example.extra == {"label": 0, "id": 5}
    published = {"text": record["text"], "target": record | {"span2_index": 8}, "label": True, "idx": 5}
    assert one("super_glue_wsc", published).extra == {"label": 1, "id": 5}


def test_wsc_where_superglue_is_off():
    """_wsc_inputs of t5/data/preprocessors.py handles these two by name."""
    start = "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
    record = {"text": start + '"Good for him," he said. ', "span1_text": "John", "span2_text": "him"}
    assert one("super_glue_wsc", record).inputs == f'wsc: {start}"Good for *him* ," he said.'
    start = (
        "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron "
    )
    start += "safe . Some day they might want to use "
    end = " , but really for now, what more could they wish for?"
    record = {"text": f"{start}it{end}", "span1_text": "a safe", "span2_text": "it", "span2_index": 25}
    assert one("super_glue_wsc", record).inputs == f"wsc: {start}*it*{end}"


def test_a_pronoun_inside_of_a_word_is_not_marked():
    record = {"sentence": "The hen and he ran, he fell.", "pronoun": "he", "candidates": ["Al", "Bo"], "label": "Bo"}
    example = one("definite_pronoun_resolution", record)
    assert (example.inputs, example.targets) == ("wsc: The hen and *he* ran, he fell.", "Bo")
