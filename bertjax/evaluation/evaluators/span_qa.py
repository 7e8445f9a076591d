"""Extractive question answering: the span logits of a model, its answers, and the evaluation kind squad."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.data import SpanQa
from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.config.schema.run import Config, Stage
from bertjax.data.preprocess import span_qa
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.sources.registry import describe_source
from bertjax.data.sources.squad import stream_squad
from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.heldout import NUM_SAMPLES, save_json
from bertjax.evaluation.evaluators.registry import AbstractBatch, CountedRun, EvaluationKind, Fit, Run
from bertjax.evaluation.inference.answer_fit import CALIBRATION_SCORES, calibration_scores, fit_answers
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.inference.span_decoding import apply_null_threshold, predict_answers
from bertjax.evaluation.metrics import squad
from bertjax.evaluation.records import EvaluationRecord
from bertjax.parallel.batches import local_rows, place
from bertjax.progress import reporter
from bertjax.training.monitor import preemption
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params

INPUTS = ("input_ids", "token_type_ids", "segment_ids", "positions")
FIRST_QUESTIONS = 20_000  # whose ids are checked before anything is prepared
WIDTH_MULTIPLE = 64  # windows are padded to a multiple: few widths, few programs, little padding
Answers = tuple[dict[str, str], dict[str, list[dict]], dict[str, float]]  # see predict_answers


def squad_evaluator(
    ctx: RunContext, program: TrainProgram, config: SquadEvaluation, record: EvaluationRecord, *_: Any
) -> Run:
    """Answers by the rules of the profile, scored by the official rules; predictions are kept in the official form."""
    everything = (e for source in config.data.source for e in span_qa.read_squad(source, ctx.base))
    examples = list(sample_items(everything, config.data.limit, ctx.config.run.seed))
    if not examples:
        raise UserError(f"evaluation '{config.name}': its source contains no questions")
    if config.data.preprocess.kind not in (config.preprocess or ()):
        raise UserError(f"evaluation '{config.name}': data.preprocess.kind must be span_qa")
    version_2 = any(e.is_impossible for e in examples) if config.version_2 is None else config.version_2
    if config.null_threshold == "swept" and not any(e.is_impossible for e in examples):
        raise UserError(f"evaluation '{config.name}': null_threshold: its data have no question without an answer")
    answer = make_answer_fn(program, ctx.tokenizer, examples, config.data.preprocess, config, version_2)
    run = _SquadRun(config, record, examples, answer, version_2)
    return CountedRun(run, len(examples), None if config.threshold_from else run.fit, run.use)


class _SquadRun:
    """One evaluation: the answers of a step, what is fitted on them, and the scores with a null threshold."""

    def __init__(
        self, config: SquadEvaluation, record: EvaluationRecord, examples: list[span_qa.Example],
        answer: Callable[[Params], Answers], version_2: bool,
    ) -> None:  # fmt: skip
        self.config, self.record, self.examples = config, record, examples
        self.answer, self.version_2 = answer, version_2
        self.source: Fit | None = None  # of another evaluation
        self.last: dict[str, Any] | None = None  # the fit of the last step

    def use(self, source: Fit) -> None:
        self.source = source

    def fit(self, params: Params, step: int) -> Mapping[str, Any]:
        """The fit of `fit_answers` to the answers at this step; {} where nothing can be fitted to them."""
        if self.last is None or self.last["step"] != step:
            self._fit_answers(self.answer(params), step)
        assert self.last is not None
        found = self.last["null_threshold"] is not None or self.last["calibration"] is not None
        return self.last if found else {}

    def _fit_answers(self, found: Answers, step: int) -> None:
        made = fit_answers(
            self.examples, found[0], found[1], found[2] if self.version_2 else None, self.config.n_best
        )  # fmt: skip
        self.last = {"kind": self.config.kind, "step": step, "data": self.record.provenance.get("data")} | made

    def __call__(self, params: Params, step: int) -> dict[str, float]:
        found = answers, nbest, null_odds = self.answer(params)
        if self.source is None:
            self._fit_answers(found, step)
        fit = self.last if self.source is None else self.source(params, step)
        assert fit is not None
        threshold = self._threshold(fit) if self.version_2 else None
        predictions = answers if threshold is None else apply_null_threshold(answers, null_odds, threshold)
        odds = null_odds if self.version_2 else None
        scores = squad.score(self.examples, predictions, odds, version_2=self.version_2)
        scores |= calibration_scores(self.examples, predictions, nbest, fit)
        shown = self.examples[:: max(1, len(self.examples) // NUM_SAMPLES)][:NUM_SAMPLES]
        samples = [_sample(example, predictions[example.id]) for example in shown]
        about: dict[str, Any] = {} if threshold is None else {"null_threshold": threshold}
        about |= {"fitted_by" if self.config.threshold_from else "fitted": dict(fit)}
        save_json(self.record, self.config.name, {"step": step, "scores": scores} | about | {"samples": samples})
        save_json(self.record, f"{self.config.name}.predictions", predictions)
        save_json(self.record, f"{self.config.name}.nbest", nbest)
        if odds is not None:
            save_json(self.record, f"{self.config.name}.null_odds", odds)
        return scores

    def _threshold(self, fit: Mapping[str, Any]) -> float:
        """The null threshold of the scores: that of the fit where the section says so, else a number."""
        config = self.config
        if config.threshold_from or config.null_threshold == "swept":
            if (swept := fit.get("null_threshold")) is not None:
                return float(swept)
            name = config.threshold_from or config.name
            raise UserError(
                f"evaluation '{config.name}': no null threshold is swept by evaluation '{name}', whose data have no "
                "unanswerable questions; give null_threshold a number"
            )
        return config.null_score_diff_threshold if config.null_threshold is None else float(config.null_threshold)


def _sample(example: span_qa.Example, prediction: str) -> dict[str, Any]:
    answers = [text for text, _ in example.answers]
    about = {"id": example.id, "question": example.question, "context": example.context}  # the id finds its n-best list
    return about | {"answers": answers, "prediction": prediction}


def stage_settings(config: Config, stage: Stage) -> tuple[SquadEvaluation, SpanQa]:
    """The squad evaluation of a stage and the windows of its data, or their defaults."""
    found = [evaluation for evaluation in stage.evaluate if isinstance(evaluation, SquadEvaluation)]
    # Only sections of this kind have windows.
    windows = [t.preprocess for t in config.stage_tasks(stage).values() if isinstance(t.preprocess, SpanQa)]
    settings = found[0] if found else SquadEvaluation.model_construct()  # type: ignore[call-arg]
    return settings, windows[0] if windows else SpanQa()


def make_answer_fn(
    program: TrainProgram, tokenizer: AnyTokenizer, examples: list[span_qa.Example], windows: SpanQa,
    settings: SquadEvaluation, version_2: bool,
) -> Callable[[Params], Answers]:  # fmt: skip
    """params -> the answers of `predict_answers` to these questions, without a null threshold."""
    features = span_qa.evaluation_features(examples, tokenizer, windows)
    logits = make_span_logits_fn(program)
    size = round_up_batch(settings.batch_size, program)

    def answer(params: Params) -> Answers:
        reporter.expect(len(features.inputs["input_ids"]), "windows")
        start, end = compute_span_logits(logits, params, features, program, size)
        if bad := int((~(np.isfinite(start) & np.isfinite(end))).any(axis=1).sum()):
            reporter.say(
                f"note: the scores of {bad:,} of {len(start):,} windows are NaN or infinite: the answers are arbitrary"
            )
        return predict_answers(
            examples, features, start, end, n_best=settings.n_best, max_answer_length=settings.max_answer_length,
            null_score_diff_threshold=math.inf, version_2=version_2,
        )  # fmt: skip

    return answer


def make_span_logits_fn(program: TrainProgram) -> MeshJit:
    """(params, input_ids, token_type_ids, segment_ids, positions) -> start and end logits [B, S], replicated."""

    def forward(params: Params, *fields: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = program.build_model(params)
        return model.qa_logits(model.encode(*fields))

    replicated = NamedSharding(program.mesh, P())
    return MeshJit(jax.jit(forward, out_shardings=replicated), program.mesh, program.rules)


def compute_span_logits(
    logits: Callable, params: Params, features: span_qa.Features, program: TrainProgram, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits of all windows, float32 [N, S]; batches of one shape, windows sorted by length."""
    total, length = features.inputs["input_ids"].shape
    start, end = np.zeros((total, length), np.float32), np.zeros((total, length), np.float32)
    used = (features.inputs["segment_ids"] > 0).sum(1)
    order = np.argsort(used, kind="stable")
    sharding = program.batch_sharding()
    rows = local_rows(sharding, size)
    for first in range(0, total, size):
        preemption.check()
        picked = order[first : first + size]
        width = min(length, -(-int(used[picked].max()) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
        padded = np.concatenate([picked, np.repeat(picked[-1:], size - len(picked))])
        batch = {name: features.inputs[name][padded[rows], :width] for name in INPUTS}
        put = place(batch, sharding, size)
        found = jax.device_get(logits(params, *(put[name] for name in INPUTS)))
        for out, values in zip((start, end), found, strict=True):
            out[picked, :width] = values[: len(picked)]
            out[picked, width:] = -1e30
        reporter.advance(len(picked), "windows")
    return start, end


def _lower(
    ctx: RunContext, program: TrainProgram, config: SquadEvaluation, _: AbstractBatch
) -> tuple[Hashable, Callable[[], Any]]:
    rows, length = round_up_batch(config.batch_size, program), config.data.preprocess.sequence_length
    tokens = jax.ShapeDtypeStruct((rows, length), np.int32, sharding=program.batch_sharding())
    return ("spans", rows, length), lambda: make_span_logits_fn(program).lower(
        program.abstract_params(), *[tokens] * len(INPUTS)
    )


def _scores(config: SquadEvaluation, stage: Stage) -> tuple[str, ...]:
    if config.version_2 is None:  # the data decide
        return tuple(dict.fromkeys([*squad.V1_SCORES, *squad.V2_SCORES, *CALIBRATION_SCORES]))
    return (*(squad.V2_SCORES if config.version_2 else squad.V1_SCORES), *CALIBRATION_SCORES)


def _problems(config: SquadEvaluation, base: Path) -> Iterator[str]:
    """A question id that is there twice among the first questions."""
    seen: set[str] = set()
    found = ((source, e.id) for source in config.data.source for e in stream_squad(source, base))
    for source, name in islice(found, FIRST_QUESTIONS if config.data.limit is None else 0):
        if name in seen:
            place = describe_source(source)
            yield f"{place}: question '{name[:60]}' is there twice; answers are identified by id: remove one"
            return
        seen.add(name)


SQUAD = EvaluationKind(
    build=squad_evaluator, lower=_lower, asks_questions=lambda config: True, problems=_problems, scores=_scores
)
