"""`bertjax init qa`: questions whose answers are spans of a context, in SQuAD's format or as records."""

from collections.abc import Iterator
from typing import Any

from bertjax.data.sources.records import read_located
from bertjax.data.sources.squad import read_squad
from bertjax.errors import UserError, escape_unprintable
from bertjax.tools.init import columns, heldout, recipe
from bertjax.tools.init.request import BASE, Request, Result, Sides, evaluations, given_sides, record_sides
from bertjax.tools.init.source import Data, sample_records
from bertjax.tools.init.survey import Survey
from bertjax.tools.init.write import Recipe

NEEDED = ("id", "question", "context", "answers")


def questions(request: Request) -> Result:
    """Look at the data -> what to write. Raises UserError."""
    data, machine = request.open(), request.machine
    check_questions(data)
    examples = read_squad(data.section, BASE)
    survey = Survey()
    for example in examples:
        survey.add(len(example.context) + len(example.question))
    impossible = sum(example.is_impossible for example in examples)
    sides = question_sides(request, data)

    scratch = request.pretrained is None
    most = survey.length_at(0.95)
    length = machine.sequence_length(most, least=64, most=192 if machine.is_small else 384)
    query = min(64, length // 3)
    preprocess = {"kind": "span_qa", "sequence_length": length, "doc_stride": length // 3, "max_query_length": query}
    epochs = 2 if not scratch and len(examples) >= 20_000 else recipe.fine_tuning_epochs(machine, len(examples))
    stage = {
        "name": "qa",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "span_qa"},
        "epochs": epochs,
        "batch_size": machine.batch_size(length),
        "optimizer": recipe.fine_tuning_optimizer(machine) | ({} if scratch else {"learning_rate": 3e-5}),
        **evaluations("squad", sides, preprocess),
    }
    note = f", {impossible:,} without an answer" if impossible else ""
    weak = (
        "From random weights a model learns little from questions alone: pre-train it first (`bertjax init pretrain`)."
    )
    size = int(sum(survey.lengths) / max(len(survey.lengths), 1) * survey.count)
    return Result(
        Recipe(
            title=f"Extractive question answering: {len(examples):,} questions of {data.described}{note}.",
            commands=[f"bertjax predict answer {request.run_dir} --question 'Who?' --context 'A text.'"],
            notes=[f"95% of the contexts have at most {most:,} characters; longer ones are read in several windows."]
            + [weak] * scratch,
            name=request.name,
            pretrained=request.pretrained,
            model=recipe.bert_sizes(machine, size, length) if scratch else None,
            stage=stage,
        ),
        sides,
        [f"{data.described}: {len(examples):,} questions{note}"],
    )  # fmt: skip


def check_questions(data: Data) -> None:
    if data.holds == "text":
        raise UserError(f"{data.described}: holds text, not questions; name a file in SQuAD's format or records")
    if data.holds == "records":
        names = columns.column_names(sample_records(data, BASE, 10))
        if missing := [name for name in NEEDED if name not in names]:
            raise UserError(
                f"{data.described}: no column '{missing[0]}'; questions need id, question, context and answers "
                f"({{text: [...], answer_start: [...]}}); the columns are: {escape_unprintable(', '.join(names))[:150]}"
            )


def question_sides(request: Request, data: Data) -> Sides:
    """Sides of question data; no article or context is on both."""
    if data.holds == "questions":
        if found := given_sides(request, data):
            return found
        parts = request.part_names(".json")
        train, evaluation = ({"kind": "squad", "files": [str(part)]} for part in parts)
        return Sides(train, evaluation, lambda: heldout.split_squad(data, BASE, parts), "questions")

    def read() -> Iterator[tuple[dict[str, Any], str, str]]:
        return ((record, str(record.get("context", "")), "") for _, record in read_located(data.section, BASE))

    return record_sides(request, data, read)
