"""Evaluations of sentence embeddings: kinds sts (cosines beside scores) and retrieval (search for the right text)."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.evaluation import RetrievalEvaluation, StsEvaluation
from bertjax.data.pipeline.loader import Batches
from bertjax.data.store.reader import Store
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.heldout import open_heldout, save_json
from bertjax.evaluation.evaluators.registry import AbstractBatch, CountedRun, EvaluationKind, Run
from bertjax.evaluation.inference.batches import device_batches, local_batch_rows
from bertjax.evaluation.metrics.labels import label_details, label_scores
from bertjax.evaluation.metrics.ranking import SCORES, ranking_scores
from bertjax.evaluation.records import EvaluationRecord
from bertjax.models.pooling import unit_length
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params

ROWS = 1 << 12  # read at once to find equal texts


def sts_evaluator(
    ctx: RunContext, program: TrainProgram, config: StsEvaluation, record: EvaluationRecord, *_: Any
) -> Run:
    """Correlation of cosines and scores, in percent, as GLUE's STS-B; the file has points of the scatter plot too."""
    batches = open_heldout(ctx, program, config)
    store = batches.stores[config.name]
    encode = _make_vectors_fn(program)
    scores = np.concatenate([store.rows(numbers)["scores"][:, 0] for numbers in _blocks(store)])
    if np.ptp(scores) == 0:
        raise UserError(
            f"evaluation '{config.name}': all {len(scores):,} scores are equal; a correlation needs different ones"
        )

    def run(params: Params, step: int) -> dict[str, float]:
        vectors = _vectors(encode, params, program, batches)
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(-1)[:, None]
        found = {name: label_scores(cosines, scores)[name] for name in ("spearman", "pearson")}
        content = {"step": step, "scores": found, "pairs": len(scores), **label_details(cosines, scores, None)}
        save_json(record, config.name, content)
        return found

    return CountedRun(run, batches.rows_per_epoch)


def retrieval_evaluator(
    ctx: RunContext, program: TrainProgram, config: RetrievalEvaluation, record: EvaluationRecord, *_: Any
) -> Run:
    """`ranking_scores` of each text_a among the text_b, and the negatives, of all records.

    Equal texts (as the model reads them) are one: a query with several text_b has several relevant texts.
    """
    batches = open_heldout(ctx, program, config)
    numbers = _text_numbers(batches.stores[config.name])
    queries, query_rows = np.unique(numbers[:, 0], return_index=True)
    corpus, corpus_places = np.unique(numbers[:, 1:], return_index=True)
    relevant: dict[int, set[int]] = {}
    for query, document in zip(numbers[:, 0], np.searchsorted(corpus, numbers[:, 1]), strict=True):
        relevant.setdefault(int(query), set()).add(int(document))
    wanted = [sorted(relevant[int(query)]) for query in queries]
    encode = _make_vectors_fn(program)

    def run(params: Params, step: int) -> dict[str, float]:
        vectors = _vectors(encode, params, program, batches)
        documents = vectors[:, 1:].reshape(-1, vectors.shape[-1])[corpus_places]
        scores = ranking_scores(vectors[query_rows, 0], documents, wanted)
        counts = {"queries": len(queries), "corpus": len(corpus)}
        save_json(record, config.name, {"step": step, "scores": scores, **counts})
        return scores

    return CountedRun(run, batches.rows_per_epoch)


def _blocks(store: Store) -> list[np.ndarray]:
    """Numbers of the rows of a store, in blocks of at most ROWS."""
    return [np.arange(start, min(start + ROWS, len(store))) for start in range(0, len(store), ROWS)]


def _text_numbers(store: Store) -> np.ndarray:
    """int64 [R, T]: the same number for texts with the same ids, in order of their first appearance."""
    seen: dict[bytes, int] = {}
    found = []
    for numbers in _blocks(store):
        rows = store.rows(numbers)
        texts = rows["text_starts"].shape[1]
        ids = np.where(rows["segment_ids"] > 0, rows["input_ids"], -1).reshape(len(rows), texts, -1)
        found += [[seen.setdefault(text.tobytes(), len(seen)) for text in row] for row in ids]
    return np.array(found, np.int64)


def _vectors(encode: MeshJit, params: Params, program: TrainProgram, batches: Batches) -> np.ndarray:
    """The vectors of all rows in the order of the store, of length 1: float32 [R, T, D]."""
    rows = batches.epoch_batches(local_batch_rows(program, batches))
    found = [jax.device_get(encode(params, batch)) for batch in device_batches(rows, program, batches)]
    return np.concatenate(found)[: batches.rows_per_epoch]


def _make_vectors_fn(program: TrainProgram) -> MeshJit:
    """(params, batch) -> vectors of length 1, float32 [B, T, D], replicated."""
    encode = program.objective.vectors
    assert encode is not None, "validate.check_kinds has checked it"

    def forward(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return unit_length(encode(program.build_model(params), batch))

    replicated = NamedSharding(program.mesh, P())
    return MeshJit(jax.jit(forward, out_shardings=replicated), program.mesh, program.rules)


def _lower(
    ctx: RunContext, program: TrainProgram, config: StsEvaluation | RetrievalEvaluation, batch: AbstractBatch
) -> tuple[Hashable, Callable[[], Any]]:
    encode: Any = _make_vectors_fn(program)
    key = ("vectors", tuple(sorted((name, x.shape) for name, x in batch.items())))
    return key, lambda: encode.lower(program.abstract_params(), batch)


STS = EvaluationKind(build=sts_evaluator, lower=_lower, scores=lambda config, stage: ("spearman", "pearson"))
RETRIEVAL = EvaluationKind(build=retrieval_evaluator, lower=_lower, scores=lambda config, stage: SCORES)
