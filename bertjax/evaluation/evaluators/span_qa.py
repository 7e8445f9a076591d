"""Extractive question answering: predictions and SQuAD scores."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.data.preprocess import span_qa
from bertjax.data.preprocess.sampling import sample_items
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.heldout import NUM_SAMPLES, save_json
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.metrics import squad
from bertjax.evaluation.records import EvaluationRecord
from bertjax.parallel.batches import local_rows, place
from bertjax.training.monitor import preemption
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params


def squad_evaluator(
    ctx: RunContext, program: TrainProgram, config: SquadEvaluation, record: EvaluationRecord
) -> Callable[[Params, int], dict[str, float]]:
    """Answers by the rules of the profile, scored by the official rules; predictions are kept in the official form."""
    everything = (e for source in config.data.source for e in span_qa.read_squad(source, ctx.base))
    examples = list(sample_items(everything, config.data.limit, ctx.config.run.seed))
    if not examples:
        raise UserError(f"evaluation '{config.name}': its source holds no questions")
    if config.data.preprocess.kind != "span_qa":
        raise UserError(f"evaluation '{config.name}': data.preprocess.kind must be span_qa")
    features = span_qa.evaluation_features(examples, ctx.tokenizer, config.data.preprocess)
    logits = make_span_logits_fn(program)
    version_2 = any(e.is_impossible for e in examples) if config.version_2 is None else config.version_2
    size = round_up_batch(config.batch_size, program)

    def run(params: Params, step: int) -> dict[str, float]:
        start, end = compute_span_logits(logits, params, features, program, size)
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
        samples = [
            _sample(e, predictions[e.id]) for e in examples[:: max(1, len(examples) // NUM_SAMPLES)][:NUM_SAMPLES]
        ]
        save_json(record, config.name, {"step": step, "scores": scores, "samples": samples})
        save_json(record, f"{config.name}.predictions", predictions)
        save_json(record, f"{config.name}.nbest", nbest)
        if version_2:
            save_json(record, f"{config.name}.null_odds", null_odds)
        return scores

    return run


def make_span_logits_fn(program: TrainProgram) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, input_ids, token_type_ids, segment_ids, positions) -> start, end [B, S], on every device."""

    def forward(params: Params, *fields: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = program.build_model(params)
        return model.qa_logits(model.encode(*fields))

    jitted = jax.jit(forward, out_shardings=NamedSharding(program.mesh, P()))
    return MeshJit(jitted, program.mesh, program.rules)


def compute_span_logits(
    logits: Callable, params: Params, features: span_qa.Features, program: TrainProgram, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits of all windows, float32 [N, S]; batches of one shape, windows of like length together."""
    names = ("input_ids", "token_type_ids", "segment_ids", "positions")
    total, length = features.inputs["input_ids"].shape
    start, end = np.zeros((total, length), np.float32), np.zeros((total, length), np.float32)
    used = (features.inputs["segment_ids"] > 0).sum(1)
    order = np.argsort(used, kind="stable")
    sharding = program.batch_sharding()
    rows = local_rows(sharding, size)
    for first in range(0, total, size):
        preemption.check()
        picked = order[first : first + size]
        width = min(length, -(-int(used[picked].max()) // 64) * 64)  # few widths, few programs, little padding
        padded = np.concatenate([picked, np.repeat(picked[-1:], size - len(picked))])
        batch = {name: features.inputs[name][padded[rows], :width] for name in names}
        put = place(batch, sharding, size)
        found = jax.device_get(logits(params, *(put[name] for name in names)))
        for out, values in zip((start, end), found, strict=True):
            out[picked, :width] = values[: len(picked)]
            out[picked, width:] = -1e30
    return start, end


def _sample(example: span_qa.Example, prediction: str) -> dict[str, Any]:
    answers = [text for text, _ in example.answers]
    return {"question": example.question, "context": example.context, "answers": answers, "prediction": prediction}
