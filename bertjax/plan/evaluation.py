"""The evaluation steps of a stage, as evaluation/ runs them inside training: forward passes and decoding."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bertjax.config.schema.evaluation import TextToTextEvaluation
from bertjax.evaluation.evaluators.span_qa import make_span_logits_fn
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.evaluation.inference.generate import WIDTH_MULTIPLE, Generator
from bertjax.plan.batch import task_fields
from bertjax.plan.compile import StageProgram, abstract_batch
from bertjax.training.step import jit_eval_step


def evaluation_steps(opened: StageProgram) -> Iterator[tuple[str, Any]]:
    """(names of the evaluations, what lowers their program) for each different program of the stage's evaluations."""
    programs: dict[Any, list[str]] = {}
    lowers: dict[Any, Any] = {}
    for evaluation in opened.stage.evaluate:
        key, lower = _evaluation(opened, evaluation)
        programs.setdefault(key, []).append(evaluation.name)
        lowers[key] = lower
    for key, names in programs.items():
        yield ", ".join(names), lowers[key]


def _evaluation(opened: StageProgram, evaluation: Any) -> tuple[Any, Any]:
    """(what its program depends on, a function that lowers it); its widest batch, as evaluation/ cuts them."""
    program: Any = opened.program  # whose functions lower as jax.jit's do
    params = program.abstract_params()
    rows, length = round_up_batch(evaluation.batch_size, program), evaluation.data.preprocess.sequence_length
    tokens = lambda width: jax.ShapeDtypeStruct((rows, width), np.int32, sharding=program.batch_sharding())  # noqa: E731
    if evaluation.kind == "text_to_text":
        return _generation(opened, evaluation, tokens)
    if evaluation.kind == "squad":
        width = min(length, -(-length // 64) * 64)
        spans: Any = make_span_logits_fn(program)
        return ("spans", rows, width), lambda: spans.lower(params, *[tokens(width)] * 4)
    fields = task_fields(opened.config, evaluation.data, program.objective.num_labels == 1)
    batch = abstract_batch(fields, rows, program)
    key = ("terms", rows, tuple(sorted((name, shape) for name, (shape, _) in fields.items())))
    step: Any = jit_eval_step(program)
    return key, lambda: step.lower(params, batch)


def _generation(opened: StageProgram, evaluation: TextToTextEvaluation, tokens: Any) -> tuple[Any, Any]:
    program, options = opened.program, evaluation.data.preprocess
    rows = round_up_batch(evaluation.batch_size, program)
    width = min(options.sequence_length, -(-options.sequence_length // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)

    def lower() -> Any:
        generator = Generator(
            program, opened.ctx.tokenizer, evaluation.decoding, sequence_length=options.sequence_length,
            target_length=options.target_length, batch_size=rows,
        )  # fmt: skip
        numbers = jax.ShapeDtypeStruct((rows,), np.int32, sharding=program.batch_sharding())
        return generator._jitted.lower(program.abstract_params(), tokens(width), tokens(width), numbers)

    return ("decoding", rows, width, options.target_length, evaluation.decoding.model_dump_json()), lower
