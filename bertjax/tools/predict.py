"""`bertjax predict`: predictions for texts of the command line or of a file, printed or written to a file."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from bertjax.errors import UserError
from bertjax.evaluation.predictors.answers import Answerer
from bertjax.evaluation.predictors.base import Predictor, restore_for_prediction
from bertjax.evaluation.predictors.documents import DocumentAnswerer
from bertjax.evaluation.predictors.generation import TextGenerator, as_flag
from bertjax.evaluation.predictors.labels import Classifier, stage_options
from bertjax.evaluation.predictors.masks import MaskFiller
from bertjax.evaluation.predictors.vectors import Embedder
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.models.pooling import Pooling
from bertjax.progress import reporter
from bertjax.tools import answer_files
from bertjax.tools import prediction_files as files
from bertjax.tools.prediction_files import Record

_COLUMN_HINT = "; name another with --column"
P = TypeVar("P", bound=Predictor)
ID = "id"  # a field that predictions keep, to join them with other files


@dataclass(frozen=True)
class Request:
    """What all `predict` commands take: a checkpoint, texts or a file of them, and where predictions go."""

    checkpoint: str | Path
    texts: Sequence[str] = ()
    file: Path | None = None
    output: Path | None = None
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    best: str | None = None
    base_model: str | Path | None = None  # where the weights below adapters and LoRA are, if they moved

    def open(self, kind: Callable[[RestoredCheckpoint, int | None], P]) -> P:
        """The predictor of this kind for the checkpoint."""
        found = restore_for_prediction(self.checkpoint, best=self.best, dtype=self.dtype, base_model=self.base_model)
        return kind(found, self.batch_size)

    def records(self, fields: Sequence[str], hint: str = "") -> Iterable[Record]:
        """The records of the file, else one for each text."""
        if self.file is None:
            return [{fields[0]: text} for text in self.texts]
        return files.read_records(self.file, fields, hint)


def fill_mask(request: Request, top_k: int, column: str | None = None) -> Any:
    """Fill the masks of each text -> the predictions to print, None when they were written to a file."""
    field = column or "text"
    records = request.records([field], _COLUMN_HINT)
    filler = request.open(MaskFiller)
    predict = lambda chunk: with_ids(chunk, filler([one[field] for one in chunk], top_k))  # noqa: E731
    return finish(request, filler, records, predict)


def answer(request: Request, question: str | None, context: str | None, options: dict[str, Any]) -> Any:
    """Answer one question, or those of a file -> the predictions to print, None as above.

    The text to search is `context`, the field of that name in the file, or the `documents` among the options.
    """
    searching = "documents" in options
    predictor: type[Answerer] = DocumentAnswerer if searching else Answerer
    if request.file is None:
        return files.rounded(_answers(request.open(predictor), [str(question)], [str(context)], options)[0])
    identified = request.output is not None and request.output.suffix == ".json"
    records = answer_files.read_questions(request.file, not searching, identified)
    answerer = request.open(predictor)

    def predict(chunk: list[Record]) -> Sequence[Record]:
        contexts = [] if searching else [one["context"] for one in chunk]
        found = _answers(answerer, [one["question"] for one in chunk], contexts, options)
        if request.output is None:
            return with_ids(chunk, found)
        shape = answer_files.shape_of(request.output)
        return [shape(record, one, request.file) for record, one in zip(chunk, found, strict=True)]

    return finish(request, answerer, records, predict)


def _answers(answerer: Answerer, questions: list[str], contexts: list[str], options: dict[str, Any]) -> Sequence[Any]:
    if isinstance(answerer, DocumentAnswerer):
        return answerer.from_documents(questions, **options)
    return answerer(questions, contexts, **options)


def classify(
    request: Request, pair: str | None, column: str | None, pair_column: str | None, top_k: int | None = None,
    threshold: float | None = None,
) -> Any:  # fmt: skip
    """Label each text -> the predictions to print, or None when they were written to a file.

    The fields of a file are those of the stage's data unless `column` and `pair_column` name others. A file of
    predictions has the fields of its input, `predicted_label` and `probability` (`predicted_value` for a regression,
    the list `predicted_labels` where a text may have several), and in .jsonl, or with several labels, all
    `probabilities`.
    """
    classifier = request.open(Classifier)
    if threshold is not None and not classifier.multi_label:
        raise UserError("--threshold: the model gives each text one label or number; leave it out")
    options = stage_options(classifier.restored)
    column = column or (options.text_a if options is not None else "text")
    if request.file is None and pair is None and options is not None and options.text_b is not None:
        raise UserError("bertjax predict classify: the model labels pairs of texts; give --pair, or a --file with both")
    if request.file is not None:
        pair_column = pair_column or (options.text_b if options is not None else None)
    elif pair is not None:
        pair_column = pair_column or "pair"
    fields = [column] if pair_column is None else [column, pair_column]
    records = request.records(fields, "; name it with --column" + (" or --pair-column" if pair_column else ""))
    if pair is not None and pair_column is not None:
        records = ({**one, pair_column: pair} for one in records)

    def predict(chunk: list[Record]) -> Sequence[Record]:
        pairs = None if pair_column is None else [one[pair_column] for one in chunk]
        found = classifier([one[column] for one in chunk], pairs, top_k, threshold)
        if request.output is None:
            return with_ids(chunk, found)
        nested = request.output.suffix == ".jsonl"
        return [_labelled(request, record, one, nested) for record, one in zip(chunk, found, strict=True)]

    return finish(request, classifier, records, predict)


def _labelled(request: Request, record: Record, found: Any, nested: bool) -> Record:
    """A record with its prediction."""
    if "value" in found:
        added: Record = {"predicted_value": found["value"]}
    elif "predicted" in found:
        chances = {str(one["label"]): one["probability"] for one in found["labels"]}
        added = {"predicted_labels": found["predicted"], "probabilities": chances}
    else:
        added = {"predicted_label": found["label"], "probability": found["probability"]}
        if nested:
            added["probabilities"] = {str(one["label"]): one["probability"] for one in found["labels"]}
    if taken := sorted(added.keys() & record.keys()):
        raise UserError(f"{request.file}: has a field '{taken[0]}', which the predictions need; rename it")
    return record | added


def embed(
    request: Request, pooling: Pooling | None, normalize: bool | None, max_tokens: int | None, column: str | None
) -> Any:
    """Vectors of the texts: float32 [N, D] to a .npy file, {"text", "embedding"} to a .jsonl file or to be printed."""
    field = column or "text"
    records = request.records([field], _COLUMN_HINT)
    embedder = request.open(Embedder)

    def vectors(chunk: list[Record]) -> Any:
        return embedder([one[field] for one in chunk], pooling, normalize, max_tokens)

    def predict(chunk: list[Record]) -> Sequence[Record]:
        pairs = zip(chunk, vectors(chunk).tolist(), strict=True)
        return with_ids(chunk, [{"text": one[field], "embedding": values} for one, values in pairs])

    if request.output is not None and request.output.suffix == ".npy":
        began = time.perf_counter()
        found = files.predict_chunks(records, vectors, request.file)
        report(request.output, files.write_vectors(request.output, found), began)
        embedder.print_notes()
        return None
    return finish(request, embedder, records, predict, digits=None)


def generate(
    request: Request, choices: dict[str, Any], num_return_sequences: int | None = None, *, scored: bool = True,
    seed: int = 1, max_input_tokens: int | None = None, column: str | None = None,
) -> list[Record] | None:  # fmt: skip
    """Generate for each text -> records `text`, `generated` and `answers`; None when they were written to a file.

    choices: fields of Decoding that override those of the run. Without `scored`, a single answer has no `answers`.
    """
    field = column or "text"
    records = request.records([field], _COLUMN_HINT)
    generator = request.open(partial(TextGenerator, spell=as_flag))
    first = 0

    def predict(chunk: list[Record]) -> Sequence[Record]:
        nonlocal first
        texts, start = [one[field] for one in chunk], first
        first += len(chunk)
        if not scored and (num_return_sequences or generator.num_return_sequences) == 1:
            plain = generator(texts, choices, seed, max_input_tokens, start)
            return [{"text": text, "generated": new} for text, new in zip(texts, plain, strict=True)]
        found = generator.scored_answers(texts, choices, num_return_sequences, seed, max_input_tokens, start)
        made = [
            {"text": text, "generated": answers[0]["generated"], "answers": answers}
            for text, answers in zip(texts, found, strict=True)
        ]
        return with_ids(chunk, made)

    return finish(request, generator, records, predict)


def with_ids(chunk: Sequence[Record], found: Sequence[Any]) -> Sequence[Record]:
    """Predictions with the `id` of their records."""
    return [{ID: one[ID], **made} if ID in one else made for one, made in zip(chunk, found, strict=True)]


def finish(
    request: Request, predictor: Predictor, records: Iterable[Record],
    predict: Callable[[list[Record]], Sequence[Record]], digits: int | None = 4,
) -> list[Record] | None:  # fmt: skip
    """Write the predictions to the output of the request, else return them, rounded."""
    began = time.perf_counter()
    found = files.predict_chunks(records, predict, request.file)
    made = None
    if request.output is None:
        made = list(found) if digits is None else files.rounded(list(found), digits)
    else:
        report(request.output, files.write_predictions(request.output, found), began)
    predictor.print_notes()
    return made


def report(output: Path, count: int, began: float) -> None:
    seconds = time.perf_counter() - began
    reporter.say(f"{output}: {count:,} predictions in {seconds:.1f} s ({count / seconds:,.3g}/s)")


def label_line(found: Record) -> str:
    """A classification as a line of text: label and probability (a list, or the number), then the text."""
    if "predicted" in found:
        chances = {one["label"]: f" {one['probability']:.4f}" for one in found["labels"]}
        head = ", ".join(f"{label}{chances.get(label, '')}" for label in found["predicted"]) or "(none)"
    else:
        head = f"{found['value']:.4f}" if "value" in found else f"{found['label']}\t{found['probability']:.4f}"
    texts = [" ".join(found[name].split()) for name in ("text", "pair") if name in found]
    return "\t".join([head, *texts])
