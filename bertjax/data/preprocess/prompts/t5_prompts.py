"""The prompts of the T5 paper (arXiv 1910.10683 appendix D): a record of a known data set as inputs and targets.

The strings are those of google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py and glue_utils.py.
A record has the fields of TFDS; a missing or wrong one raises a UserError, to which the reader adds the record's place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bertjax.data.sources import record_values
from bertjax.data.sources.record_values import Record, get_field, record_id, text_field, to_text
from bertjax.errors import UserError

UNKNOWN_TARGET = "<unk>"  # the target where a label is hidden


@dataclass(frozen=True, slots=True)
class TextExample:
    """Inputs and targets of the model, as text; `references` are all correct answers, () where there is none or none is
    known. `extra` has what scores need besides, where it exists:
        id: the record's `id` or `idx`
        label: number of the class (`class_names`), -1 where hidden; of STS-B the rating before it is rounded, of WSC
            and WNLI 0 or 1
        group: equal for the examples that are scored together (the question of MultiRC, the query of ReCoRD)
        answers: the references of the data set, before `pad_punctuation`
    """

    inputs: str
    targets: str
    references: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)


PromptFn = Callable[[Record], list[TextExample]]


# ---- GLUE and SuperGLUE ---------------------------------------------------------------------------------------------

_NLI = ("entailment", "neutral", "contradiction")
_RTE = ("entailment", "not_entailment")
_BOOL = ("False", "True")
_PAIR, _PREMISE = ("sentence1", "sentence2"), ("hypothesis", "premise")
# prompt -> (name in the text, fields in the order they are written in, classes in TFDS's order)
GLUE_TASKS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "glue_cola": ("cola", ("sentence",), ("unacceptable", "acceptable")),
    "glue_sst2": ("sst2", ("sentence",), ("negative", "positive")),
    "glue_mrpc": ("mrpc", _PAIR, ("not_equivalent", "equivalent")),
    "glue_qqp": ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "glue_mnli": ("mnli", _PREMISE, _NLI),
    "glue_ax": ("mnli", _PREMISE, _NLI),
    "glue_qnli": ("qnli", ("question", "sentence"), _RTE),
    "glue_rte": ("rte", _PAIR, _RTE),
    "super_glue_boolq": ("boolq", ("passage", "question"), _BOOL),
    "super_glue_cb": ("cb", _PREMISE, ("entailment", "contradiction", "neutral")),
    "super_glue_copa": ("copa", ("choice1", "choice2", "premise", "question"), ("choice1", "choice2")),
    "super_glue_multirc": ("multirc", ("question", "answer", "paragraph"), _BOOL),
    "super_glue_rte": ("rte", _PREMISE, _RTE),
    "super_glue_wic": ("wic", ("sentence1", "sentence2", "word"), _BOOL),
    "super_glue_axb": ("rte", _PREMISE, _RTE),
    "super_glue_axg": ("rte", _PREMISE, _RTE),
}


def class_id(value: Any, classes: tuple[str, ...]) -> int:
    """The number of a label given as a name (any case), a number, either of them as text, or a bool; -1 where hidden.

    Hidden are -1, an empty text and null, as in the test files. Raises UserError for anything else.
    """
    if value is None or value == "":
        return -1
    name = to_text(value)
    folded = [known.casefold() for known in classes]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):  # a float may be infinite
        number = -2
    if not -1 <= number < len(classes) or (isinstance(value, float) and value != number):
        raise UserError(f"label '{name[:40]}' is none of {', '.join(classes)} and no number of one; use 'labels'")
    return number


def glue(record: Record, name: str, texts: tuple[str, ...], classes: tuple[str, ...]) -> list[TextExample]:
    """'<name> <field>: <text> <field>: <text>' and the label's name: `glue` of t5/data/preprocessors.py."""
    inputs = " ".join([name, *(f"{key}: {text_field(record, key)}" for key in texts)])
    label = class_id(get_field(record, "label"), classes)
    targets = UNKNOWN_TARGET if label < 0 else classes[label]
    return [TextExample(inputs, targets, (targets,) if label >= 0 else (), record_id(record) | {"label": label})]


