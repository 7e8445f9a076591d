"""The part of the schema that says what is read: sources, preprocessing, tasks, mixtures and the tokenizer."""

import math
from typing import Annotated, Any, Literal, TypeAlias, Union

from pydantic import Discriminator, Field, Tag, model_validator

from bertjax.config.schema.base import AnyPath, KindOf, NonNegative, Positive, Probability, Section
from bertjax.config.schema.sources import Sources


class BertPairs(Section):
    """Sentence pairs for MLM and NSP, as create_pretraining_data.py of google-research/bert makes them."""

    kind: Literal["bert_pairs"] = "bert_pairs"
    sequence_length: Annotated[int, Field(ge=8)] = 128
    short_seq_prob: Probability = 0.1
    dupe_factor: Positive = 1  # passes over the documents, each with new pairs (and new masks when masking is static)
    next_sentence: bool = True  # False: no NSP; segments are filled with consecutive sentences only
    masking: Literal["dynamic", "static"] = "dynamic"
    masked_lm_prob: Annotated[float, Field(gt=0, lt=1)] = 0.15
    max_predictions_per_seq: Positive = 20
    whole_word_mask: bool = False
    pack: bool = False
    max_segments: Positive = 8  # examples a packed row may hold


class SpanQa(Section):
    """Windows over a document for extractive question answering."""

    kind: Literal["span_qa"] = "span_qa"
    # hf: answers are characters of the context, by the tokenizer's offsets; every candidate is in the context.
    # bert: run_squad.py's words, text alignment and n-best rules.
    profile: Literal["hf", "bert"] = "hf"
    sequence_length: Annotated[int, Field(ge=16)] = 384
    doc_stride: Positive = 128
    doc_stride_mode: Literal["step", "overlap"] = (
        "step"  # step: between window starts (run_squad); overlap: transformers
    )
    max_query_length: Positive = 64
    pack: bool = False
    max_segments: Positive = 8


class Classify(Section):
    """One label for a text or a pair of texts."""

    kind: Literal["classify"] = "classify"
    sequence_length: Annotated[int, Field(ge=8)] = 128
    text_a: str = "text"
    text_b: str | None = None
    label: str = "label"
    labels: Annotated[list[str], Field(min_length=2)] | None = None  # what the source's ids 0, 1, ... are called

    @model_validator(mode="after")
    def _check(self) -> "Classify":
        names = [name.strip().casefold() for name in self.labels or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"labels: two of them are '{twice[0]}'; upper and lower case are the same")
        return self


class SpanCorruption(Section):
    """T5's denoising: spans of text give way to sentinels, and the targets are what they hide (span_corruption of t5).

    `sequence_length` and `target_length` are those of the encoder's inputs and the decoder's targets, end included.
    """

    kind: Literal["span_corruption"] = "span_corruption"
    sequence_length: Annotated[int, Field(ge=8)] = 512
    target_length: Positive | None = None  # default: what the density needs, 114 at 512
    noise_density: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean_noise_span_length: Annotated[float, Field(ge=1)] = 3.0
    random_roll: bool = False  # rotate the mask, so that a row's start is masked as often as its end


class IidDenoising(Section):
    """Tokens hidden one by one; the other denoising objectives of arXiv 1910.10683 section 3.3."""

    kind: Literal["iid_denoising"] = "iid_denoising"
    sequence_length: Annotated[int, Field(ge=8)] = 512
    target_length: Positive | None = None
    noise_density: Annotated[float, Field(gt=0, lt=1)] = 0.15
    # bert: a mask token or a random one, the target is the whole text; mass: a mask token, the whole text;
    # replace_spans: runs of hidden tokens become sentinels; drop: hidden tokens are left out, the target is only they
    style: Literal["bert", "mass", "replace_spans", "drop"] = "bert"
    random_token_prob: Probability = 0.1  # of bert: the share of hidden tokens that become random ones


class Deshuffling(Section):
    """The inputs are the text's tokens in random order, the targets the text (arXiv 1910.10683 section 3.3.1)."""

    kind: Literal["deshuffling"] = "deshuffling"
    sequence_length: Annotated[int, Field(ge=8)] = 512
    target_length: Positive | None = None  # default: sequence_length


class PrefixLm(Section):
    """A text cut in two at random: the first part is the inputs, the second the targets (prefix_lm of t5)."""

    kind: Literal["prefix_lm"] = "prefix_lm"
    sequence_length: Annotated[int, Field(ge=8)] = 512
    target_length: Positive | None = None  # default: sequence_length
    noise_density: Annotated[float, Field(gt=0, le=0.5)] = 0.5  # above 0.5 the reference has no rule


class CausalLm(Section):
    """Every token of the text is a target and nothing is an input (full_lm of t5); for a decoder alone."""

    kind: Literal["causal_lm"] = "causal_lm"
    sequence_length: Annotated[int, Field(ge=8)] = 512


Prompt: TypeAlias = Literal[
    "glue_cola", "glue_sst2", "glue_mrpc", "glue_qqp", "glue_stsb", "glue_mnli", "glue_qnli", "glue_rte", "glue_wnli",
    "glue_ax", "super_glue_boolq", "super_glue_cb", "super_glue_copa", "super_glue_multirc", "super_glue_record",
    "super_glue_rte", "super_glue_wic", "super_glue_wsc", "super_glue_axb", "super_glue_axg", "squad",
    "squad_closed_book", "trivia_qa_closed_book", "translate", "summarize", "definite_pronoun_resolution",
]  # fmt: skip


