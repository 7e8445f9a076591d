"""`bertjax qa-report`: the same questions answered by extraction, by text-to-text with context, and closed-book.

Each way is scored by the official SQuAD rules on the original answers, and again with t5's spaces around punctuation in
references and predictions: a T5 trained on its SQuAD prompt writes 'U . S .', which the official rules do not match
with 'U.S.'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.schema.data import Task, TextToText
from bertjax.config.schema.evaluation import TextToTextEvaluation
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.preprocess.prompts.t5_prompts import pad_punctuation
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.preprocess.text_to_text import read_examples
from bertjax.data.sources import registry as sources
from bertjax.data.sources.squad import Example, read_squad
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import registry as evaluations
from bertjax.evaluation.evaluators import span_qa, text_to_text
from bertjax.evaluation.evaluators.text_to_text import QUESTION_PROMPTS
from bertjax.evaluation.fitted import null_threshold
from bertjax.evaluation.inference.span_decoding import apply_null_threshold
from bertjax.evaluation.metrics.squad import score
from bertjax.evaluation.metrics.text import squad
from bertjax.evaluation.predictors.base import restore_with_head
from bertjax.evaluation.predictors.generation import generates_text
from bertjax.evaluation.restore import RestoredCheckpoint, restore
from bertjax.report.pages.answers import answers_page
from bertjax.storage import atomic

WAYS = ("extractive", "context", "closed_book")


@dataclass(frozen=True)
class QuestionSet:
    """The questions and their source; each way replaces the preprocessing of `task`."""

    task: Task
    name: str
    examples: list[Example]
    seed: int  # of the sample that task.limit keeps


def qa_report(
    runs: Mapping[str, Path], *, data: Path | None = None, limit: int | None = None, output: Path
) -> dict[str, Any]:
    """Answer questions with each run in `runs` (`extractive`, `context`, `closed_book`; at least one) -> the report.

    The questions are those of the SQuAD file `data`, else of the first run's evaluation. The report {source, questions,
    ways: {way: {run, stage, step, scores, padded}}, answers: [...]} is written as JSON and HTML to `output` with the
    suffixes .json and .html. Raises UserError where a run cannot answer its way.
    """
    if not runs:
        raise UserError("name at least one run: --extractive, --context or --closed-book")
    questions, ways, predictions = None, {}, {}
    for way in (way for way in WAYS if way in runs):
        restored = restore_for_way(way, runs[way])
        if questions is None:
            questions = load_questions(restored, runs[way], data, limit)
        answer = _extractive if way == "extractive" else _generated
        predictions[way] = answer(restored, questions, way)
        stage = restored.ctx.config.stages[restored.stage].name
        about = {"run": str(runs[way]), "stage": stage, "step": restored.step}
        ways[way] = about | score_predictions(questions.examples, predictions[way])
        del restored  # frees its parameters
    assert questions is not None
    rows = [_row(e, {way: found[e.id] for way, found in predictions.items()}) for e in questions.examples]
    report = {"source": questions.name, "questions": len(rows), "ways": ways, "answers": rows}
    atomic.write_json_atomic(output.with_suffix(".json"), report)
    atomic.write_text_atomic(output.with_suffix(".html"), answers_page(report, output.with_suffix(".json").name))
    return report


def restore_for_way(way: str, run: Path) -> RestoredCheckpoint:
    """The checkpoint. Raises UserError where it cannot answer this way."""
    if way == "extractive":
        return restore_with_head(run, "qa")
    restored = restore(run)
    if not generates_text(model := restored.ctx.config.model):
        raise UserError(
            f"{run}: a {model.family} model generates no text; name a run of family t5, or use --extractive"
        )
    return restored


def load_questions(restored: RestoredCheckpoint, run: Path, data: Path | None, limit: int | None) -> QuestionSet:
    """The questions of a file, or those of the first evaluation of the run's stage that has questions."""
    if data is not None:
        task = Task(source=[SquadFiles(files=[str(data.absolute())])], limit=limit)
    else:
        stage = restored.ctx.config.stages[restored.stage]
        tasks = [config.data for config in stage.evaluate if evaluations.record_of(config).asks_questions(config)]
        if not tasks:
            raise UserError(f"{run}: stage '{stage.name}' has no evaluation with questions; name them with --data")
        limits = [n for n in (tasks[0].limit, limit) if n is not None]
        task = tasks[0].model_copy(update={"limit": min(limits, default=None)})
    examples = [example for source in task.source for example in read_squad(source, restored.ctx.base)]
    names = [sources.record_of(source).describe(source) for source in task.source]
    seed = restored.ctx.config.run.seed
    return QuestionSet(task, "; ".join(names), list(sample_items(examples, task.limit, seed)), seed)


