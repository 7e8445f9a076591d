"""Evaluation of generated text (kind text_to_text), and the averages of the GLUE and SuperGLUE tasks of a stage."""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.config.schema.custom import METRICS
from bertjax.config.schema.data import Prompt, TextToText
from bertjax.config.schema.evaluation import TextToTextEvaluation
from bertjax.config.schema.run import Stage
from bertjax.data.jobs import text_counts
from bertjax.data.preprocess.text_to_text import TextExample, class_names, read_examples
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.heldout import NUM_SAMPLES, report_truncation, save_json
from bertjax.evaluation.evaluators.registry import AbstractBatch, CountedRun, EvaluationKind, Run
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.inference.generate import Generator
from bertjax.evaluation.metrics import by_prompt
from bertjax.evaluation.metrics.glue_average import suite_average, suite_task
from bertjax.evaluation.records import EvaluationRecord
from bertjax.training.loop import Evaluator
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params

FIRST_EXAMPLES = 20  # that are asked for what a metric needs, before anything is prepared
_log = logging.getLogger(__name__)


def text_to_text_evaluator(
    ctx: RunContext, program: TrainProgram, config: TextToTextEvaluation, record: EvaluationRecord, *_: Any
) -> Run:
    """Answers generated for held-out examples, scored by the metrics of their prompt or of the configuration.

    Writes <name>.json (scores and samples) and <name>.predictions.json (answers by the record's id, else its number).
    """
    options: TextToText = config.data.preprocess
    if options.kind not in (config.preprocess or ()):
        must = "data.preprocess.kind must be text_to_text; kind: loss takes others"
        raise UserError(f"evaluation '{config.name}': {must}")
    examples = list(read_examples(config.data, ctx.base, seed=ctx.config.run.seed))
    if not examples:
        raise UserError(f"evaluation '{config.name}': its source contains no examples")
    names, labels = by_prompt.metrics_for(options, config.metrics), class_names(options)
    try:
        by_prompt.check_metrics(names, labels, examples)
    except UserError as error:
        raise UserError(f"evaluation '{config.name}': {error}") from None
    for label in labels or ():
        if ctx.tokenizer.unk_id in ctx.tokenizer.encode_batch([label])[0]:
            _log.warning(
                "evaluation '%s': the tokenizer has no piece for a character of the label '%s', so it can never be "
                "predicted", config.name, label,
            )  # fmt: skip
    generate = make_generator(ctx, program, config)
    keys = prediction_keys(examples)
    counts = _count_truncation(ctx, config, examples)

    def run(params: Params, step: int) -> dict[str, float]:
        answers = generate_answers(generate, params, examples)
        scores = by_prompt.score(names, examples, answers, labels)
        pairs = list(zip(examples, answers, strict=True))[:: max(1, len(examples) // NUM_SAMPLES)][:NUM_SAMPLES]
        samples = [_sample(example, answer, options.prompt) for example, answer in pairs]
        content = {"step": step, "scores": scores, "samples": samples, text_counts.META_KEY: counts}
        save_json(record, config.name, content)
        save_json(record, f"{config.name}.predictions", dict(zip(keys, answers, strict=True)))
        return scores

    return CountedRun(run, len({example.inputs for example in examples}))


def _count_truncation(
    ctx: RunContext, config: TextToTextEvaluation, examples: Sequence[TextExample]
) -> text_counts.TextCounts:
    """Counts truncated inputs, and references longer than any answer can be; reports them on stderr."""
    options: TextToText = config.data.preprocess
    tokenizer, longest = ctx.tokenizer, config.decoding.max_new_tokens or options.target_length
    inputs = tokenizer.encode_batch([example.inputs for example in examples])
    targets = tokenizer.encode_batch([text for example in examples for text in example.references])
    counts = {
        "inputs": text_counts.count(inputs, options.sequence_length - 1, tokenizer.unk_id),
        "targets": text_counts.count(targets, longest, tokenizer.unk_id),
    }
    own = "decoding.max_new_tokens" if config.decoding.max_new_tokens else "target_length"
    lengths = {"inputs": ("sequence_length", options.sequence_length), "targets": (own, longest)}
    report_truncation(f"evaluation '{config.name}'", counts, lengths)
    return counts


def make_generator(ctx: RunContext, program: TrainProgram, config: TextToTextEvaluation) -> Generator:
    options: TextToText = config.data.preprocess
    return Generator(
        program,
        ctx.tokenizer,
        config.decoding,
        sequence_length=options.sequence_length,
        target_length=options.target_length,
        batch_size=config.batch_size,
        seed=ctx.config.run.seed,
    )


def generate_answers(
    generate: Callable[[Params, Sequence[str]], list[str]], params: Params, examples: Sequence[TextExample]
) -> list[str]:
    """One answer for each example; repeated inputs (ReCoRD, closed-book questions) are generated once."""
    asked = list(dict.fromkeys(example.inputs for example in examples))
    found = dict(zip(asked, generate(params, asked), strict=True))
    return [found[example.inputs] for example in examples]


def prediction_keys(examples: Sequence[TextExample]) -> list[str]:
    """The ids of the examples as strings, or their numbers when an id is missing or not unique."""
    ids = [_id_string(example.extra["id"]) for example in examples if example.extra.get("id") is not None]
    return ids if len(set(ids)) == len(examples) else [str(number) for number in range(len(examples))]


def _id_string(identity: Any) -> str:
    # ids of MultiRC and ReCoRD have several parts
    return "-".join(map(str, identity.values())) if isinstance(identity, Mapping) else str(identity)


def _sample(example: TextExample, answer: str, prompt: str | None) -> dict[str, Any]:
    question, context = example.inputs, ""
    if prompt == "squad":  # as for extractive samples, so that the report can mark the answer in the context
        question, _, context = example.inputs.removeprefix("question: ").partition(" context: ")
    sample = {"question": question, "context": context, "answers": list(example.references), "prediction": answer}
    return sample | ({"id": _id_string(example.extra["id"])} if example.extra.get("id") is not None else {})


def _lower(
    ctx: RunContext, program: TrainProgram, config: TextToTextEvaluation, _: AbstractBatch
) -> tuple[Hashable, Callable[[], Any]]:
    rows, length = round_up_batch(config.batch_size, program), config.data.preprocess.sequence_length
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32, sharding=program.batch_sharding())  # noqa: E731
    batch = (ints(rows, length), ints(rows, length), ints(rows))
    key = ("decoding", rows, length, config.data.preprocess.target_length, config.decoding.model_dump_json())
    return key, lambda: make_generator(ctx, program, config).lower(program.abstract_params(), *batch)


def stage_settings(stage: Stage) -> list[TextToTextEvaluation]:
    """The evaluations of generated text of a stage."""
    return [evaluation for evaluation in stage.evaluate if isinstance(evaluation, TextToTextEvaluation)]


QUESTION_PROMPTS: dict[str, tuple[Prompt, ...]] = {
    "context": ("squad",), "closed_book": ("squad_closed_book", "trivia_qa_closed_book"),
}  # fmt: skip


def _asks_questions(config: TextToTextEvaluation) -> bool:
    return any(config.data.preprocess.prompt in prompts for prompts in QUESTION_PROMPTS.values())


def _problems(config: TextToTextEvaluation, base: Path) -> Iterator[str]:
    options: TextToText = config.data.preprocess
    names = by_prompt.metrics_for(options, config.metrics)
    by_prompt.check_metrics(names, class_names(options), [])
    task = config.data.model_copy(update={"limit": None})
    by_prompt.check_metrics(names, class_names(options), list(read_examples(task, base, most=FIRST_EXAMPLES)))
    if config.decoding.min_new_tokens > (longest := config.decoding.max_new_tokens or options.target_length):
        yield f"decoding.min_new_tokens {config.decoding.min_new_tokens} is above the {longest} tokens of an answer"


def _scores(config: TextToTextEvaluation, stage: Stage) -> set[str] | None:
    names = by_prompt.metrics_for(config.data.preprocess, config.metrics)
    return None if METRICS.keys() & set(names) else by_prompt.score_names(names)  # None: not known for plugins


def _row_cost(config: TextToTextEvaluation) -> float:
    """A forward pass, and one token at a time for each beam: a rough estimate."""
    length = config.decoding.max_new_tokens or config.data.preprocess.target_length
    return (1 + config.decoding.beam_size * length / 8) / 3


TEXT_TO_TEXT = EvaluationKind(
    build=text_to_text_evaluator,
    lower=_lower,
    asks_questions=_asks_questions,
    problems=_problems,
    scores=_scores,
    row_cost=_row_cost,
)


@dataclass(frozen=True)
class SuiteAverage:
    """The section of an average, for Evaluator; `every` is that of its tasks where they agree."""

    name: str
    every: int | str | None
    kind: str = "average"


def with_suite_averages(evaluators: Sequence[Evaluator]) -> list[Evaluator]:
    """The evaluators and <suite>_average, over those that ran at its step, for each suite with at least two of them."""
    made: dict[str, list[str]] = {}
    latest: dict[str, tuple[int, str, dict[str, float]]] = {}
    watched = []
    for evaluator in evaluators:
        config = evaluator.config
        place = suite_task(config.data.preprocess.prompt) if isinstance(config, TextToTextEvaluation) else None
        watched.append(_track_latest(evaluator, place[1], latest) if place else evaluator)
        if place:
            made.setdefault(place[0], []).append(config.name)
    by_name = {evaluator.config.name: evaluator.config for evaluator in evaluators}
    for suite, names in made.items():
        if len(names) > 1 and f"{suite}_average" not in by_name:
            intervals = {by_name[name].every for name in names}
            config = SuiteAverage(f"{suite}_average", intervals.pop() if len(intervals) == 1 else None)
            watched.append(Evaluator(config, _average(suite, names, latest)))
    return watched


def _track_latest(evaluator: Evaluator, task: str, latest: dict[str, tuple[int, str, dict[str, float]]]) -> Evaluator:
    def run(params: Params, step: int) -> dict[str, float]:
        scores = evaluator.run(params, step)
        latest[evaluator.config.name] = (step, task, scores)
        return scores

    return Evaluator(evaluator.config, run, evaluator.cost)


def _average(
    suite: str, names: Sequence[str], latest: Mapping[str, tuple[int, str, dict[str, float]]]
) -> Callable[[Params, int], dict[str, float]]:
    def run(_: Params, step: int) -> dict[str, float]:
        return suite_average(suite, [latest[name][1:] for name in names if name in latest and latest[name][0] == step])

    return run
