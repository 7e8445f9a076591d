"""Tokenizers of RoBERTa, XLM-R, ALBERT and ELECTRA: ids, rows, windows, words and answers as transformers has them."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from encoder_folders import KINDS, LETTERS, SENTENCES, TEXTS, is_double, tokenizer_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from span_oracle import oracle_answers
from transformers_qa import postprocess_qa_predictions

from bertjax.config.schema.data import BertPairs, BpeConfig, Classify, SpanQa
from bertjax.data.preprocess import bert_pairs, span_qa
from bertjax.data.preprocess.classify import ClassifyContext, classify_blocks
from bertjax.data.preprocess.masking import MaskingRules, mask_rows
from bertjax.data.preprocess.sentence_pairs import Pair
from bertjax.data.sources.squad import Example
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.evaluation.inference import span_decoding

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("folders")
    found = {kind: tokenizer_folder(kind, made / kind.replace(", ", "-")) for kind in KINDS}
    own = load.train_bpe(lambda: iter([SENTENCES] * 3), vocab_size=500)
    own.save(made / "own")
    return found | {"own": made / "own"}


@pytest.fixture(scope="module")
def both(folders) -> dict[str, tuple[Tokenizer, object]]:
    """(ours, transformers') by kind."""
    auto = transformers.AutoTokenizer.from_pretrained
    return {kind: (load.from_file(folder), auto(folder)) for kind, folder in folders.items()}


# ---- ids and rows ---------------------------------------------------------------------------------------------------


def assert_same_rows(ours: Tokenizer, theirs, a: list[str], b: list[str]) -> None:
    """Rows of one text and of pairs, with their types."""
    firsts, seconds = ours.encode_batch(a), ours.encode_batch(b)
    single = theirs(a, return_token_type_ids=True)
    pair = theirs(a, b, return_token_type_ids=True)
    for n, (one, other) in enumerate(zip(firsts, seconds, strict=True)):
        assert ours.layout.row(one) == (single["input_ids"][n], single["token_type_ids"][n]), a[n]
        row = ours.layout.row(one, other)
        assert row == (pair["input_ids"][n], pair["token_type_ids"][n]), (a[n], b[n])
        if ours.sep_id not in one:
            assert ours.layout.split(*row) == (one, other) and ours.layout.split(*ours.layout.row(one)) == (one, None)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_transformers_and_of_the_export(kind, both, tmp_path, capsys):
    ours, theirs = both[kind]
    assert_same_rows(ours, theirs, TEXTS, TEXTS[::-1])
    assert (ours.layout.separators, ours.layout.second_type) == ((2, 0) if is_double(kind) else (1, 1))
    roles = theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id, theirs.unk_token_id
    assert roles == (ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id, ours.unk_id)
    ours.save(tmp_path / "saved")
    again = load.from_file(tmp_path / "saved")
    assert (again.sha256, again.layout) == (ours.sha256, ours.layout)
    assert_same_rows(again, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), TEXTS, TEXTS[::-1])
    capsys.readouterr()
    assert load.from_file(tokenizer_folder(kind, tmp_path / "fresh")).sha256 == ours.sha256
    assert "note:" not in capsys.readouterr().err


PARTS = ["<mask>", "[MASK]", "</s>", "<s>", "[SEP]", "<pad>", "##", "▁", "Ġ", " ", "  ", "\t", "\n", "\u00a0", "\u3000"]
ANY_TEXT = st.lists(
    st.sampled_from(PARTS) | st.text(st.sampled_from(LETTERS), max_size=5) | st.text(max_size=3), max_size=8
).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(KINDS), texts=st.lists(ANY_TEXT, min_size=2, max_size=4))
def test_any_text_gives_the_ids_of_transformers(kind, texts, both):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert_same_rows(*both[kind], texts, texts[::-1])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("roberta", "vocab.json"), ("roberta", "merges.txt"), ("xlm-roberta", "sentencepiece.bpe.model"),
     ("albert", "spiece.model")],
)  # fmt: skip
def test_a_file_is_read_with_the_settings_beside_it(kind, name, folders, both, tmp_path):
    assert load.from_file(folders[kind] / name).sha256 == both[kind][0].sha256
    if kind == "albert":
        return  # alone, a spiece.model is T5's
    for file in folders[kind].glob("*"):
        if file.name != "config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for place in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=r"put the config\.json or tokenizer_config\.json of the model beside it"):
            load.from_file(place)


