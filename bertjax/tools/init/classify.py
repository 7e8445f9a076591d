"""`bertjax init classify`: texts or pairs of texts with a label, several labels, or a number (regression)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bertjax.errors import UserError
from bertjax.tools.init import columns, recipe, several_labels
from bertjax.tools.init.request import BASE, Request, Result, evaluations, record_sides
from bertjax.tools.init.source import Data, sample_records
from bertjax.tools.init.survey import Labels, Survey, choose_labels, format_counts, record_reader, survey_records
from bertjax.tools.init.write import Recipe

SKEWED = 3  # times the texts of the rarest class that the largest one has, from which weights are proposed
Examples = Iterator[tuple[dict[str, Any], str, str]]  # record, its texts together, its label for the split


@dataclass(frozen=True)
class Found:
    """What the labels of the data are.

    Attributes:
        preprocess, objective: options that follow.
        survey: counts of texts and labels.
        what: the labels in words; counts: how many texts have each, in words.
        unlabeled: records without a label.
        balance: texts of the rarest and of the most frequent class; None for a regression.
    """

    preprocess: dict[str, Any]
    objective: dict[str, Any]
    survey: Survey
    what: str
    counts: str
    unlabeled: int
    balance: tuple[int, int] | None


def classify(request: Request) -> Result:
    """Look at the data -> what to write. Raises UserError."""
    data, machine = request.open(), request.machine
    if data.holds != "records":
        raise UserError(f"{data.described}: classification needs records with a text and a label, such as a CSV file")
    used, found, examples, skipped = _survey(request, data)
    text, pair, label = used
    survey, scratch = found.survey, request.pretrained is None
    keys = {"text_field": text} if scratch and text != "text" else {}  # the texts that a tokenizer is trained on
    sides = record_sides(request, data, examples, **keys)
    if sides.write is None and (found.unlabeled or skipped):
        without = f"{found.unlabeled:,} records have no '{label}'"
        if skipped:
            without = f"{len(skipped):,} records have no text (null; the first: {skipped[0]})"
        raise UserError(f"{data.described}: {without}; remove them")
    most = survey.length_at(0.95)
    length = machine.sequence_length(most)
    preprocess = {"kind": "classify", "sequence_length": length, "text_a": text}
    preprocess |= ({"text_b": pair} if pair else {}) | found.preprocess
    stage = {
        "name": "classify",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "classification", **found.objective},
        "epochs": recipe.fine_tuning_epochs(machine, survey.count),
        "batch_size": machine.batch_size(length),
        "optimizer": recipe.fine_tuning_optimizer(machine),
        **evaluations("classification", sides, preprocess),
    }
    size = int(sum(survey.lengths) / max(len(survey.lengths), 1) * survey.count)
    made = Recipe(
        title=f"Classification: {survey.count:,} {'pairs' if pair else 'texts'} of {data.described}, {found.what}.",
        commands=[f"bertjax predict classify {request.run_dir} 'a text'" + " --pair 'another'" * bool(pair)],
        notes=[f"95% of the texts have at most {most:,} characters; sequence_length cuts longer ones."],
        name=request.name,
        pretrained=request.pretrained,
        model=recipe.bert_sizes(machine, size, length) if scratch else None,
        stage=stage,
        comments=_weights_comment(found.balance),
    )
    return Result(made, sides, _lines(data, used, found, skipped))


def _survey(request: Request, data: Data) -> tuple[tuple[str, str | None, str], Found, Any, list[str]]:
    """-> ((text, second text, label), what the labels are, function that yields the examples, records without a text).

    The last are the places of records whose text is null; they are left out.
    """
    sample = sample_records(data, BASE)
    several = several_labels.find_several(sample, request.label)
    if several is None or "label_columns" not in several:
        columns.check_given(sample, text=request.text, pair=request.pair, label=request.label)
    if several is None:
        label = columns.choose_label(sample, request.label)
    else:
        label = several.get("label") or ", ".join(several["label_columns"])
    text, pair = columns.choose_texts(sample, label, request.text, request.pair)
    names = [text, pair] if pair else [text]
    skipped: list[str] = []
    if several is None:
        found, examples = _one_label(data, names, label, skipped)
    else:
        found, examples = _several_labels(data, names, several, skipped)
    return (text, pair, label), found, examples, skipped


def _lines(data: Data, names: tuple[str, str | None, str], found: Found, skipped: Sequence[str]) -> list[str]:
    text, pair, label = names
    pair_named = f", second text '{pair}'" if pair else ""
    count = found.survey.count
    lines = [f"{data.described}: {count:,} records, text '{text}'{pair_named}, label '{label}': {found.counts}"]
    if found.unlabeled:
        lines.append(f"left out {found.unlabeled:,} records without a label")
    if skipped:
        lines.append(f"left out {len(skipped):,} records without a text (null), the first: {skipped[0]}")
    return lines


def _one_label(data: Data, texts: Sequence[str], label: str, skipped: list[str]) -> tuple[Found, Any]:
    """(what the labels are, a function that yields the examples with one) of texts with one label or number."""
    read = record_reader(data, BASE, texts, label, skipped)
    survey = survey_records(read)
    labels = choose_labels(survey, data, BASE, label)
    regression = labels.count == 1
    preprocess: dict[str, Any] = {"label": label}
    if labels.names is not None and sum(map(len, labels.names)) < 1000:
        preprocess["labels"] = list(labels.names)
    what = "one number each (regression)" if regression else f"{labels.count} labels"
    counts = what if regression else f"{what}: {format_counts(survey.labels, labels)}"
    balance = None if regression else (min(survey.labels.values()), max(survey.labels.values()))

    def examples() -> Examples:
        return ((record, "\n".join(found), "" if regression else value) for record, found, value in read() if value)

    unlabeled = survey.count - survey.labels.total()
    return Found(preprocess, {"num_labels": labels.count}, survey, what, counts, unlabeled, balance), examples


def _several_labels(data: Data, texts: Sequence[str], options: dict[str, Any], skipped: list[str]) -> tuple[Found, Any]:
    """The same for texts with several labels."""
    read, given = several_labels.sets_reader(data, BASE, texts, options, skipped)
    counts, without, hidden, lengths = several_labels.survey_sets(read)
    number, names = several_labels.order_labels(counts, options.get("label_columns") or given)
    preprocess = dict(options)
    if names is not None and "label_columns" not in options and sum(map(len, names)) < 1000:
        preprocess["labels"] = names
    survey = Survey(len(lengths), lengths, Counter(counts))
    what = f"{number} labels, several or none for a text"
    shown = f"{what}: {format_counts(counts, Labels(number, tuple(names) if names else None))}"
    shown += f"; {without:,} texts have none"
    each = [counts[name] for name in names] if names else [*counts.values()]
    balance = (min(each), max(each))

    def examples() -> Examples:
        for record, found, labels in read():
            if labels is not None:  # split by the rarest label: most combinations of labels may occur once
                yield record, "\n".join(found), min(labels, key=lambda label: (counts[label], label), default="")

    objective = {"num_labels": number, "problem_type": "multi_label_classification"}
    return Found(preprocess, objective, survey, what, shown, hidden, balance), examples


def _weights_comment(balance: tuple[int, int] | None) -> dict[str, str]:
    """A comment on the objective where one class has far more texts than another."""
    if balance is None or balance[1] < SKEWED * max(balance[0], 1):
        return {}
    least, most = balance
    return {"objective": f"{least:,} to {most:,} texts a class; class_weights: balanced gives rare ones more weight"}
