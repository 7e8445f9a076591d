"""What is measured of the runs of a ladder: a pre-trained model, and the scores that its fine-tuning reached."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bertjax.config.schema.run import Config
from bertjax.evaluation.inference.token_rows import num_special
from bertjax.evaluation.predictors.base import restore_for_prediction
from bertjax.evaluation.predictors.sentence_scores import sentence_score
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.report.record import StageRecord, is_finite, read_run
from bertjax.storage import folders
from bertjax.storage.atomic import write_json_atomic
from bertjax.tools.explore.analogies import Question, analogies
from bertjax.tools.explore.neighbors import nearest
from bertjax.tools.explore.vocabulary import normalize, word_ids
from bertjax.tools.ladder.pairs import Pair, accuracies

FILE = "ladder.json"  # in the folder of a pre-training: what was measured of it
NEIGHBORS = 8
MIN_LETTERS = 3  # of a neighbour; shorter pieces are letters and parts of words
_TASK_SCORES = ("accuracy", "f1", "squad_f1")
_KINDS = {  # of perplexities, by the terms of the objective
    ("lm",): "causal",
    ("forward", "backward"): "bidirectional",
    ("mlm",): "pseudo",
    ("target",): "denoising",
}


def measure_pretraining(
    run: Config, pairs: Sequence[Pair], questions: Sequence[Question], words: Sequence[str]
) -> dict[str, Any]:
    """Parameters, tokens read, perplexity, minimal pairs, analogies and nearest words of a finished pre-training.

    Scores that take long are kept in its folder, and computed again when the pairs have changed.
    """
    restored = restore_for_prediction(run.run_place)
    record = read_run(run.run_dir).stages[0]
    found: dict[str, Any] = {
        "parameters": sum(math.prod(x.shape) for x in restored.params.values()),
        "tokens": tokens_read(record, restored.step),
        "heldout": heldout(record),
    }
    found |= vocabulary_scores(restored, questions, words)
    asked = {"step": restored.step, "pairs": [[pair.good, pair.bad] for pair in pairs]}
    kept = folders.read_json(run.run_place / FILE)
    if not isinstance(kept, dict) or kept.get("asked") != asked:
        kept = {"asked": asked, "minimal_pairs": _minimal_pairs(restored, pairs, run.run.name)}
        if primary.is_primary():
            write_json_atomic(run.run_place / FILE, kept)
    return found | {"minimal_pairs": kept["minimal_pairs"]}


def _minimal_pairs(restored: RestoredCheckpoint, pairs: Sequence[Pair], name: str) -> dict[str, Any] | None:
    scorer = sentence_score(restored) if pairs else None
    if scorer is None:
        return None
    how, score = scorer
    tokenizer, longest = restored.ctx.tokenizer, restored.program.model.max_length
    room = None if longest is None else longest - num_special(tokenizer)
    with reporter.task(f"{name}: {len(pairs):,} minimal pairs", finish=False):
        return {"score": how} | accuracies(pairs, tokenizer.encode_batch, score, room)


def vocabulary_scores(
    restored: RestoredCheckpoint, questions: Sequence[Question], words: Sequence[str]
) -> dict[str, Any]:
    """Analogies and nearest words over the vectors that the model reads, of pieces that are words."""
    tokenizer = restored.ctx.tokenizer
    vectors = np.asarray(jax.device_get(restored.params["embeddings/word/embedding"]), np.float32)
    index = word_ids(tokenizer)
    score = analogies(vectors, index, questions).total
    wanted = [normalize(word, tokenizer) for word in words]
    listed = [word for word in index if word in wanted or len(word) >= MIN_LETTERS]
    near = nearest(vectors[[index[word] for word in listed]], listed, wanted, NEIGHBORS)
    return {
        "analogies": {"accuracy": score.accuracy, "answered": score.answered, "questions": len(questions)},
        "neighbors": {word: [name for name, _ in found] for word, found in near.items()},
    }


def tokens_read(record: StageRecord, steps: int) -> int | None:
    """Tokens that are not padding, of inputs and targets: the mean of a step in the log times the steps."""
    rates = [(line.get("tokens_per_second"), line.get("step_seconds")) for line in record.train]
    per_step = [a * b for a, b in rates if is_finite(a) and is_finite(b)]
    return round(steps * sum(per_step) / len(per_step)) if per_step else None


def heldout(record: StageRecord) -> dict[str, Any] | None:
    """The perplexity of the first evaluation with its kind, or the loss of an objective without one."""
    if not record.evaluations:
        return None
    scores = {name: x for name, x in record.evaluations[0].scores.items() if is_finite(x)}
    for terms, kind in _KINDS.items():
        names = [f"{term}_perplexity" for term in terms]
        if all(name in scores for name in names):
            logs = [math.log(scores[name]) for name in names]
            return {"kind": kind, "value": math.exp(sum(logs) / len(logs))}
    losses = [name for name in scores if name.endswith("_loss")]
    return {"kind": losses[0].replace("_", " "), "value": scores[losses[0]]} if losses else None


def task_score(run: Config) -> float | None:
    """The accuracy or F1 in the first evaluation of a finished run of one task, or its first score."""
    record = read_run(run.run_dir).stages[0]
    scores: Mapping[str, Any] = record.evaluations[0].scores if record.evaluations else {}
    found = next((scores[name] for name in (*_TASK_SCORES, *scores) if name in scores), None)
    return float(found) if is_finite(found) else None
