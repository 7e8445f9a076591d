"""Answers as characters: for every normalizer, tokenizer and script the label's text is the answer itself."""

import json
import logging

import pytest
from preparing import rows_and_counts
from span_oracle import oracle_answers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bertjax.config.schema.data import SpanQa, Task
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.pipeline.loader import open_task
from bertjax.data.preprocess import span_qa
from bertjax.data.preprocess.qa_documents import find_answer
from bertjax.data.sources.squad import Example, read_squad
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers.load import Tokenizer as BertTokenizer
from bertjax.evaluation.metrics import squad

# (context, answers in it): the first place of each answer is meant
TEXTS = [
    ('John Smith (1895-1943), a six-year-old\'s "friend", paid €27,814.', ["1895", "six", "friend", "27,814"]),
    ("The 1990s: Beyoncé's café in São Paulo, NOT Zürich.", ["1990", "Beyoncé", "café", "São Paulo", "NOT Zürich"]),
    ("The 1990s: Beyonce\u0301's cafe\u0301 in Zu\u0308rich.", ["Beyonce\u0301", "cafe\u0301", "Zu\u0308rich"]),
    ("北京是中华人民共和国的首都。人口2154万。", ["北京", "首都", "2154万", "中华人民共和国"]),
    ("日本の首都は東京です。ひらがなとカタカナ。", ["首都", "東京", "カタカナ"]),
    ("กรุงเทพเป็นเมืองหลวงของไทย", ["กรุงเทพ", "เมืองหลวง", "ไทย"]),
    ("दिल्ली भारत की राजधानी है।", ["दिल्ली", "भारत", "राजधानी"]),
    ("서울은 한국의 수도이다.", ["서울", "수도"]),
    ("القاهرة هي عاصمة مصر.", ["القاهرة", "عاصمة مصر"]),
    (
        "The city\u00a0of\u00a0Paris\tis\u2003old; \u200bRome\u200b is older.",
        ["city\u00a0of\u00a0Paris", "old", "Rome"],
    ),
    ("An eﬃcient oﬃce of ＡＢＣ costs 5 kΩ.", ["eﬃcient", "oﬃce", "ＡＢＣ", "5 kΩ"]),
    ("She said 👍🏽 to 👩\u200d💻 and 🇩🇪!", ["👍🏽", "👩\u200d💻", "🇩🇪"]),
    ("Is İstanbul bigger than STRASSE or Straße?", ["İstanbul", "Straße", "STRASSE"]),
]
EXAMPLES = [
    Example(f"{n}-{m}", "What?", context, [(answer, context.index(answer))])
    for n, (context, answers) in enumerate(TEXTS)
    for m, answer in enumerate(answers)
]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NORMALIZERS = {
    "uncased": normalizers.BertNormalizer(lowercase=True),
    "cased": normalizers.BertNormalizer(lowercase=False),
    "accents kept": normalizers.BertNormalizer(lowercase=True, strip_accents=False),
    "Chinese not parted": normalizers.BertNormalizer(handle_chinese_chars=False),
    "NFD, Lowercase, StripAccents": normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    ),
    "NFKC": normalizers.NFKC(),
    "NFC, Lowercase": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
    "Lowercase": normalizers.Lowercase(),
    "none": None,
}


def letters(normalizer: normalizers.Normalizer | None) -> list[str]:
    texts = [text for context, _ in TEXTS for text in (context, "What?")]
    return sorted({char for text in texts for char in (normalizer.normalize_str(text) if normalizer else text)})


def of(backend: Tokenizer, normalizer: normalizers.Normalizer | None) -> BertTokenizer:
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(SPECIALS)
    return load.from_json(backend.to_str(), "a test")


def wordpiece(normalizer: normalizers.Normalizer | None) -> BertTokenizer:
    """Every letter is a piece."""
    found = letters(normalizer)
    pieces = [*SPECIALS, *found, *(f"##{letter}" for letter in found)]
    backend = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return of(backend, normalizer)


