"""`bertjax.open` and `Model`: predictions, vectors, parameters and batches of a trained model."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np

from bertjax.api.batches import stage_batches
from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.evaluation.inference.generate import ScoredText
from bertjax.evaluation.inference.token_rows import check_texts
from bertjax.evaluation.predictors import base
from bertjax.evaluation.predictors.documents import N_BEST, TOP_PASSAGES, DocumentAnswerer
from bertjax.evaluation.predictors.generation import TextGenerator
from bertjax.evaluation.predictors.labels import Classifier
from bertjax.evaluation.predictors.masks import MaskFiller
from bertjax.evaluation.predictors.results import (
    Answer,
    Classification,
    FilledText,
    HiddenStates,
    TaggedText,
    TaggedWords,
)
from bertjax.evaluation.predictors.tags import Aggregation, Tagger
from bertjax.evaluation.predictors.vectors import Embedder, LayerReader
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.models.pooling import Pooling
from bertjax.storage.locations import local_path

T = TypeVar("T")
Texts = str | Sequence[str]


class GenerateOptions(TypedDict, total=False):
    """The options of `Model.generate`."""

    beam_size: int | None
    sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    length_penalty: float | None
    beam_rules: Literal["t5x", "transformers"] | None
    early_stopping: bool | Literal["never"] | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    no_repeat_ngram_size: int | None
    repetition_penalty: float | None
    bad_words_ids: Sequence[Sequence[int]] | None
    max_input_tokens: int | None
    seed: int


class Tokenizer(Protocol):
    """What the tokenizers of all kinds have."""

    vocab_size: int
    pieces: list[str]  # by id
    pad_id: int

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""


def open(
    path: str | os.PathLike[str], *, stage: str | None = None, step: int | None = None, best: str | None = None,
    device: Literal["cpu", "gpu", "tpu"] | None = None, dtype: Literal["float32", "bfloat16"] | None = None,
    batch_size: int | None = None, base_model: str | os.PathLike[str] | None = None,
) -> "Model":  # fmt: skip
    """Open a trained model: a run folder, a stage's checkpoint folder, one of its steps, or a Hugging Face folder.

        model = bertjax.open("runs/qa")
        model.answer("What does it return?", "The function returns a new list.")["answer"]

    Args:
        path: where the checkpoint is. A run folder gives the last step of its last stage.
        stage: name of another stage of a run folder.
        step: another step.
        best: instead of a step, the score (`squad/f1`) whose best step is taken.
        device: kind of device. Default: the best one that jax has.
        dtype: of the computation. Default: that of the run; where the run leaves it open, float32 on a CPU and bfloat16
            elsewhere. Parameters are float32.
        batch_size: the most texts computed at once. Default: what suits the device.
        base_model: where the weights below adapters are, if they moved.

    Raises UserError, one line that names the path and what to do.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"path: must be a text or a path (got {path!r})")
    if step is not None:
        step = base.check_count("step", step, least=0)
    if batch_size is not None:
        batch_size = base.check_count("batch_size", batch_size)
    restored = base.restore_for_prediction(
        os.fspath(path), stage=stage, step=step, best=best, device=device, dtype=dtype,
        base_model=None if base_model is None else os.fspath(base_model),
    )  # fmt: skip
    return Model(restored, batch_size)