class TextToText(Section):
    """Inputs and targets as text: a prompt of the T5 paper, or templates over the source's fields."""

    kind: Literal["text_to_text"] = "text_to_text"
    sequence_length: Annotated[int, Field(ge=8)] = 512
    target_length: Annotated[int, Field(ge=2)] = 114
    prompt: Prompt | None = None
    fields: dict[str, str] = {}  # the prompt's field -> the source's, where they differ
    languages: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None  # of translate: [English, German]
    inputs: str | None = None  # "question: {question} context: {context}"
    targets: str | None = None  # "{answer}"
    labels: dict[str, str] | list[str] | None = None  # what a label stands for, by its value or its number
    pack: bool = False
    max_segments: Positive = 8

    @model_validator(mode="after")
    def _check(self) -> "TextToText":
        if (self.prompt is None) == (self.inputs is None or self.targets is None):
            raise ValueError("give either a prompt, or inputs and targets")
        if self.prompt is not None and (self.inputs is not None or self.targets is not None):
            raise ValueError("a prompt brings its own inputs and targets")
        if (self.prompt == "translate") != (self.languages is not None):
            raise ValueError("prompt: translate and languages: [English, German] go together")
        return self


PREPROCESS: dict[str, type[Section]] = {
    "bert_pairs": BertPairs,
    "span_qa": SpanQa,
    "classify": Classify,
    "span_corruption": SpanCorruption,
    "iid_denoising": IidDenoising,
    "deshuffling": Deshuffling,
    "prefix_lm": PrefixLm,
    "causal_lm": CausalLm,
    "text_to_text": TextToText,
}
Preprocess = Annotated[Any, KindOf("kind", "bert_pairs", PREPROCESS)]


class Task(Section):
    """One or more sources and the preprocessing that turns them into examples."""

    source: Sources
    preprocess: Preprocess = BertPairs()
    # Use a sample, by run.seed, of so many of the source's records: lines of JSON or TSV, rows, questions, documents.
    limit: Positive | None = None


class Mixture(Section):
    """Tasks and the rates their examples are drawn at; T5's rules (arXiv 1910.10683 section 3.5.2).

    A mixture inside another has a rate of its own there, a number, which its tasks share by its rates.
    """

    mixture: list[str] | dict[str, float] = Field(min_length=1)  # tasks or mixtures, or these with explicit rates
    rate: Literal["proportional", "equal", "explicit"] = "proportional"
    limit: Positive | None = None  # K: the artificial data set size limit
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> "Mixture":
        if (self.rate == "explicit") != isinstance(self.mixture, dict):
            raise ValueError("explicit rates are written as 'mixture: {task: rate}' with 'rate: explicit'")
        if isinstance(self.mixture, dict) and any(not r > 0 for r in self.mixture.values()):
            raise ValueError("every explicit rate must be above zero")
        if self.rate != "proportional" and (self.limit is not None or self.temperature != 1.0):
            raise ValueError(f"limit and temperature change proportional rates; with 'rate: {self.rate}' give neither")
        return self


def _data_tag(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    keys = value if isinstance(value, dict) else type(value).model_fields
    return "mixture" if "mixture" in keys else "task"


Data = Annotated[
    Union[Annotated[str, Tag("name")], Annotated[Mixture, Tag("mixture")], Annotated[Task, Tag("task")]],  # noqa: UP007
    Discriminator(_data_tag),
]


class WordPieceConfig(Section):
    """WordPiece, trained on `train_on`; or any tokenizer with [CLS] and [SEP], from `path`: a vocab.txt, a
    tokenizer.json or a Hugging Face folder, which is read as transformers reads it.
    """

    kind: Literal["wordpiece"] = "wordpiece"
    path: AnyPath | None = None
    lowercase: bool = True  # this and the next two hold where `path` says nothing of them
    strip_accents: bool | None = None  # null: BERT's rule, as `lowercase`; false keeps accents in uncased text
    tokenize_chinese_chars: bool = True  # every CJK character is a word
    vocab_size: Positive | None = None  # when trained; default: model.vocab_size
    min_frequency: Positive = 2
    train_on: Sources | None = None  # default: the text of the first stage


class SentencePieceConfig(Section):
    """SentencePiece unigram, T5's sentinels: loaded from `path` (spiece.model, tokenizer.json, folder) or trained."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    path: AnyPath | None = None
    extra_ids: NonNegative = 100  # sentinels behind the pieces; <extra_id_0> is the last id
    vocab_size: Positive | None = None  # when trained, sentinels included; default: model.vocab_size
    character_coverage: Annotated[float, Field(gt=0, le=1)] = 0.9995
    train_on: Sources | None = None  # default: the text of the first stage


TOKENIZERS: dict[str, type[Section]] = {
    "wordpiece": WordPieceConfig,
    "sentencepiece": SentencePieceConfig,
}
Tokenizer = Annotated[Any, KindOf("kind", "wordpiece", TOKENIZERS)]


def max_predictions(pairs: BertPairs) -> int:
    """Masked positions a row can hold (K of `masked_positions [B, K]`).

    An unpacked row holds `max_predictions_per_seq`. A packed row can hold more than one example's share: each example
    masks round(length * masked_lm_prob), at least one, and the lengths add up to at most `sequence_length`.
    """
    if not pairs.pack:
        return pairs.max_predictions_per_seq
    share = math.ceil(pairs.sequence_length * pairs.masked_lm_prob) + pairs.max_segments
    return min(share, pairs.max_segments * pairs.max_predictions_per_seq)
