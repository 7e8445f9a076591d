"""Choose the columns of records: the text, the second text, the label or the target."""

from collections.abc import Sequence
from typing import Any

from bertjax.config.loading.introspect import closest_match
from bertjax.errors import UserError, escape_unprintable

Records = Sequence[dict[str, Any]]

LABELS = (
    "label", "labels", "class", "category", "sentiment", "gold_label", "target", "polarity", "quality", "intent",
    "topic", "emotion", "is_duplicate", "score", "rating", "stars", "y",
)  # fmt: skip
TEXTS = (
    "text", "sentence", "review", "content", "comment", "comment_text", "tweet", "message", "body", "question",
    "utterance", "verse", "document", "article", "title", "description",
)  # fmt: skip
PAIRS = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("text_a", "text_b"),
    ("text1", "text2"), ("text_1", "text_2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("#1 string", "#2 string"), ("question", "sentence"), ("question", "passage"), ("query", "document"),
    ("query", "passage"), ("context", "response"),
)  # fmt: skip
INPUTS_TARGETS = (
    ("input", "output"), ("inputs", "outputs"), ("input", "target"), ("inputs", "targets"), ("source", "target"),
    ("src", "tgt"), ("prompt", "completion"), ("prompt", "response"), ("instruction", "response"),
    ("instruction", "output"), ("article", "highlights"), ("document", "summary"), ("article", "summary"),
    ("text", "summary"), ("text", "target"), ("question", "answer"), ("en", "de"), ("en", "fr"), ("en", "ro"),
)  # fmt: skip


def find_column(sample: Records, option: str, given: str | None) -> str | None:
    """The column that an option names. Raises UserError for an unknown one."""
    names = column_names(sample)
    if given is None or given in names:
        return given
    folded = [name for name in names if name.casefold() == given.casefold()]
    if len(folded) == 1:
        return folded[0]
    close = closest_match(given, names)
    hint = f"; did you mean '{close}'?" if close else ""
    raise UserError(f"{option}: no column '{given[:60]}'; the columns are: {_shown(names)}{hint}")


def check_given(sample: Records, **given: str | None) -> None:
    """Check all columns that options name. Raises UserError for an unknown one and for one named twice."""
    found: dict[str, str] = {}
    for option, name in given.items():
        if (column := find_column(sample, f"--{option}", name)) is not None and column in found:
            raise UserError(f"--{option}: '{column[:60]}' is the column of --{found[column]} too; name another one")
        elif column is not None:
            found[column] = option


def column_names(sample: Records) -> list[str]:
    """All names; a column without one is passed over."""
    return list(dict.fromkeys(name for record in sample for name in record if name.strip()))


def text_columns(sample: Records) -> list[str]:
    """Columns with text in most records, longest texts first."""
    lengths = {}
    for name in column_names(sample):
        texts = [value for record in sample if isinstance(value := record.get(name), str)]
        if texts and len(texts) >= len(sample) / 2 and sum(map(_is_number, texts)) < len(texts) / 2:
            lengths[name] = sum(map(len, texts)) / len(texts)
    return sorted(lengths, key=lambda name: -lengths[name])


def choose_label(sample: Records, given: str | None) -> str:
    """The column of the labels: the given one, a usual name, or the only one with few values. Raises UserError."""
    if found := find_column(sample, "--label", given):
        return found
    if found := _by_name(sample, LABELS):
        return found
    few = [
        name for name in column_names(sample) if 2 <= len(_values(sample, name)) <= max(2, min(20, len(sample) // 3))
    ]
    if len(few) == 1:
        return few[0]
    raise UserError(f"--label: name the column of the labels; the columns are: {_shown(column_names(sample))}")


def choose_texts(sample: Records, label: str, text: str | None, pair: str | None) -> tuple[str, str | None]:
    """(first text, second text or None): the given ones, a usual pair or name, or the only text. Raises UserError."""
    first, second = find_column(sample, "--text", text), find_column(sample, "--pair", pair)
    if first is not None:
        return first, second
    texts = [name for name in text_columns(sample) if name != label]
    if second is not None:
        rest = [name for name in texts if name != second]
        if len(rest) == 1:
            return rest[0], second
        raise UserError(f"--text: name the column of the first text; the columns are: {_shown(column_names(sample))}")
    if found := _pair_by_name(texts, PAIRS):
        return found
    if found_text := _by_name([{name: "" for name in texts}], TEXTS):
        return found_text, None
    running = [name for name in texts if _has_spaces(sample, name)] or texts  # the others may be ids
    if len(running) == 1:
        return running[0], None
    names = _shown(texts or column_names(sample))
    raise UserError(f"--text: name the column of the text (and --pair for a second one); the columns are: {names}")


def choose_text(sample: Records, given: str | None) -> str:
    """The column of the running text. Raises UserError."""
    if found := find_column(sample, "--text", given):
        return found
    texts = text_columns(sample)
    if found := _by_name([{name: "" for name in texts}], TEXTS):
        return found
    if len(texts) == 1:
        return texts[0]
    raise UserError(f"--text: name the column of the text; the columns are: {_shown(texts or column_names(sample))}")


def choose_target(sample: Records, text: str | None, target: str | None) -> tuple[str, str] | None:
    """(input, target) columns: the given ones, a usual pair, or the only two texts; None if there is only one text.

    Raises UserError if there are several candidates.
    """
    first, second = find_column(sample, "--text", text), find_column(sample, "--target", target)
    if first is not None and second is not None:
        return first, second
    names = column_names(sample)
    if first is None and second is None and (found := _pair_by_name(names, INPUTS_TARGETS)):
        return found
    texts = [name for name in text_columns(sample) if name not in (first, second)]
    if second is not None and len(texts) == 1:
        return texts[0], second
    if second is None and not texts[first is None :]:
        return None
    shown = _shown(names)
    raise UserError(f"--text, --target: name the columns of the inputs and the targets; the columns are: {shown}")


def _by_name(sample: Records, wanted: Sequence[str]) -> str | None:
    folded = {name.casefold(): name for name in column_names(sample)}
    return next((folded[name] for name in wanted if name in folded), None)


def _pair_by_name(names: Sequence[str], wanted: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    folded = {name.casefold(): name for name in names}
    return next(((folded[a], folded[b]) for a, b in wanted if a in folded and b in folded), None)


def _values(sample: Records, name: str) -> set[Any]:
    return {value for record in sample if isinstance(value := record.get(name), str | int | float | bool)}


def _has_spaces(sample: Records, name: str) -> bool:
    return any(len(value.split()) > 1 for record in sample if isinstance(value := record.get(name), str))


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").replace(".", "", 1).isdecimal()


def _shown(names: Sequence[str]) -> str:
    text = escape_unprintable(", ".join(names))
    return text if len(text) <= 200 else text[:200] + ", ..."
