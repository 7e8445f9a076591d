"""Evaluation by the loss of the objective on held-out data: kinds mlm and loss."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from bertjax.config.schema.evaluation import LossEvaluation, MlmEvaluation
from bertjax.config.schema.run import Stage
from bertjax.evaluation.evaluators.heldout import open_heldout, save_json
from bertjax.evaluation.evaluators.registry import AbstractBatch, CountedRun, EvaluationKind, Run
from bertjax.evaluation.evaluators.token_samples import make_sampler
from bertjax.evaluation.inference.batches import device_batches, local_batch_rows
from bertjax.evaluation.records import EvaluationRecord
from bertjax.objectives import registry as objectives
from bertjax.training.program import TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params
from bertjax.training.step import jit_eval_step, loss_metrics

TOKEN_TERMS = {"mlm", "target", "lm", "forward", "backward"}  # terms of an objective that are over a vocabulary


def loss_evaluator(
    ctx: RunContext, program: TrainProgram, config: MlmEvaluation | LossEvaluation, record: EvaluationRecord, *_: Any
) -> Run:
    """Loss and accuracy of each term of the stage's objective, and the perplexity of predicted tokens.

    The file has also the samples of `token_samples`.
    """
    batches = open_heldout(ctx, program, config)
    eval_step = jit_eval_step(program)
    sample = make_sampler(program, ctx.tokenizer)

    def run(params: Params, step: int) -> dict[str, float]:
        terms = None
        samples: dict[str, Any] = {}
        rows = batches.epoch_batches(local_batch_rows(program, batches), limit=config.batches)
        for batch in device_batches(rows, program, batches):
            if terms is None and sample is not None:
                samples = sample(params, batch)
            found = jax.device_get(eval_step(params, batch))
            terms = found if terms is None else jax.tree.map(np.add, terms, found)
        assert terms is not None, "prepare refuses an empty task"
        scores = {name: float(x) for name, x in loss_metrics(terms).items() if not name.endswith("_weight")}
        for name in TOKEN_TERMS & terms.keys():
            scores[f"{name}_perplexity"] = float(np.exp(min(scores[f"{name}_loss"], 80.0)))
        save_json(record, config.name, {"step": step, "scores": scores, **samples})
        return scores

    rows = batches.rows_per_epoch
    return CountedRun(run, rows if config.batches is None else min(rows, config.batches * config.batch_size))


def _lower(
    ctx: RunContext, program: TrainProgram, config: Any, batch: AbstractBatch
) -> tuple[Hashable, Callable[[], Any]]:
    step: Any = jit_eval_step(program)
    key = ("loss", tuple(sorted((name, x.shape) for name, x in batch.items())))
    return key, lambda: step.lower(program.abstract_params(), batch)


def _scores(config: MlmEvaluation | LossEvaluation, stage: Stage) -> set[str]:
    objective = objectives.build(stage.objective)
    terms = objective.weights
    names = {f"{term}_{what}" for term in terms for what in ("loss", "accuracy")}
    names |= {f"{term}_{what}" for term in objective.decisions for what in ("precision", "recall", "positives", "auc")}
    return names | {f"{term}_perplexity" for term in TOKEN_TERMS & terms.keys()}


LOSS = EvaluationKind(build=loss_evaluator, lower=_lower, scores=_scores)