def _group(record: Record, numbers: tuple[str, ...], texts: tuple[str, ...]) -> Any:
    """The numbers in the record's `idx`, else texts of it."""
    index = record.get("idx")
    if isinstance(index, Mapping) and all(name in index for name in numbers):
        return index[numbers[0]] if len(numbers) == 1 else tuple(index[name] for name in numbers)
    return tuple(text_field(record, name) for name in texts)


def multirc(record: Record, name: str, texts: tuple[str, ...], classes: tuple[str, ...]) -> list[TextExample]:
    """`glue` without the markup; grouped by question."""
    (example,) = glue(record, name, texts, classes)
    inputs = re.sub("</?b>", "", example.inputs.replace("<br>", " "))
    group = _group(record, ("question",), ("paragraph", "question"))
    return [replace(example, inputs=inputs, extra=example.extra | {"group": group})]


def axb(record: Record, name: str, texts: tuple[str, ...], classes: tuple[str, ...]) -> list[TextExample]:
    """The diagnostic set as RTE: its sentences are premise and hypothesis (register_super_glue of glue_utils.py)."""
    if "premise" not in record:
        record = {**record, "premise": get_field(record, "sentence1"), "hypothesis": get_field(record, "sentence2")}
    return glue(record, name, texts, classes)


def stsb(record: Record) -> list[TextExample]:
    """Round an STS-B rating to a multiple of 0.2 (float32, ties to even): 26 classes (`stsb`)."""
    inputs = f"stsb sentence1: {text_field(record, 'sentence1')} sentence2: {text_field(record, 'sentence2')}"
    value = get_field(record, "label")
    try:
        rating = float(-1.0 if value in (None, "") else value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"label '{to_text(value)[:40]}' is not a number; name the rating's field in 'fields'") from None
    if not abs(rating) < 1e6:  # NaN too
        raise UserError(
            f"label '{to_text(value)[:40]}' is no rating between 0 and 5; name the rating's field in 'fields'"
        )
    targets = f"{np.rint(np.float32(rating) * np.float32(5)) / np.float32(5):.1f}"
    return [TextExample(inputs, targets, (targets,), record_id(record) | {"label": rating})]