# ---- kinds of preprocessing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "albert"])
def test_pairs_of_classification_and_pre_training_follow_the_layout(kind, both):
    ours, theirs = both[kind]
    options = Classify(sequence_length=48, text_a="a", text_b="b")
    dtype = bert_pairs.row_dtype(48, cls_positions="i4", labels="i4", label_weights="f4")
    labels = type("Labels", (), {"encode": staticmethod(lambda label: (label, 1.0))})
    records = [{"a": SENTENCES[0], "b": SENTENCES[1], "label": 1}, {"a": SENTENCES[2], "b": SENTENCES[2], "label": 0}]
    rows = next(classify_blocks(ClassifyContext(ours, options, labels, dtype), records))
    for row, record in zip(rows, records, strict=True):
        cut = theirs(
            record["a"], record["b"], truncation="longest_first", max_length=48, padding="max_length",
            return_token_type_ids=True,
        )  # fmt: skip
        assert int(row["segment_ids"].sum()) == sum(cut["attention_mask"])
        if len(theirs(record["a"], record["b"])["input_ids"]) <= 48:
            assert row["input_ids"].tolist() == cut["input_ids"]
            assert row["token_type_ids"].tolist() == cut["token_type_ids"]
    a, b = ours.encode_batch(SENTENCES[:2])
    found = bert_pairs.to_row(Pair(a, b, True), 96, layout=ours.layout, pad_id=ours.pad_id)
    expected = theirs(*SENTENCES[:2], padding="max_length", max_length=96, return_token_type_ids=True)
    assert found["input_ids"].tolist() == expected["input_ids"]
    assert found["token_type_ids"].tolist() == expected["token_type_ids"]
    with pytest.raises(ValueError, match="does not fit"):
        bert_pairs.to_row(Pair(a, b, True), len(a) + len(b) + 2, layout=ours.layout)


@pytest.mark.parametrize("kind", ["roberta, json", "xlm-roberta", "albert", "electra"])
def test_windows_of_a_document_are_those_of_transformers(kind, both):
    """prepare_validation_features of run_qa.py: truncation="only_second", stride, return_overflowing_tokens."""
    ours, theirs = both[kind]
    context, question = " ".join(SENTENCES[:4]), "Which capital?"
    options = SpanQa(sequence_length=40, doc_stride=8, doc_stride_mode="overlap")
    found = span_qa.evaluation_features([Example("q", question, context, [])], ours, options)
    expected = theirs(
        question, context, truncation="only_second", max_length=40, stride=8, return_overflowing_tokens=True,
        padding="max_length", return_token_type_ids=True,
    )  # fmt: skip
    assert len(found) > 2 and found.inputs["input_ids"].tolist() == expected["input_ids"]
    assert found.inputs["segment_ids"].tolist() == expected["attention_mask"]
    # the library gives XLM-R's further windows, whose types its model never reads, other types than the first
    windows = slice(0, 1 if kind == "xlm-roberta" else None)
    types = np.array(expected["token_type_ids"]) * found.inputs["segment_ids"]
    assert found.inputs["token_type_ids"][windows].tolist() == types[windows].tolist()
    inside = np.array([[i == 1 for i in expected.sequence_ids(n)] for n in range(len(found))])
    spaces = np.isin(found.inputs["input_ids"], [ours.pieces.index(x) for x in ("Ġ", "▁") if x in ours.pieces])
    assert ((found.token_to_word >= 0) | spaces)[inside].all() and (found.token_to_word[~inside] < 0).all()


ANSWERS = [
    (0, "mat"), (0, "dog sat"), (1, "France"), (1, "Paris"), (2, "seldom affable"), (3, "Straße"), (5, "English"),
    (6, "北京"), (7, "ภาษาไทย"), (8, "लिखा हुआ"), (9, "العربية"), (10, "한국"), (11, "😀"), (11, "👩\u200d👩\u200d👧"),
    (11, "🇩🇪"), (11, "👍🏽"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "own"])
def test_answers_are_exact_in_every_script(kind, both):
    """The text of the labelled tokens is the answer: without the space of Ġ and ▁, with all bytes of a letter.

    An unknown word is one token.
    """
    ours, _ = both[kind]
    examples = [
        Example(f"{n}", "What?", SENTENCES[at], [(text, SENTENCES[at].index(text))])
        for n, (at, text) in enumerate(ANSWERS)
    ]
    found = oracle_answers(examples, ours, SpanQa(sequence_length=192))
    for example in examples:
        text, answer = example.answers[0][0], found[example.id]
        assert answer is not None and text in answer and answer == answer.strip()
        (ids,) = ours.encode_batch([example.context])
        assert answer == text or ours.unk_id in ids, text