class Model:
    """A trained model. Its methods take one text and give one result, or take a list and give a list in its order.

    Texts are sorted by length and computed in batches; each shape of a batch is compiled when it first occurs, so the
    first call is slow. A text's result does not depend on the texts beside it. Notes (texts that are cut, a head that
    the stage has not trained) are printed on stderr. Invalid input raises `bertjax.UserError`.

    `fill_mask`, `answer`, `classify`, `tag` and `tag_words` need the head that the checkpoint's stage trained
    (`heads`), `generate` a T5, `embed` and `hidden_states` any model with an encoder.
    """

    def __init__(self, restored: RestoredCheckpoint, batch_size: int | None = None) -> None:
        self.restored = restored
        self.batch_size = None if batch_size is None else base.check_count("batch_size", batch_size)

    def __repr__(self) -> str:
        size = sum(x.size for x in self.params.values())
        family = self.config.model.family
        return f"<bertjax.Model {self.restored.where} ({family}, {size:,} parameters, heads: {', '.join(self.heads)})>"

    # ---- what it is -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration of its run, on this machine's devices."""
        return self.restored.ctx.config

    @property
    def params(self) -> Mapping[str, Any]:
        """{path: jax.Array float32}, e.g. "layers/0/mlp/output/kernel"."""
        return self.restored.params

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the checkpoint: mlm, nsp, qa, classifier, token_classifier, pooler, lm."""
        return self.restored.program.heads

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes by id; None where the training data had no names."""
        return self.restored.labels

    @property
    def stage(self) -> str:
        """Name of the stage that the checkpoint is from."""
        return self.config.stages[self.restored.stage].name

    @property
    def step(self) -> int:
        """The step that the checkpoint is from."""
        return self.restored.step

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: `encode_batch(["a text"])` gives lists of ids without special tokens, `decode(ids)` a text."""
        return cast(Tokenizer, self.restored.ctx.tokenizer)

    @cached_property
    def module(self) -> Any:
        """The flax `nnx.Module` with these parameters; its methods (`encode`, `mlm_logits`, ...) are pure functions.

        A call with ids int [B, S], and `attention_mask` where rows are padded, gives a BERT's hidden states and the
        logits of its heads, or a T5's logits. `nnx.tabulate(module, ids)` lists its layers with shapes and parameters,
        `nnx.split` takes it apart. Layers are called one by one, also where the run scans them.
        """
        program = self.restored.program
        if program.compute.segments:  # flax's table has no rows for layers that a scan calls
            program = replace(program, compute=replace(program.compute, segments=()))
        return program.build_model(self.restored.params)

    # ---- predictions ------------------------------------------------------------------------------------------------

    @overload
    def fill_mask(self, texts: str, top_k: int = 5) -> FilledText: ...  # type: ignore[overload-overlap]
    @overload
    def fill_mask(self, texts: Sequence[str], top_k: int = 5) -> list[FilledText]: ...
    def fill_mask(self, texts: Texts, top_k: int = 5) -> FilledText | list[FilledText]:
        """The `top_k` most likely tokens for each [MASK] of each text, with probabilities over the vocabulary.

        -> {"text", "masks": [[{"token", "probability", "text"}, ...], ...]}: a list for each mask, best first; the
        inner `text` has that mask filled. UserError for a text without [MASK], or longer than the model's positions.
        """
        return _one_or_all(self._mask_filler(_as_list(texts), top_k), texts)

    @overload
    def answer(  # type: ignore[overload-overlap]
        self, questions: str, contexts: str, *, n_best: int | None = None, null_threshold: float | None = None,
        min_probability: float | None = None, min_confidence: float | None = None,
    ) -> Answer: ...  # fmt: skip
    @overload
    def answer(
        self, questions: Texts, contexts: Texts, *, n_best: int | None = None, null_threshold: float | None = None,
        min_probability: float | None = None, min_confidence: float | None = None,
    ) -> list[Answer]: ...  # fmt: skip
    @overload
    def answer(  # type: ignore[overload-overlap]
        self, questions: str, *, documents: str | os.PathLike[str], n_best: int | None = None,
        null_threshold: float | None = None, min_probability: float | None = None, min_confidence: float | None = None,
        top_passages: int = TOP_PASSAGES, text_field: str = "text",
    ) -> Answer: ...  # fmt: skip
    @overload
    def answer(
        self, questions: Sequence[str], *, documents: str | os.PathLike[str], n_best: int | None = None,
        null_threshold: float | None = None, min_probability: float | None = None, min_confidence: float | None = None,
        top_passages: int = TOP_PASSAGES, text_field: str = "text",
    ) -> list[Answer]: ...  # fmt: skip
    def answer(
        self, questions: Texts, contexts: Texts | None = None, *, documents: str | os.PathLike[str] | None = None,
        n_best: int | None = None, null_threshold: float | None = None, min_probability: float | None = None,
        min_confidence: float | None = None, top_passages: int = TOP_PASSAGES, text_field: str = "text",
    ) -> Answer | list[Answer]:  # fmt: skip
        """Answer each question with a span of the context beside it, or of documents; one context serves all questions.

        Contexts may be of any length. -> {"question", "answer", "probability", "candidates": [{"text", "probability"},
        ...]}, the `n_best` candidates (default: 3) best first; probabilities are a softmax over all candidates. A model
        for unanswerable questions, or one given `null_threshold`, adds "no_answer": {"probability", "null_odds",
        "threshold"}. The answer is None, with "reason" instead of "probability", where the null odds exceed the
        threshold (default: the one that was swept by the checkpoint's evaluation, else the configured one), the best
        probability is below `min_probability` or the best confidence below `min_confidence`. A checkpoint that keeps a
        calibration adds "confidence", the calibrated probability that the answer (or "no answer") is right.

        documents: a folder of .txt, .md, .rst and .jsonl files (field `text_field`), or one such file, instead of
        contexts. BM25 selects the `top_passages` that are read for a question; the answer and each candidate (default:
        5) have a "source": {"file", "line" in .jsonl, "start", "end", "passage", "passage_start", "bm25"}. The index is
        kept until the files change or others are named.
        """
        asked = _as_list(questions, "questions")
        if documents is not None:
            if contexts is not None:
                raise UserError("answer: give either contexts or documents")
            if not isinstance(documents, str | os.PathLike):
                raise UserError(f"documents: must be a text or a path (got {documents!r})")
            found = self._answerer.from_documents(
                asked, local_path(os.fspath(documents)), N_BEST if n_best is None else n_best, top_passages,
                null_threshold, min_probability, min_confidence, text_field,
            )  # fmt: skip
            return found[0] if isinstance(questions, str) else found
        if contexts is None:
            raise UserError("answer: give the contexts of the questions, or documents")
        given = _as_list(contexts, "contexts")
        if isinstance(contexts, str):
            given = given * len(asked)
        elif isinstance(questions, str):
            asked = asked * len(given)
        found = self._answerer(
            asked, given, 3 if n_best is None else n_best, null_threshold, min_probability, min_confidence
        )
        return found[0] if isinstance(questions, str) and isinstance(contexts, str) else found

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, texts: str, pairs: str | None = None, *, top_k: int | None = None, threshold: float | None = None
    ) -> Classification: ...
    @overload
    def classify(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, top_k: int | None = None,
        threshold: float | None = None,
    ) -> list[Classification]: ...  # fmt: skip
    def classify(
        self, texts: Texts, pairs: Texts | None = None, *, top_k: int | None = None, threshold: float | None = None
    ) -> Classification | list[Classification]:
        """Label each text, or each text with the one of `pairs` beside it.

        -> {"text", "pair", "label", "probability", "labels": [{"label", "probability"}, ...]}, all labels or the first
        `top_k`, best first, named as in the training data. A regression gives {"text", "pair", "value"}. A model that
        gives a text several labels has "predicted", those with a probability of `threshold` or more (default: that of
        the stage's evaluation, or 0.5), instead of "label" and "probability". Longer texts are cut as in training, with
        a note.
        """
        if pairs is not None and isinstance(texts, str) != isinstance(pairs, str):
            raise UserError("pairs: give a text for a text, or a list for a list")
        predictor = self._classifier
        found = predictor(_as_list(texts), None if pairs is None else _as_list(pairs), top_k, threshold)
        predictor.print_notes()
        return _one_or_all(found, texts)

    @overload
    def tag(self, texts: str, *, aggregation: Aggregation = "first") -> TaggedText: ...  # type: ignore[overload-overlap]
    @overload
    def tag(self, texts: Sequence[str], *, aggregation: Aggregation = "first") -> list[TaggedText]: ...
    def tag(self, texts: Texts, *, aggregation: Aggregation = "first") -> TaggedText | list[TaggedText]:
        """Find the entities of each text, of any length.

        -> {"text", "entities": [{"text", "label", "score", "start", "end"}, ...]}, characters start..end (exclusive).
        aggregation: as `aggregation_strategy` of transformers' pipeline. `first`, `average`, `max`: one label for each
        word; `simple`: pieces are joined; `none`: each piece with its label, its `token` and its `index`.
        """
        predictor = self._tagger
        found = predictor(_as_list(texts), aggregation)
        predictor.print_notes()
        return _one_or_all(found, texts)

    def tag_words(self, sentences: Sequence[Sequence[str]]) -> list[TaggedWords]:
        """Label the words of sentences, each a list of words -> [{"words", "labels", "scores"}, ...]."""
        predictor = self._tagger
        found = predictor.tag_words(sentences)
        predictor.print_notes()
        return found

    @overload
    def generate(self, texts: str, **options: Unpack[GenerateOptions]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, texts: Sequence[str], **options: Unpack[GenerateOptions]) -> list[str]: ...
    def generate(self, texts: Texts, **options: Unpack[GenerateOptions]) -> str | list[str]:
        """Generate a text for each text with a T5, or continue it with a decoder-only model.

        Options default to those of the stage's text-to-text evaluation, else greedy search. `beam_size` above 1:
        beam search with `length_penalty`, by the rules of t5x or of transformers, the latter with `early_stopping`.
        `sample`: draw tokens, by `seed` (default: 1), with `temperature`, from the `top_k` most likely ones or a total
        probability of `top_p`. `max_new_tokens`: default the length of the training targets. `max_input_tokens`: longer
        texts are cut there, with a note. `min_new_tokens`, `no_repeat_ngram_size`, `repetition_penalty` and
        `bad_words_ids` are those of transformers.
        """
        choices, seed, max_input_tokens = _generate_choices(options)
        found = self._generator(_as_list(texts), choices, seed, max_input_tokens)
        self._generator.print_notes()
        return _one_or_all(found, texts)

    @overload
    def generate_answers(  # type: ignore[overload-overlap]
        self, texts: str, num_return_sequences: int | None = None, **options: Unpack[GenerateOptions]
    ) -> list[ScoredText]: ...
    @overload
    def generate_answers(
        self, texts: Sequence[str], num_return_sequences: int | None = None, **options: Unpack[GenerateOptions]
    ) -> list[list[ScoredText]]: ...
    def generate_answers(
        self, texts: Texts, num_return_sequences: int | None = None, **options: Unpack[GenerateOptions]
    ) -> list[ScoredText] | list[list[ScoredText]]:
        """Several answers for each text, {"generated", "score"}: the best beams, best first, or independent samples.

        num_return_sequences: at most `beam_size`, and 1 in greedy search (default: 1, or as an imported folder says).
        `score` is what beam search ranks by, the log probability divided by its length penalty; otherwise the log
        probability by the distributions from which the tokens were taken. The options are those of `generate`.
        """
        choices, seed, max_input_tokens = _generate_choices(options)
        found = self._generator.scored_answers(
            _as_list(texts), choices, num_return_sequences, seed, max_input_tokens
        )  # fmt: skip
        self._generator.print_notes()
        return found[0] if isinstance(texts, str) else found

    def embed(
        self,
        texts: Texts,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        max_tokens: int | None = None,
    ) -> np.ndarray:
        """One vector for each text: N texts -> float32 [N, D]; a single text -> [D].

        pooling: `mean` of the last layer over the tokens of a text, special tokens included, as sentence-transformers
        does it; `cls`: the first token, for BERT. normalize: to length 1. max_tokens: longer texts are cut there, with
        a note. Defaults: as the model was trained, or as its sentence-transformers folder says; else the mean, of
        length 1, and the model's positions.
        """
        predictor = self._embedder
        found = predictor(_as_list(texts), pooling, normalize, max_tokens)
        predictor.print_notes()
        return found[0] if isinstance(texts, str) else found

    def hidden_states(self, texts: Texts, *, max_tokens: int | None = None) -> HiddenStates:
        """The outputs of all layers: `layers`, float32 [N, S, D] each, the embeddings first and the last layer last.

        N texts (1 for a single text) are padded to the S tokens of the longest one; `attention_mask` int32 [N, S] is 0
        on padding, `tokens` has the pieces of each text, special tokens included.
        """
        predictor = self._layer_reader
        found = predictor(_as_list(texts), max_tokens)
        predictor.print_notes()
        return found

    # ---- data -------------------------------------------------------------------------------------------------------

    def batches(
        self, stage: str | None = None, *, evaluation: str | None = None, start: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches that a stage trains on, from step `start` on, or those of one of its evaluations.

        Each is {field: array with an axis of rows in front}, e.g. input_ids int32 [B, S], as the training step gets it.
        stage: default that of the checkpoint. Data are prepared first where they are missing; relative paths start at
        the current folder.
        """
        return stage_batches(self.restored, stage, evaluation, base.check_count("start", start, least=0))

    # ---- predictors, made when first used ---------------------------------------------------------------------------

    @cached_property
    def _mask_filler(self) -> MaskFiller:
        return MaskFiller(self.restored, self.batch_size)

    @cached_property
    def _answerer(self) -> DocumentAnswerer:
        return DocumentAnswerer(self.restored, self.batch_size)

    @cached_property
    def _classifier(self) -> Classifier:
        return Classifier(self.restored, self.batch_size)

    @cached_property
    def _tagger(self) -> Tagger:
        return Tagger(self.restored, self.batch_size)

    @cached_property
    def _generator(self) -> TextGenerator:
        return TextGenerator(self.restored, self.batch_size)

    @cached_property
    def _embedder(self) -> Embedder:
        return Embedder(self.restored, self.batch_size)

    @cached_property
    def _layer_reader(self) -> LayerReader:
        return LayerReader(self.restored, self.batch_size)


def _generate_choices(options: GenerateOptions) -> tuple[dict[str, Any], int, int | None]:
    """-> (fields of Decoding that are set, seed, max_input_tokens). TypeError for an unknown option."""
    if unknown := options.keys() - GenerateOptions.__annotations__:
        raise TypeError(f"generate() got an unexpected keyword argument '{min(unknown)}'")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return given, given.pop("seed", 1), given.pop("max_input_tokens", None)


def _as_list(texts: Texts, name: str = "texts") -> list[str]:
    if isinstance(texts, str):
        return [texts]
    return check_texts(name, texts)


def _one_or_all(found: list[T], texts: Texts) -> Any:
    return found[0] if isinstance(texts, str) else found
