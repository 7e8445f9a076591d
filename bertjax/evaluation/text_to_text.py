"""Scores of generated text, and the averages of GLUE and SuperGLUE where a stage has several of their tasks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertjax.config.data_schema import TextToText
from bertjax.config.evaluation_schema import TextToTextEvaluation
from bertjax.data import text_counts
from bertjax.data.text_to_text import TextExample, class_names, read_examples
from bertjax.errors import UserError
from bertjax.evaluation import scoring
from bertjax.evaluation.benchmarks import suite_average, task_of
from bertjax.evaluation.generate import Generator
from bertjax.evaluation.heldout import SAMPLES, keep, report_losses
from bertjax.evaluation.records import Record
from bertjax.training.loop import Evaluator
from bertjax.training.setup import Job
from bertjax.training.state import Params
from bertjax.training.step import Program

_log = logging.getLogger(__name__)


def text_to_text(
    job: Job, program: Program, config: TextToTextEvaluation, record: Record
) -> Callable[[Params, int], dict[str, float]]:
    """Answers generated for held-out examples, scored by the metrics of their prompt (or those the config names).

    Keeps <name>.json (scores and samples) and <name>.predictions.json (answers by the record's id, else its number).
    """
    options = config.data.preprocess
    if not isinstance(options, TextToText):
        raise UserError(
            f"evaluation '{config.name}': data.preprocess.kind must be text_to_text; kind: loss takes others"
        )
    examples = list(read_examples(config.data, job.base, seed=job.config.run.seed))
    if not examples:
        raise UserError(f"evaluation '{config.name}': its source holds no examples")
    names, labels = scoring.metrics_of(options, config.metrics), class_names(options)
    try:
        scoring.check(names, labels, examples)
    except UserError as error:
        raise UserError(f"evaluation '{config.name}': {error}") from None
    for label in labels or ():
        if job.tokenizer.unk_id in job.tokenizer.encode_batch([label])[0]:
            _log.warning(
                "evaluation '%s': the tokenizer has no piece for a character of the label '%s', which can so never be "
                "answered", config.name, label,
            )  # fmt: skip
    generate = generator_of(job, program, config)
    keys = keys_of(examples)
    counts = _losses(job, config, examples)

    def run(params: Params, step: int) -> dict[str, float]:
        answers = answers_to(generate, params, examples)
        scores = scoring.score(names, examples, answers, labels)
        pairs = list(zip(examples, answers, strict=True))[:: max(1, len(examples) // SAMPLES)][:SAMPLES]
        samples = [_sample(example, answer, options.prompt) for example, answer in pairs]
        keep(record, config.name, {"step": step, "scores": scores, "samples": samples, text_counts.KEY: counts})
        keep(record, f"{config.name}.predictions", dict(zip(keys, answers, strict=True)))
        return scores

    return run


def _losses(job: Job, config: TextToTextEvaluation, examples: Sequence[TextExample]) -> text_counts.Counts:
    """What is cut of the inputs, and of the references that no answer is long enough for; said on stderr."""
    options: TextToText = config.data.preprocess
    tokenizer, longest = job.tokenizer, config.decoding.max_new_tokens or options.target_length
    inputs = tokenizer.encode_batch([example.inputs for example in examples])
    targets = tokenizer.encode_batch([text for example in examples for text in example.references])
    counts = {
        "inputs": text_counts.count(inputs, options.sequence_length - 1, tokenizer.unk_id),
        "targets": text_counts.count(targets, longest, tokenizer.unk_id),
    }
    own = "decoding.max_new_tokens" if config.decoding.max_new_tokens else "target_length"
    lengths = {"inputs": ("sequence_length", options.sequence_length), "targets": (own, longest)}
    report_losses(f"evaluation '{config.name}'", counts, lengths)
    return counts


def generator_of(job: Job, program: Program, config: TextToTextEvaluation) -> Generator:
    options: TextToText = config.data.preprocess
    return Generator(
        program,
        job.tokenizer,
        config.decoding,
        sequence_length=options.sequence_length,
        target_length=options.target_length,
        batch_size=config.batch_size,
        seed=job.config.run.seed,
    )


def answers_to(
    generate: Callable[[Params, Sequence[str]], list[str]], params: Params, examples: Sequence[TextExample]
) -> list[str]:
    """One answer for each example; what is asked several times (ReCoRD, closed books) is generated once."""
    asked = list(dict.fromkeys(example.inputs for example in examples))
    found = dict(zip(asked, generate(params, asked), strict=True))
    return [found[example.inputs] for example in examples]


def keys_of(examples: Sequence[TextExample]) -> list[str]:
    """The examples' ids as texts, or their numbers where an example has none or two share one."""
    ids = [_text(example.extra["id"]) for example in examples if example.extra.get("id") is not None]
    return ids if len(set(ids)) == len(examples) else [str(number) for number in range(len(examples))]


def _text(identity: Any) -> str:
    """MultiRC's and ReCoRD's ids have several parts."""
    return "-".join(map(str, identity.values())) if isinstance(identity, Mapping) else str(identity)


def _sample(example: TextExample, answer: str, prompt: str | None) -> dict[str, Any]:
    question, context = example.inputs, ""
    if prompt == "squad":  # in the form of extractive samples, so that the report can mark the answer in the text
        question, _, context = example.inputs.removeprefix("question: ").partition(" context: ")
    sample = {"question": question, "context": context, "answers": list(example.references), "prediction": answer}
    return sample | ({"id": _text(example.extra["id"])} if example.extra.get("id") is not None else {})


# ---- averages over a suite ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuiteAverage:
    """What an Evaluator needs to know of an average: its name, and its steps where all its tasks share them."""

    name: str
    every: int | None
    kind: str = "average"


def with_averages(evaluators: Sequence[Evaluator]) -> list[Evaluator]:
    """The evaluators, and behind them <suite>_average for each suite of which there are two evaluations or more.

    An average is over the evaluations that ran at its step; without any it has no scores.
    """
    made: dict[str, list[str]] = {}
    latest: dict[str, tuple[int, str, dict[str, float]]] = {}
    watched = []
    for evaluator in evaluators:
        config = evaluator.config
        place = task_of(config.data.preprocess.prompt) if config.kind == "text_to_text" else None
        watched.append(_remembering(evaluator, place[1], latest) if place else evaluator)
        if place:
            made.setdefault(place[0], []).append(config.name)
    by_name = {evaluator.config.name: evaluator.config for evaluator in evaluators}
    for suite, names in made.items():
        if len(names) > 1 and f"{suite}_average" not in by_name:
            intervals = {by_name[name].every for name in names}
            config = SuiteAverage(f"{suite}_average", intervals.pop() if len(intervals) == 1 else None)
            watched.append(Evaluator(config, _average(suite, names, latest)))
    return watched


def _remembering(evaluator: Evaluator, task: str, latest: dict[str, tuple[int, str, dict[str, float]]]) -> Evaluator:
    def run(params: Params, step: int) -> dict[str, float]:
        scores = evaluator.run(params, step)
        latest[evaluator.config.name] = (step, task, scores)
        return scores

    return Evaluator(evaluator.config, run)


def _average(
    suite: str, names: Sequence[str], latest: Mapping[str, tuple[int, str, dict[str, float]]]
) -> Callable[[Params, int], dict[str, float]]:
    def run(_: Params, step: int) -> dict[str, float]:
        return suite_average(suite, [latest[name][1:] for name in names if name in latest and latest[name][0] == step])

    return run