def _extractive(restored: RestoredCheckpoint, questions: QuestionSet, _: str) -> dict[str, str]:
    config, examples = restored.ctx.config, questions.examples
    settings, windows = span_qa.stage_settings(config, config.stages[restored.stage])
    version_2 = any(example.is_impossible for example in examples)
    tokenizer = restored.ctx.tokenizer
    find = span_qa.make_answer_fn(restored.program, tokenizer, examples, windows, settings, version_2)
    best, _nbest, null_odds = find(restored.params)
    return apply_null_threshold(best, null_odds, null_threshold(restored, settings)[0]) if version_2 else best


def _generated(restored: RestoredCheckpoint, questions: QuestionSet, way: str) -> dict[str, str]:
    config = text_to_text_settings(restored, questions.task, way)
    asked = list(read_examples(config.data, restored.ctx.base, seed=questions.seed))
    generator = text_to_text.make_generator(restored.ctx, restored.program, config)
    found = text_to_text.generate_answers(generator, restored.params, asked)
    return {example.id: text for example, text in zip(questions.examples, found, strict=True)}


def text_to_text_settings(restored: RestoredCheckpoint, task: Task, way: str) -> TextToTextEvaluation:
    """The questions in the format that the run was trained on, decoded as in its evaluation.

    The format is that of the stage's first evaluation or task that asks this way, else T5's own prompt.
    """
    config = restored.ctx.config
    stage = config.stages[restored.stage]
    evaluations = text_to_text.stage_settings(stage)
    tasks = [e.data for e in evaluations] + list(config.stage_tasks(stage).values())
    prompt = TextToText(prompt=QUESTION_PROMPTS[way][0])
    options = next((t.preprocess for t in tasks if _matches_way(t.preprocess, way)), prompt)
    own = next((e for e in evaluations if _matches_way(e.data.preprocess, way)), None)
    fields = {"answer": "answers"} if options.prompt == "trivia_qa_closed_book" else {}
    data = task.model_copy(update={"preprocess": options.model_copy(update={"fields": fields})})
    return own.model_copy(update={"data": data}) if own else TextToTextEvaluation(data=data)


def _matches_way(options: Any, way: str) -> bool:
    if not isinstance(options, TextToText):  # only this kind asks questions as text
        return False
    if options.prompt is not None:
        return options.prompt in QUESTION_PROMPTS[way]
    asked = options.inputs or ""
    return "{question}" in asked and ("{context}" in asked) == (way == "context")


def score_predictions(examples: Sequence[Example], predictions: Mapping[str, str]) -> dict[str, Any]:
    """`scores` with the keys of the official script, and `padded` {em, f1} with t5's spaces on both sides."""
    golds = [[pad_punctuation(text) for text, _ in example.answers] for example in examples]
    said = [pad_punctuation(predictions[example.id]) for example in examples]
    return {"scores": score(list(examples), predictions), "padded": squad(golds, said)}


def _row(example: Example, predictions: dict[str, str]) -> dict[str, Any]:
    answers = list(dict.fromkeys(text for text, _ in example.answers))
    judged = {way: score([example], {example.id: text}) for way, text in predictions.items()}
    return {
        "id": example.id,
        "question": example.question,
        "context": example.context,
        "answers": answers,
        "predictions": predictions,
        "exact": {way: found["exact"] == 100 for way, found in judged.items()},
        "f1": {way: round(found["f1"], 2) for way, found in judged.items()},
    }


def format_text(report: Mapping[str, Any]) -> str:
    """The scores as a plain-text table."""
    head = f"{'':<13}{'exact':>8}{'F1':>8}{'padded':>9}{'F1':>8}  run"
    lines = [f"{report['questions']} questions from {report['source']}", "", head]
    for way, found in report["ways"].items():
        scores, padded = found["scores"], found["padded"]
        numbers = f"{scores['exact']:>8.2f}{scores['f1']:>8.2f}{padded['em']:>9.2f}{padded['f1']:>8.2f}"
        lines.append(f"{way.replace('_', ' '):<13}{numbers}  {found['run']}, step {found['step']}")
    return "\n".join(lines)
