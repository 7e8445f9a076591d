"""`bertjax init t5`: records with an input and a target, SQuAD questions, or running text."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

from bertjax.data.sources.squad import read_squad
from bertjax.errors import UserError
from bertjax.tools.init import columns, recipe
from bertjax.tools.init.questions import question_sides
from bertjax.tools.init.request import BASE, Request, Result, Sides, evaluations, record_sides
from bertjax.tools.init.source import Data, sample_records
from bertjax.tools.init.survey import Survey, record_reader
from bertjax.tools.init.text import span_corruption
from bertjax.tools.init.write import Recipe

LONG_TARGET = 60  # characters of a target that is a text rather than an answer


def text_to_text(request: Request) -> Result:
    """Look at the data -> what to write. Raises UserError."""
    data = request.open()
    if data.holds == "text":
        return span_corruption(request)
    if data.holds == "questions":
        return _questions(request, data)
    pair = columns.choose_target(sample_records(data, BASE), request.text, request.label)
    if pair is None:
        return span_corruption(request)
    source, target = pair
    for name in pair:
        if re.search(r"[{}!:\[\].]", name):
            raise UserError(f"column '{name[:60]}': a template cannot name it; rename the column")
    read = record_reader(data, BASE, pair)
    survey, targets = Survey(), Survey()
    for _, texts, _ in read():
        survey.add(len(texts[0]))
        targets.add(len(texts[1]))
    keys = {"text_field": source} if request.pretrained is None and source != "text" else {}

    def examples() -> Iterator[tuple[dict[str, Any], str, str]]:
        return ((record, texts[0], "") for record, texts, _ in read())

    prompt = {"inputs": f"{{{source}}}", "targets": f"{{{target}}}"}
    sides = record_sides(request, data, examples, **keys)
    found = f"{data.described}: {survey.count:,} records, inputs '{source}', targets '{target}'"
    return _result(request, data, sides, survey, targets, prompt, found, "'an input'")


def _questions(request: Request, data: Data) -> Result:
    survey, targets = Survey(), Survey()
    for example in read_squad(data.section, BASE):
        survey.add(len(example.context) + len(example.question) + 20)
        targets.add(max((len(text) for text, _ in example.answers), default=0))
    found = f"{data.described}: {survey.count:,} questions"
    asked = "'question: Who? context: A text.'"
    return _result(request, data, question_sides(request, data), survey, targets, {"prompt": "squad"}, found, asked)


def _metrics(prompt: dict[str, Any], targets: Survey) -> tuple[str, dict[str, Any], list[str]]:
    """(kind of the evaluation, its options, notes)."""
    if "prompt" in prompt:
        return "text_to_text", {}, []
    if targets.length_at(0.5) <= LONG_TARGET:
        return "text_to_text", {"metrics": ["exact_match"]}, []
    if importlib.util.find_spec("rouge_score"):
        return "text_to_text", {"metrics": ["rouge"]}, ["Translations: metrics: [bleu]."]
    note = "To score generated text: pip install 'bertjax[eval]', then kind: text_to_text, metrics: [rouge] or [bleu]."
    return "loss", {}, [note]


def _result(
    request: Request, data: Data, sides: Sides, survey: Survey, targets: Survey, prompt: dict[str, Any], found: str,
    example: str,
) -> Result:  # fmt: skip
    machine, scratch = request.machine, request.pretrained is None
    fitting: Callable[..., int] = machine.sequence_length
    length = fitting(survey.length_at(0.95), most=192 if machine.is_small else 512)
    target = fitting(targets.length_at(0.99), least=16, most=128 if machine.is_small else 256)
    preprocess = {"kind": "text_to_text", **prompt, "sequence_length": length, "target_length": target}
    kind, options, notes = _metrics(prompt, targets)
    tuned = {"kind": "adafactor", "learning_rate": 1e-3, "schedule": "constant"}
    stage = {
        "name": "t5",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "text_to_text"},
        "epochs": recipe.fine_tuning_epochs(machine, survey.count),
        "batch_size": machine.batch_size(length),
        "optimizer": {"kind": "adafactor", "warmup_steps": 1000} if scratch else tuned,
        **evaluations(kind, sides, preprocess, **options),
    }
    size = sum(survey.lengths) / max(len(survey.lengths), 1) * survey.count
    weak = "From random weights a T5 learns little from so few texts; it is a start without a network."
    return Result(
        Recipe(
            title=f"Text to text with a T5: {found}.",
            commands=[f"bertjax predict generate {request.run_dir} {example}"],
            notes=[f"95% of the inputs have at most {survey.length_at(0.95):,} characters; longer ones are cut."]
            + notes
            + [weak] * scratch,
            name=request.name,
            pretrained=request.pretrained,
            model=recipe.t5_sizes(machine, int(size)) if scratch else None,
            tokenizer={"kind": "sentencepiece"} if scratch else None,
            stage=stage,
        ),
        sides,
        [found],
    )
