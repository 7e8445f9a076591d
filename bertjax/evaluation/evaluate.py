"""The evaluators of a stage, which run inside training, and the command that runs them on a checkpoint.

An evaluator is a function of parameters. It keeps <name>.json (scores and samples) and, for questions, the official
predictions, n-best and null-odds files under evaluations/<stage>/ of the run.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.evaluation_schema import (
    ClassificationEvaluation,
    LossEvaluation,
    MlmEvaluation,
    SquadEvaluation,
)
from bertjax.data import qa
from bertjax.data.labels import Classes
from bertjax.data.labels import lines as label_lines
from bertjax.data.sampling import sampled
from bertjax.errors import UserError
from bertjax.evaluation import squad
from bertjax.evaluation.heldout import SAMPLES, keep, made_from, open_heldout, placed, rows_of, whole
from bertjax.evaluation.kept_records import records_of, with_cache
from bertjax.evaluation.labels import label_scores
from bertjax.evaluation.records import Record
from bertjax.evaluation.restore import restore
from bertjax.evaluation.text_to_text import text_to_text, with_averages
from bertjax.parallel import distributed
from bertjax.training import inputs, preflight, stopping
from bertjax.training.loop import Evaluator
from bertjax.training.runs import stage_folder
from bertjax.training.setup import Job
from bertjax.training.state import Params
from bertjax.training.step import Program, flat_terms, in_mesh

TOKEN_TERMS = {"mlm", "target"}  # terms of an objective that are over a vocabulary


def build_evaluators(
    job: Job,
    index: int,
    program: Program,
    labels: list[str] | None = None,
    kept: Mapping[str, Record] | None = None,
) -> list[Evaluator]:
    """The evaluations that stage `index` names, with their data read and checked.

    labels: names of the classes in the order of the training data's ids. kept: where the files of each evaluation go
    (default: the run's own record); an evaluation that is not among them is left out.
    """
    builders: dict[str, Callable[..., Callable[[Params, int], dict[str, float]]]]
    builders = {"mlm": loss, "loss": loss, "squad": squad_answers, "text_to_text": text_to_text}
    builders["classification"] = partial(classification, labels=labels)
    made = []
    for config in job.config.stages[index].evaluate:
        if kept is None or config.name in kept:
            record = own_record(job, index, program, config) if kept is None else kept[config.name]
            made.append(Evaluator(config, builders[config.kind](job, program, config, record)))
    return with_averages(made)


def own_record(job: Job, index: int, program: Program, config: Any) -> Record:
    """The run's record of an evaluation, as training writes it."""
    folder = job.config.run_dir / "evaluations" / stage_folder(Path(), index, job.config.stages[index].name).name
    return Record(folder, config.name, config.name, made_from(job, program, config))


# ---- the evaluators -------------------------------------------------------------------------------------------------


def loss(
    job: Job, program: Program, config: MlmEvaluation | LossEvaluation, record: Record
) -> Callable[[Params, int], dict[str, float]]:
    """Loss and accuracy of each term of the stage's objective, and the perplexity of masked or target tokens."""
    batches = open_heldout(job, program, config)
    eval_step = program.jit_eval_step()

    def run(params: Params, step: int) -> dict[str, float]:
        terms = None
        for batch in placed(batches.epoch_batches(rows_of(program, batches), limit=config.batches), program, batches):
            found = jax.device_get(eval_step(params, batch))
            terms = found if terms is None else jax.tree.map(np.add, terms, found)
        assert terms is not None, "prepare refuses an empty task"
        scores = {name: float(x) for name, x in flat_terms(terms).items() if not name.endswith("_weight")}
        for name in TOKEN_TERMS & terms.keys():
            scores[f"{name}_perplexity"] = float(np.exp(min(scores[f"{name}_loss"], 80.0)))
        keep(record, config.name, {"step": step, "scores": scores})
        return scores

    return run


def squad_answers(
    job: Job, program: Program, config: SquadEvaluation, record: Record
) -> Callable[[Params, int], dict[str, float]]:
    """Answers by the rules of the profile, scored by the official rules; predictions are kept in the official form."""
    everything = (e for source in config.data.source for e in qa.read_squad(source, job.base))
    examples = list(sampled(everything, config.data.limit, job.config.run.seed))
    if not examples:
        raise UserError(f"evaluation '{config.name}': its source holds no questions")
    if config.data.preprocess.kind != "span_qa":
        raise UserError(f"evaluation '{config.name}': data.preprocess.kind must be span_qa")
    features = qa.evaluation_features(examples, job.tokenizer, config.data.preprocess)
    logits = span_logits(program)
    version_2 = any(e.is_impossible for e in examples) if config.version_2 is None else config.version_2
    size = whole(config.batch_size, program)

    def run(params: Params, step: int) -> dict[str, float]:
        start, end = answer_logits(logits, params, features, program, size)
        predictions, nbest, null_odds = squad.predict_answers(
            examples,
            features,
            start,
            end,
            n_best=config.n_best,
            max_answer_length=config.max_answer_length,
            null_score_diff_threshold=config.null_score_diff_threshold,
            version_2=version_2,
        )
        scores = squad.score(examples, predictions, null_odds if version_2 else None, version_2=version_2)
        samples = [_sample(e, predictions[e.id]) for e in examples[:: max(1, len(examples) // SAMPLES)][:SAMPLES]]
        keep(record, config.name, {"step": step, "scores": scores, "samples": samples})
        keep(record, f"{config.name}.predictions", predictions)
        keep(record, f"{config.name}.nbest", nbest)
        if version_2:
            keep(record, f"{config.name}.null_odds", null_odds)
        return scores

    return run


def classification(
    job: Job, program: Program, config: ClassificationEvaluation, record: Record, labels: list[str] | None
) -> Callable[[Params, int], dict[str, float]]:
    """Accuracy, F1 and Matthews correlation of labels; Pearson and Spearman correlation for regression.

    labels: names of the classes by id, which the data's are matched to. Rows without a label are left out.
    """
    names = tuple(labels) if labels else None
    classes = Classes(program.classes, names, required=True, hidden=True)
    batches = open_heldout(job, program, config, classes)
    meta = batches.stores[config.name].meta
    for line in label_lines(meta, training=False) if distributed.is_lead() else ():
        print(f"evaluation '{config.name}': {line}", file=sys.stderr)
    left_out = {"records_without_label": meta["hidden"]} if meta.get("hidden") else {}
    everywhere = NamedSharding(program.mesh, P())

    def logits_of(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = program.module(params)
        fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
        hidden = model.encode(*fields, packed=batch["cls_positions"].shape[1] > 1)
        return model.class_logits(hidden, batch["cls_positions"]), batch["labels"], batch["label_weights"]

    predict = in_mesh(jax.jit(logits_of, out_shardings=everywhere), program.mesh, program.rules)

    def run(params: Params, step: int) -> dict[str, float]:
        logits, truths = [], []
        for batch in placed(batches.epoch_batches(rows_of(program, batches)), program, batches):
            found, truth, weights = jax.device_get(predict(params, batch))
            logits.append(found[weights > 0])
            truths.append(truth[weights > 0])
        scores = label_scores(np.concatenate(logits), np.concatenate(truths))
        keep(record, config.name, {"step": step, "scores": scores, **left_out})
        return scores

    return run


# ---- shared parts ---------------------------------------------------------------------------------------------------


def span_logits(program: Program) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, input_ids, token_type_ids, segment_ids, positions) -> start, end [B, S], on every device."""

    def forward(params: Params, *fields: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = program.module(params)
        return model.qa_logits(model.encode(*fields))

    jitted = jax.jit(forward, out_shardings=NamedSharding(program.mesh, P()))
    return in_mesh(jitted, program.mesh, program.rules)


def answer_logits(
    logits: Callable, params: Params, features: qa.Features, program: Program, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits of all windows, float32 [N, S]; batches of one shape, windows of like length together."""
    names = ("input_ids", "token_type_ids", "segment_ids", "positions")
    total, length = features.inputs["input_ids"].shape
    start, end = np.zeros((total, length), np.float32), np.zeros((total, length), np.float32)
    used = (features.inputs["segment_ids"] > 0).sum(1)
    order = np.argsort(used, kind="stable")
    sharding = program.batch_sharding()
    rows = distributed.local_rows(sharding, size)
    for first in range(0, total, size):
        stopping.check()
        picked = order[first : first + size]
        width = min(length, -(-int(used[picked].max()) // 64) * 64)  # few widths, few programs, little padding
        padded = np.concatenate([picked, np.repeat(picked[-1:], size - len(picked))])
        batch = {name: features.inputs[name][padded[rows], :width] for name in names}
        put = distributed.place(batch, sharding, size)
        found = jax.device_get(logits(params, *(put[name] for name in names)))
        for out, values in zip((start, end), found, strict=True):
            out[picked, :width] = values[: len(picked)]
            out[picked, width:] = -1e30
    return start, end


def _sample(example: qa.Example, prediction: str) -> dict[str, Any]:
    answers = [text for text, _ in example.answers]
    return {"question": example.question, "context": example.context, "answers": answers, "prediction": prediction}


# ---- the command ---------------------------------------------------------------------------------------------------


def evaluate_command(
    path: str | Path,
    step: int | None,
    stage: str | None,
    name: str | None,
    overrides: Sequence[str],
    best: str | None = None,
    output: Path | None = None,
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Run the evaluations of a checkpoint's stage (or the one called `name`) and keep their scores.

    What differs from the run's own evaluation never replaces the run's record: see `records`. -> {"checkpoint",
    "stage", "step", "scores": {name: scores}, "kept": {name: file}, "differs": {name: from the run's record}}.
    """
    restored = restore(path, stage=stage, step=step, best=best, overrides=overrides, base=base)
    config = restored.job.config.stages[restored.stage]
    known = [e.name for e in config.evaluate]
    if not known:
        asked = f"no evaluation '{name}', nor any other" if name else "no evaluations"
        raise UserError(
            f"{path}: stage '{config.name}' has {asked}; name another --stage, "
            f"or give it some: stages.{config.name}.evaluate='[{{kind: ..., data: ...}}]'"
        )
    if name not in (None, *known):
        there = ", ".join(known)
        raise UserError(f"{path}: stage '{config.name}' has no evaluation '{name}'; its evaluations: {there}")
    preflight.check_scores(config, restored.program.heads, str(path), name)
    inputs.check_evaluations(config, restored.job.base, name)
    if not restored.in_run and output is None:
        home = restored.job.config.run_dir
        print(f"note: {path}: is outside of a run; its evaluations are kept in {home}", file=sys.stderr, flush=True)
    kept = records_of(restored, [e for e in config.evaluate if name in (None, e.name)], output)
    job = with_cache(restored.job, output)
    evaluators = build_evaluators(job, restored.stage, restored.program, restored.labels, kept)
    scores = {}
    for evaluator in evaluators:
        scores[evaluator.config.name] = evaluator.run(restored.params, restored.step)
        if record := kept.get(evaluator.config.name):
            print(record.told(restored.step), file=sys.stderr, flush=True)
    dtype = str(restored.program.execution.dtype)
    found = {"checkpoint": str(path), "stage": config.name, "step": restored.step, "compute_dtype": dtype}
    found |= {"scores": scores, "kept": {name: str(record.path) for name, record in kept.items()}}
    return found | {"differs": {name: dict(record.differs) for name, record in kept.items() if record.differs}}