def record_cloze(record: Record) -> list[TextExample]:
    """ReCoRD: one example for each answer, all of them right (`record`); without answers one with a hidden target."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", text_field(record, "passage")).replace("\n@highlight\n", ". ")
    query, entities = text_field(record, "query"), ", ".join(answer_texts(get_field(record, "entities")))
    inputs = f"record query: {query} entities: {entities} passage: {passage}"
    answers = tuple(answer_texts(get_field(record, "answers")))
    group = _group(record, ("passage", "query"), ("passage", "query"))
    return [
        TextExample(inputs, each, answers, record_id(record) | {"group": group})
        for each in answers or (UNKNOWN_TARGET,)
    ]


# ---- questions ------------------------------------------------------------------------------------------------------

# As RE2 reads \W and \s in the reference: ASCII only, so that letters with accents are padded like punctuation.
_NO_WORD, _SPACES = re.compile(r"(\W)", re.ASCII), re.compile("[\t\n\f\r ]+")


def pad_punctuation(text: str) -> str:
    """Spaces around everything but ASCII letters, digits and '_', no two in a row (`_pad_punctuation`)."""
    return _SPACES.sub(" ", _NO_WORD.sub(r" \1 ", text))


def _join(*parts: str) -> str:
    return _SPACES.sub(" ", " ".join(parts))


def answer_texts(value: Any) -> list[str]:
    """Answers in any of their forms: a text, a list of them, objects with `text` (SQuAD), `value` and `aliases`."""
    if isinstance(value, Mapping):
        if "aliases" in value:  # TriviaQA: the answer itself goes first
            first = [value["value"]] if "value" in value else []
            return list(dict.fromkeys(answer_texts([*first, value["aliases"]])))
        value = value.get("text", value.get("value"))
    if isinstance(value, list | tuple):
        return [text for item in value for text in answer_texts(item)]
    if record_values.is_text_like(value):
        return [str(value)]
    raise UserError(f"an answer is {record_values.describe_value(value)}, not text; name another field under 'fields'")


def squad(record: Record, context: bool = True) -> list[TextExample]:
    """'question: .. context: ..' or 'squad trivia question: ..', the first answer as target (`squad`).

    A question without answers (SQuAD 2.0), which the reference does not have, has the empty text as target.
    """
    raw = tuple(answer_texts(get_field(record, "answers")))
    padded = tuple(map(pad_punctuation, raw))
    question = pad_punctuation(text_field(record, "question"))
    if context:
        inputs = _join("question:", question, "context:", pad_punctuation(text_field(record, "context")))
    else:
        inputs = _join("squad trivia question:", question)
    return [TextExample(inputs, padded[0] if padded else "", padded, record_id(record) | {"answers": raw})]


def squad_closed_book(record: Record) -> list[TextExample]:
    return squad(record, context=False)


def trivia_qa_closed_book(record: Record) -> list[TextExample]:
    """`trivia_qa_open` of google-research/t5_closed_book_qa: the answer's value; any alias is right."""
    answers = tuple(answer_texts(get_field(record, "answer")))
    if not answers:
        raise UserError("'answer' is empty; leave the record out")
    inputs = f"trivia_qa question: {text_field(record, 'question')}"
    return [TextExample(inputs, answers[0], answers, record_id(record) | {"answers": answers})]


# ---- translation, summaries -----------------------------------------------------------------------------------------

LANGUAGES = {
    "Arabic": "ar", "Chinese": "zh", "Czech": "cs", "Dutch": "nl", "English": "en", "Estonian": "et", "Finnish": "fi",
    "French": "fr", "German": "de", "Greek": "el", "Hindi": "hi", "Italian": "it", "Japanese": "ja", "Korean": "ko",
    "Latvian": "lv", "Lithuanian": "lt", "Polish": "pl", "Portuguese": "pt", "Romanian": "ro", "Russian": "ru",
    "Spanish": "es", "Swedish": "sv", "Turkish": "tr", "Ukrainian": "uk", "Vietnamese": "vi",
}  # fmt: skip


def translate(record: Record, languages: Sequence[str]) -> list[TextExample]:
    """'translate English to German: ..' (`translate`). Languages are names, or codes of two letters.

    The texts are the fields `source` and `target`, else those named by the languages' codes, as in WMT; both may lie
    inside of a field `translation`, as Hugging Face has them.
    """
    names = {code: name for name, code in LANGUAGES.items()}
    spelt = [names.get(language, language) for language in languages]
    texts = []
    for name, language in zip(("source", "target"), spelt, strict=True):
        inside = record.get("translation")
        where = inside if isinstance(inside, Mapping) and name not in record else record
        code = LANGUAGES.get(language)
        texts.append(text_field(where, name if name in where or code is None else code))
    return [TextExample(f"translate {spelt[0]} to {spelt[1]}: {texts[0]}", texts[1], (texts[1],), record_id(record))]


def summarize(record: Record) -> list[TextExample]:
    """'summarize: <document>' (`summarize`). Several summaries are several references, the first one the target.

    The fields are `document` and `summary`, else CNN/Daily Mail's `article` and `highlights`.
    """
    document = "document" if "document" in record or "article" not in record else "article"
    summary = "summary" if "summary" in record or "highlights" not in record else "highlights"
    summaries = tuple(answer_texts(get_field(record, summary)))
    if not summaries:
        raise UserError(f"'{summary}' is empty; leave the record out")
    return [TextExample(f"summarize: {text_field(record, document)}", summaries[0], summaries, record_id(record))]