def byte_level(normalizer: normalizers.Normalizer | None) -> BertTokenizer:
    """Every byte is a piece, and every space one with the byte behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in alphabet]
    pieces = [*SPECIALS, *alphabet, *("Ġ" + letter for letter in alphabet)]
    backend = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return of(backend, normalizer)


def unigram(normalizer: normalizers.Normalizer | None) -> BertTokenizer:
    """Letters, some with a word start in front."""
    pieces = [(piece, 0.0) for piece in SPECIALS] + [("▁", -5.0)]
    pieces += [(letter, -4.0) for letter in letters(normalizer)]
    pieces += [("▁" + letter, -4.5) for letter in letters(normalizer) if letter.isalpha()]
    backend = Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return of(backend, normalizer)


@pytest.mark.parametrize("make", [wordpiece, byte_level, unigram])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_the_label_of_an_answer_is_its_text(make, name):
    tokenizer = make(NORMALIZERS[name])
    found = oracle_answers(EXAMPLES, tokenizer, SpanQa(sequence_length=192))
    assert {e.id: found[e.id] for e in EXAMPLES} == {e.id: e.answers[0][0] for e in EXAMPLES}
    assert squad.score(EXAMPLES, found)["exact_match"] == 100


def test_half_words_become_words():
    """Where an annotation ends inside a word or number; scripts without spaces have no such words."""
    context = "A New Zealander from 北京大学 in 1817."
    cases = {"New Zealand": "New Zealander", "ea": "Zealander", "京大": "京大", "181": "1817", "w Zealander f": None}
    cases["w Zealander f"] = "New Zealander from"
    examples = [Example(text, "What?", context, [(text, context.index(text))]) for text in cases]
    backend_letters = sorted(set(context) | set("What?"))
    pieces = [*SPECIALS, *backend_letters, *(f"##{letter}" for letter in backend_letters)]
    backend = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert oracle_answers(examples, of(backend, None), SpanQa(sequence_length=96)) == cases


@pytest.mark.parametrize(
    ("context", "text", "start", "want"),
    [
        ("in Paris now", "Paris", 3, "Paris"),
        ("in Paris now", " Paris ", 2, "Paris"),
        ("in the\u00a0city now", "the city", 3, "the\u00a0city"),
        ("in the  \n city now", "the city", 3, "the  \n city"),
        ("in the\u200bcity now", "thecity", 3, "the\u200bcity"),
        ("E\u0301tat", "État", 0, "E\u0301tat"),
        ("État", "E\u0301tat", 0, "État"),
        ("an eﬃcient way", "efficient", 3, "eﬃcient"),
        ("(1895-1943)", "1895", 0, "1895"),  # answer_start at the word's first character
        ("backwards", "wards", 4, "wards"),
        ("in Paris now", "Rome", 3, None),
        ("in Paris now", "Paris", 9, None),
        ("in paris now", "Paris", 3, None),
        ("ab", "b" * 90, 1, None),
    ],
)
def test_where_an_answer_is(context, text, start, want):
    found = find_answer(context, text, start)
    assert (context[slice(*found)] if found else None) == want


def test_questions_left_out_and_cut_are_counted(caplog, capsys):
    tokenizer = wordpiece(NORMALIZERS["cased"])
    context = TEXTS[1][0]
    examples = [
        Example("nbsp", "What?", "The city\u00a0of\u00a0Paris is old.", [("city of Paris", 4)]),
        Example("lost", "What?", context, [("Zürich", 3)]),
        Example("long", "What?" * 9, context, [("café", context.index("café"))]),
    ]
    with caplog.at_level(logging.WARNING):
        options = SpanQa(sequence_length=192, max_query_length=16)
        rows, counts = rows_and_counts(examples, tokenizer, options)
    assert len(rows) == 2 and (rows["start_positions"] > 0).all()
    assert counts["questions"].pop("left_out") == 1
    assert counts["questions"] | {"unknown": 0} == {"texts": 3, "cut": 1, "tokens": 55, "tokens_cut": 29, "unknown": 0}
    assert counts["contexts"]["texts"] == 2 and counts["contexts"]["cut"] == 0  # two questions share one
    assert not caplog.text and not capsys.readouterr().err  # `prepare` says it
    span_qa.evaluation_features(examples, tokenizer, options)
    assert "1 of 3 questions cut at max_query_length 16 (first: long)" in capsys.readouterr().err


ACCENTS = "NFD, Lowercase, StripAccents"


@pytest.mark.parametrize(
    "name", [ACCENTS, *(pytest.param(n, marks=pytest.mark.slow) for n in NORMALIZERS if n != ACCENTS)]
)
def test_real_answers_are_found_with_the_real_vocabulary(shared_data, name):
    """All but one of 632: an annotation that ends inside a number ("(2,70" of "(2,700,000")."""
    examples = read_squad(SquadFiles(files=["squad/xquad.en.first-half.json.gz"]), shared_data)
    backend = load.from_file(shared_data / "vocab" / "bert-base-uncased-vocab.txt").backend
    if NORMALIZERS[name] is not None:
        backend.normalizer = NORMALIZERS[name]
    found = oracle_answers(examples, load.from_json(backend.to_str(), name), SpanQa())
    wrong = [e.answers[0][0] for e in examples if squad.normalize(found[e.id]) != squad.normalize(e.answers[0][0])]
    assert wrong == ["7,000,000 square kilometres (2,70"]


def test_the_data_know_how_many_questions_have_no_answer(tmp_path):
    """What a checkpoint keeps for `predict`."""
    context = "John Smith was born in 1895."
    answered = {"id": "1", "question": "Who?", "answers": [{"text": "John Smith", "answer_start": 0}]}
    asked = [answered, *({"id": n, "question": "What?", "answers": [], "is_impossible": True} for n in ("2", "3"))]
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]
    (tmp_path / "v2.json").write_text(json.dumps({"version": "v2.0", "data": data}))
    task = Task(source=[SquadFiles(files=["v2.json"])], preprocess=SpanQa(sequence_length=192, pack=True))
    tokenizer = wordpiece(NORMALIZERS["cased"])
    batches = open_task(task, "qa", tokenizer, batch_size=2, seed=0, base=tmp_path, cache=tmp_path / "cache")
    assert batches.unanswerable == 2
