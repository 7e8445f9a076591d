"""`bertjax init classify`: texts or pairs of texts with labels, or with numbers (regression)."""

from collections.abc import Iterator
from typing import Any

from bertjax.errors import UserError
from bertjax.tools.init import columns, recipe
from bertjax.tools.init.request import BASE, Request, Result, evaluations, record_sides
from bertjax.tools.init.source import sample_records
from bertjax.tools.init.survey import choose_labels, format_counts, record_reader, survey_records
from bertjax.tools.init.write import Recipe


def classify(request: Request) -> Result:
    """Look at the data -> what to write. Raises UserError."""
    data, machine = request.open(), request.machine
    if data.holds != "records":
        raise UserError(f"{data.described}: classification needs records with a text and a label, such as a CSV file")
    sample = sample_records(data, BASE)
    columns.check_given(sample, text=request.text, pair=request.pair, label=request.label)
    label = columns.choose_label(sample, request.label)
    text, pair = columns.choose_texts(sample, label, request.text, request.pair)
    names = [text, pair] if pair else [text]
    read = record_reader(data, BASE, names, label)
    survey = survey_records(read)
    labels = choose_labels(survey, data, BASE, label)
    regression = labels.count == 1

    scratch = request.pretrained is None
    keys = {"text_field": text} if scratch and text != "text" else {}  # the texts that a tokenizer is trained on

    def examples() -> Iterator[tuple[dict[str, Any], str, str]]:
        return ((record, "\n".join(texts), "" if regression else value) for record, texts, value in read() if value)

    unlabeled = survey.count - survey.labels.total()
    sides = record_sides(request, data, examples, **keys)
    if unlabeled and sides.write is None:
        raise UserError(f"{data.described}: {unlabeled:,} records have no '{label}'; remove them")
    most = survey.length_at(0.95)
    length = machine.sequence_length(most)
    preprocess = {"kind": "classify", "sequence_length": length, "text_a": text}
    preprocess |= ({"text_b": pair} if pair else {}) | {"label": label}
    if labels.names is not None and sum(map(len, labels.names)) < 1000:
        preprocess["labels"] = list(labels.names)
    stage = {
        "name": "classify",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "classification", "num_labels": labels.count},
        "epochs": recipe.fine_tuning_epochs(machine, survey.count),
        "batch_size": machine.batch_size(length),
        "optimizer": recipe.fine_tuning_optimizer(machine),
        **evaluations("classification", sides, preprocess),
    }
    what = "one number each (regression)" if regression else f"{labels.count} labels"
    pair_named = f", second text '{pair}'" if pair else ""
    counts = what if regression else f"{what}: {format_counts(survey.labels, labels)}"
    found = [f"{data.described}: {survey.count:,} records, text '{text}'{pair_named}, label '{label}': {counts}"]
    if unlabeled:
        found.append(f"left out {unlabeled:,} records without a label")
    size = int(sum(survey.lengths) / max(len(survey.lengths), 1) * survey.count)
    return Result(
        Recipe(
            title=f"Classification: {survey.count:,} {'pairs' if pair else 'texts'} of {data.described}, {what}.",
            commands=[f"bertjax predict classify {request.run_dir} 'a text'" + " --pair 'another'" * bool(pair)],
            notes=[f"95% of the texts have at most {most:,} characters; sequence_length cuts longer ones."],
            name=request.name,
            pretrained=request.pretrained,
            model=recipe.bert_sizes(machine, size, length) if scratch else None,
            stage=stage,
        ),
        sides,
        found,
    )
