"""Evaluation of labelled words: kind token_classification."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.evaluation import TokenClassificationEvaluation
from bertjax.config.schema.run import Stage
from bertjax.data.preprocess.labels import report_lines as label_lines
from bertjax.data.preprocess.token_labels.rows import source_names
from bertjax.data.preprocess.token_labels.sentences import Sentence, read_sentences
from bertjax.data.sources.class_names import ClassSpec
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.heldout import NUM_SAMPLES, open_heldout, save_json
from bertjax.evaluation.evaluators.registry import AbstractBatch, CountedRun, EvaluationKind, Run
from bertjax.evaluation.inference.batches import device_batches, local_batch_rows
from bertjax.evaluation.metrics import entities
from bertjax.evaluation.records import EvaluationRecord
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.storage import atomic
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params

MAX_CHARS = 1000  # of the text of a sample
UNLABELED = "-"  # in the file of predictions, for words without a label


class Words(NamedTuple):
    """The predicted words of all sentences, in order: N numbers each."""

    sentences: np.ndarray
    words: np.ndarray  # their numbers in the sentence
    gold: np.ndarray  # ids; below 0: no label
    predicted: np.ndarray
    probability: np.ndarray  # of the predicted label


def token_evaluator(
    ctx: RunContext,
    program: TrainProgram,
    config: TokenClassificationEvaluation,
    record: EvaluationRecord,
    labels: list[str] | None,
) -> Run:
    """Scores of `metrics.entities`; words without a label are skipped. Every word has one prediction, at its first
    piece, in the window with the most context.

    The file has also the counts by type and the sentences with the surest errors. The predictions are in columns (word,
    label, predicted label; tabs) in NAME.predictions.conll, which `conlleval -d '\\t'` reads.
    """
    classes = ClassSpec(program.num_classes, tuple(labels) if labels else None, required=True, keep_unlabeled=True)
    batches = open_heldout(ctx, program, config, classes)
    meta = batches.stores[config.name].meta
    for line in label_lines(meta, training=False) if primary.is_primary() else ():
        reporter.say(f"evaluation '{config.name}': {line}")
    names = labels or meta.get("labels") or [str(number) for number in range(program.num_classes)]
    if config.scheme and (odd := entities.foreign_prefix(names, config.scheme)):
        raise UserError(f"evaluation '{config.name}': scheme {config.scheme} has no label '{odd[:60]}'; leave it out")
    predict = _make_predict_fn(program)

    def run(params: Params, step: int) -> dict[str, float]:
        found = []
        for batch in device_batches(batches.epoch_batches(local_batch_rows(program, batches)), program, batches):
            found.append(_words_of(*jax.device_get(predict(params, batch))))
        words = _in_order(found)
        scores, details = _score(words, names, config.scheme)
        if primary.is_primary():
            named, _, _ = source_names(config.data, ctx.base)
            sentences = read_sentences(config.data, ctx.base, ctx.config.run.seed, named)
            shown, samples = _describe(words, sentences, names)
            save_json(record, config.name, {"step": step, "scores": scores, **details, "samples": samples})
            atomic.write_text_atomic(record.folder / f"{record.stem}.predictions.conll", shown)
        return scores

    return CountedRun(run, batches.rows_per_epoch)


def _make_predict_fn(program: TrainProgram) -> MeshJit:
    """(params, batch) -> predicted ids, their probabilities, labels, word_ids, segment_ids [B, S], example_ids [B, G].

    All are replicated.
    """

    def forward(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        model = program.build_model(params)
        fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
        logits = model.token_logits(model.encode(*fields, packed=batch["cls_positions"].shape[1] > 1))
        probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).max(-1)
        kept = (batch[name] for name in ("token_labels", "word_ids", "segment_ids", "example_ids"))
        return logits.argmax(-1), probability, *kept

    replicated = NamedSharding(program.mesh, P())
    return MeshJit(jax.jit(forward, out_shardings=replicated), program.mesh, program.rules)


def _words_of(
    predicted: np.ndarray, probability: np.ndarray, labels: np.ndarray, words: np.ndarray, segments: np.ndarray,
    examples: np.ndarray,
) -> Words:  # fmt: skip
    there = (words >= 0) & (segments > 0)
    row, _ = np.nonzero(there)
    numbers = examples[row, segments[there] - 1]
    return Words(numbers, words[there], labels[there], predicted[there], probability[there])


def _in_order(found: Sequence[Words]) -> Words:
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    return Words(*(column[order] for column in columns))


def _score(words: Words, names: Sequence[str], scheme: str | None) -> tuple[dict[str, float], dict[str, Any]]:
    scored = words.gold >= 0
    starts = np.flatnonzero(np.diff(words.sentences[scored], prepend=-1))[1:]
    gold, predicted = (
        [[names[i] for i in part.tolist()] for part in np.split(ids[scored], starts)]
        for ids in (words.gold, words.predicted)
    )
    has_entities = scheme is not None or entities.has_entities(names)
    return entities.entity_scores(gold, predicted, scheme) if has_entities else entities.word_scores(gold, predicted)


def _describe(words: Words, sentences: Iterable[Sentence], names: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """(the file of predictions, samples of the sentences with the surest errors)."""
    lines: list[str] = []
    wrong: list[tuple[float, int, dict[str, Any]]] = []
    for number, sentence in enumerate(sentences):
        first, last = np.searchsorted(words.sentences, [number, number + 1])
        places, gold = words.words[first:last].tolist(), words.gold[first:last]
        guesses = [names[i] for i in words.predicted[first:last].tolist()]
        truths = [names[i] if i >= 0 else UNLABELED for i in gold.tolist()]
        for place, truth, guess in zip(places, truths, guesses, strict=True):
            lines.append(f"{' '.join(sentence.words[place].split())}\t{truth}\t{guess}")
        lines.append("")
        errors = (gold >= 0) & (gold != words.predicted[first:last])
        if errors.any():
            surest = float(words.probability[first:last][errors].max())
            text = " ".join(sentence.words)
            said = [[f"{sentence.words[p]} ({t})" for p, t, e in zip(places, tags, errors, strict=True) if e]
                    for tags in (truths, guesses)]  # fmt: skip
            sample = {
                "text": text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + " …", "label": ", ".join(said[0]),
                "predicted": ", ".join(said[1]), "probability": round(surest, 4),
            }  # fmt: skip
            wrong.append((-surest, number, sample))
            wrong = sorted(wrong, key=lambda one: one[:2])[:NUM_SAMPLES]
    return "\n".join(lines) + "\n", [sample for _, _, sample in wrong]


def _lower(
    ctx: RunContext, program: TrainProgram, config: TokenClassificationEvaluation, batch: AbstractBatch
) -> tuple[Hashable, Callable[[], Any]]:
    predict: Any = _make_predict_fn(program)
    key = ("tokens", tuple(sorted((name, x.shape) for name, x in batch.items())))
    return key, lambda: predict.lower(program.abstract_params(), batch)


def _scores(config: TokenClassificationEvaluation, stage: Stage) -> tuple[str, ...] | None:
    named = config.data.preprocess.labels  # without them a set of labels may prove to have the accuracy alone
    return entities.SCORES if not named or entities.has_entities(named) else entities.SCORES[-1:]


TOKEN_CLASSIFICATION = EvaluationKind(build=token_evaluator, lower=_lower, scores=_scores)