def test_the_rules_of_run_squad_need_wordpiece(both):
    example = Example("q", "Who?", SENTENCES[0], [("cat", 4)])
    for kind, (ours, _) in both.items():
        options = SpanQa(sequence_length=96, doc_stride=8, profile="bert")
        if kind == "electra":
            assert len(span_qa.training_features([example], ours, options)) >= 1
            continue
        with pytest.raises(UserError, match=r"preprocess\.profile: bert follows run_squad\.py.*set profile to hf"):
            span_qa.training_features([example], ours, options)


# ---- masks ----------------------------------------------------------------------------------------------------------


def word_numbers(theirs, text: str) -> list[int]:
    """transformers' words of a row without special tokens: a new one where characters lie between two tokens."""
    offsets = theirs(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    words, last = [], -1
    for number, (start, stop) in enumerate(offsets):
        words.append((words[-1] if words else 0) + (number > 0 and start > last))  # bytes of a letter share its place
        last = stop
    return words


@pytest.mark.parametrize("kind", ["roberta, json", "xlm-roberta", "albert", "own"])
def test_words_are_those_of_transformers(kind, both):
    """DataCollatorForLanguageModeling(whole_word_mask=True): white space separates words."""
    ours, theirs = both[kind]
    for text in (SENTENCES[0], SENTENCES[1], SENTENCES[2], SENTENCES[3], SENTENCES[10]):
        (ids,) = ours.encode_batch([text])
        if ours.unk_id in ids:  # ALBERT's of Korean, decomposed here: an unknown token is a word
            continue
        starts = [n == 0 or not ours.is_continuation[i] for n, i in enumerate(ids)]
        words = word_numbers(theirs, text)
        assert starts == [n == 0 or words[n] != words[n - 1] for n in range(len(words))], text


@pytest.mark.parametrize("kind", ["roberta, json", "xlm-roberta", "albert", "own"])
def test_whole_words_are_masked_and_special_tokens_never(kind, both):
    ours, theirs = both[kind]
    mask = ours.special.roles["mask"]
    texts = [f"{SENTENCES[0]} {mask} {SENTENCES[1]}", SENTENCES[1] + mask + "x", SENTENCES[5], SENTENCES[6]]
    rules = MaskingRules.from_options(BertPairs(whole_word_mask=True, masked_lm_prob=0.3), ours)
    assert (rules.mask_id, rules.vocab_size) == (theirs.mask_token_id, len(theirs))
    rows = np.full((len(texts), 160), ours.pad_id, np.int32)
    segments = np.zeros_like(rows)
    for n, ids in enumerate(ours.encode_batch(texts)):
        row, _ = ours.layout.row(ids)
        rows[n, : len(row)], segments[n, : len(row)] = row, 1
    special = {theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id}
    special |= {theirs.mask_token_id} if ours.special.in_text else set()
    chosen_words = 0
    for epoch in range(30):
        made = mask_rows(
            {"input_ids": rows, "segment_ids": segments}, rules, seed=1, epoch=epoch, indices=np.arange(len(rows))
        )
        for n, row in enumerate(rows):
            places = made["masked_positions"][n][made["masked_weights"][n] > 0]
            assert len(places), texts[n]  # also in scripts without spaces
            assert not special & set(row[places].tolist())
            chosen = set(places.tolist())
            for place in places.tolist():
                for near, inside in ((place - 1, place), (place + 1, place + 1)):
                    both_real = segments[n, near] and int(row[near]) not in special
                    if both_real and ours.is_continuation[row[inside]]:
                        assert near in chosen
                        chosen_words += 1
    assert chosen_words > 100


def test_byte_pieces_of_scripts_without_spaces(both):
    """北 in three pieces of one byte is one word; every Chinese letter begins one."""
    ours = both["own"][0]
    (ids,) = ours.encode_batch(["x鑿鑫"])
    assert len(ids) == 7 and [not ours.is_continuation[i] for i in ids[1:]] == [True, False, False] * 2


# ---- training -------------------------------------------------------------------------------------------------------


def test_a_trained_bpe_is_roberta_s_and_read_by_transformers(both, folders):
    ours, theirs = both["own"]
    assert ours.pieces[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] and ours.vocab_size == 500
    plain = [text for text in TEXTS if "<" not in text]  # text never gives a special token here, as for WordPiece
    assert_same_rows(ours, theirs, plain, plain[::-1])
    assert not set(ours.encode_batch(["<mask> <s> </s>"])[0]) & set(range(5))
    assert theirs.convert_ids_to_tokens(theirs("a <mask> cat")["input_ids"])[1:4] == ["a", "<mask>", "Ġcat"]
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert ours.decode(ids) == text
    (sentences,) = bert_pairs.tokenize_sentences(iter([SENTENCES[:3]]), ours)
    joined = theirs(" ".join(SENTENCES[:3]), add_special_tokens=False)["input_ids"]
    assert [i for ids in sentences for i in ids] == joined


def test_training_is_the_same_in_every_process(both, tmp_path):
    code = (
        "import sys; from bertjax.data.tokenizers import load; from encoder_folders import SENTENCES\n"
        "print(load.train_bpe(lambda: iter([SENTENCES] * 3), vocab_size=500).sha256)"
    )
    kit = str(Path(__file__).parents[1] / "kit")
    environment = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "PYTHONPATH": ":".join([kit, *sys.path])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == both["own"][0].sha256


def test_a_bpe_of_a_configuration(tmp_path):
    def made(**options):
        config = BpeConfig(**options)
        return load.load(
            config, tmp_path, vocab_size=400, train_source_documents=lambda: iter([SENTENCES]), cache=tmp_path,
            fingerprint="text",
        )  # fmt: skip

    ours = made(min_frequency=1)
    assert ours.vocab_size == 400 and made(min_frequency=1).sha256 == ours.sha256
    assert made(vocab_size=300, min_frequency=1).vocab_size == 300
    with pytest.raises(UserError, match=r"vocab_size: 260 is too small .* at least 261"):
        made(vocab_size=260)
    with pytest.raises(UserError, match="no two letters stand together 1000 times"):
        made(min_frequency=1000)
    ours.save(tmp_path / "kept")
    assert made(path="kept").sha256 == ours.sha256


# ---- answers out of logits ------------------------------------------------------------------------------------------


def widened(text: str, start: int, stop: int) -> tuple[int, int] | None:
    """Offsets of transformers without white space, and as bertjax widens them: to complete words and numbers."""

    def inside(place: int) -> bool:
        pair = text[place - 1 : place + 1] if place else ""
        latin = all(unicodedata.name(char, "").startswith("LATIN ") for char in pair)
        return len(pair) == 2 and (latin or pair.isdigit())

    start += len(text[start:stop]) - len(text[start:stop].lstrip())
    stop = max(start, len(text[:stop].rstrip()))
    if start == stop:
        return None  # a piece of white space
    while inside(start):
        start -= 1
    while inside(stop):
        stop += 1
    return start, stop


@pytest.mark.parametrize("kind", ["roberta, json", "xlm-roberta", "albert", "own"])
def test_answers_are_those_of_run_qa(kind, both):
    """postprocess_qa_predictions of transformers' utils_qa.py on the offsets of transformers' tokenizer."""
    ours, theirs = both[kind]
    options = SpanQa(sequence_length=40, doc_stride=8, doc_stride_mode="overlap")
    contexts = [" ".join(SENTENCES[:2]), " ".join(SENTENCES[2:4]), SENTENCES[5] + " " + SENTENCES[6]]
    examples = [Example(str(n), "What cat?", context, []) for n, context in enumerate(contexts)]
    features = span_qa.evaluation_features(examples, ours, options)
    logits = np.random.default_rng(3).normal(size=(2, *features.token_to_word.shape)) * 3
    predictions, nbest, _ = span_decoding.predict_answers(examples, features, *logits, version_2=True)
    for number, example in enumerate(examples):
        found = theirs(
            example.question, example.context, truncation="only_second", max_length=40, stride=8,
            return_overflowing_tokens=True, return_offsets_mapping=True, padding="max_length",
        )  # fmt: skip
        rows = np.flatnonzero(features.example_index == number)
        windows = [
            {
                "offset_mapping": [
                    widened(example.context, *place) if sequence == 1 else None
                    for place, sequence in zip(found["offset_mapping"][n], found.sequence_ids(n), strict=True)
                ],
                "token_is_max_context": features.max_context[row],
            }
            for n, row in enumerate(rows)
        ]
        want, entries, _ = postprocess_qa_predictions(
            example.context, windows, *logits[:, rows], version_2=True, n_best_size=20, max_answer_length=30,
            null_score_diff_threshold=0.0,
        )  # fmt: skip
        assert predictions[example.id] == want
        assert [entry["text"] for entry in nbest[example.id]] == [entry["text"] for entry in entries]
