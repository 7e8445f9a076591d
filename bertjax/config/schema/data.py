"""Configuration sections of preprocessing, tasks, mixtures and tokenizers, and their tables of kinds."""

import math
from operator import not_
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, Union

from pydantic import Discriminator, Field, Tag, model_validator

from bertjax.config.limits import MAX_SIZE
from bertjax.config.schema.base import (
    AnyPath,
    FiniteFloat,
    KindOf,
    Limit,
    NonNegative,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Size,
    VocabSize,
)
from bertjax.config.schema.sources import Sources

Density = Annotated[float, Field(gt=0, lt=1, description="Fraction of the tokens that are hidden.")]
Fraction = Annotated[float, Field(ge=0, le=1)]
InputLength = Annotated[int, Field(ge=8, le=MAX_SIZE, description="Tokens per row of the encoder, end token included.")]
Pack = Annotated[bool, Field(description="Put several examples into one row; attention does not cross examples.")]
ExtraIds = Annotated[int, Field(ge=0, le=MAX_SIZE)]
MaxSegments = Annotated[Size, Field(description="Most examples in a packed row.")]


Prefix = Annotated[
    str,
    Field(
        exclude_if=not_,
        description="Text before the inputs of each row, such as UL2's mode tokens `[NLU]`, `[S2S]` and `[NLG]`. It "
        "counts in `sequence_length`.",
    ),
]


class BertPairs(Section):
    """Sentence pairs for MLM and NSP, as made by create_pretraining_data.py of google-research/bert."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.bert_pairs:BERT_PAIRS"
    kind: Literal["bert_pairs"] = "bert_pairs"
    sequence_length: int = Field(128, ge=8, le=MAX_SIZE, description="Tokens per row.")
    short_seq_prob: Probability = Field(0.1, description="Probability of a pair that is made shorter at random.")
    dupe_factor: Positive = Field(1, description="Passes over the documents, each with new pairs and static masks.")
    next_sentence: bool = Field(True, description="Make pairs for NSP; false: fill rows with consecutive sentences.")
    masking: Literal["dynamic", "static"] = Field("dynamic", description="Mask as batches are read, or in preparation.")
    masked_lm_prob: Density = 0.15
    max_predictions_per_seq: Size = Field(20, description="Most masked tokens of an example.")
    mask_token_prob: Fraction = Field(
        0.8,
        exclude_if=lambda fraction: fraction == 0.8,
        description="Fraction of the masked tokens that [MASK] replaces (ELECTRA: 0.85).",
    )
    random_token_prob: Fraction = Field(
        0.1,
        exclude_if=lambda fraction: fraction == 0.1,
        description="Fraction of the masked tokens that a random token replaces (ELECTRA: 0); the rest is kept.",
    )
    whole_word_mask: bool = Field(False, description="Mask all pieces of a word together.")
    pack: Pack = False
    max_segments: MaxSegments = 8

    @model_validator(mode="after")
    def _check(self) -> "BertPairs":
        if self.mask_token_prob + self.random_token_prob > 1 + 1e-9:
            raise ValueError(
                f"mask_token_prob ({self.mask_token_prob}) and random_token_prob ({self.random_token_prob}) must add "
                "up to at most 1"
            )
        return self


class TextRows(Section):
    """Rows of consecutive sentences for language models and word vectors: those of `bert_pairs`, never masked."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.bert_pairs:TEXT_ROWS"
    kind: Literal["text_rows"] = "text_rows"
    sequence_length: int = Field(128, ge=8, le=MAX_SIZE, description="Tokens per row.")
    short_seq_prob: Probability = Field(0.1, description="Probability of a document with rows of a random length.")
    pack: Pack = False
    max_segments: MaxSegments = 8


class SpanQa(Section):
    """Windows over a document for extractive question answering."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.span_qa:SPAN_QA"
    kind: Literal["span_qa"] = "span_qa"
    profile: Literal["hf", "bert"] = Field(
        "hf", description="`hf`: answers are character spans, by offsets; `bert`: words and rules of run_squad.py."
    )
    sequence_length: int = Field(384, ge=16, le=MAX_SIZE, description="Tokens per window, question included.")
    doc_stride: Size = Field(128, description="Tokens between windows, by `doc_stride_mode`.")
    doc_stride_mode: Literal["step", "overlap"] = Field(
        "step", description="`doc_stride` is the step between windows (run_squad.py) or their overlap (transformers)."
    )
    max_query_length: Size = Field(64, description="Longest question in tokens; longer ones are truncated.")
    pack: Pack = False
    max_segments: MaxSegments = 8


class Classify(Section):
    """A text or a pair of texts with one label."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.classify:CLASSIFY"
    kind: Literal["classify"] = "classify"
    sequence_length: int = Field(128, ge=8, le=MAX_SIZE, description="Tokens per row; longer texts are truncated.")
    text_a: str = Field("text", description="Field of a record that holds the first text.")
    text_b: str | None = Field(None, description="Field that holds the second text. Default: no second text.")
    label: str = Field("label", description="Field that holds the label.")
    labels: Annotated[list[str], Field(min_length=2)] | None = Field(
        None, description="Names of the labels 0, 1, ... Default: from the data."
    )
    label_delimiter: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        exclude_if=lambda text: text is None,
        description="Text between the labels in the field `label`, for several labels per text in a CSV file: `|`. "
        "Default: the field holds a list.",
    )
    label_columns: Annotated[list[str], Field(min_length=2)] | None = Field(
        None,
        exclude_if=lambda names: names is None,
        description="Fields that hold 1 or 0 for each label, for several labels per text; their names are the labels'.",
    )

    @model_validator(mode="after")
    def _check(self) -> "Classify":
        if self.label_columns is not None and (self.label_delimiter is not None or self.labels is not None):
            other = "labels" if self.labels is not None else "label_delimiter"
            raise ValueError(f"give either label_columns or {other}: the names of the columns are the labels'")
        names = [name.strip().casefold() for name in self.labels or self.label_columns or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            option = "labels" if self.labels else "label_columns"
            raise ValueError(f"{option}: two of them are '{twice[0]}'; upper and lower case are the same")
        return self


class TokenLabels(Section):
    """Words with a label each: named entities, parts of speech, chunks."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.token_labels.rows:TOKEN_LABELS"
    kind: Literal["token_labels"] = "token_labels"
    sequence_length: int = Field(
        128, ge=8, le=MAX_SIZE, description="Tokens per row; longer sentences are split into windows."
    )
    stride: NonNegative | None = Field(
        None, description="Tokens that neighboring windows share. Default: a quarter of `sequence_length`."
    )
    tokens: str = Field("tokens", description="Field of a record that holds the list of words.")
    tags: str = Field("ner_tags", description="Field that holds the list of labels: names, or ids.")
    text: str | None = Field(None, description="Field that holds a text, instead of `tokens` and `tags`.")
    spans: str = Field("spans", description="Field with the entities of `text`: a list of {start, end, label}.")
    labels: Annotated[list[str], Field(min_length=2)] | None = Field(
        None, description="Names of the labels 0, 1, ... Default: from the data."
    )
    label_all_tokens: bool = Field(False, description="Train on all pieces of a word. Default: on its first piece.")
    pack: Pack = False
    max_segments: MaxSegments = 8

    @model_validator(mode="after")
    def _check(self) -> "TokenLabels":
        names = [name.strip() for name in self.labels or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"labels: two of them are '{twice[0]}'")
        most = self.sequence_length - 3  # [CLS], [SEP] and a token that is new
        if self.stride is not None and self.stride > most:
            raise ValueError(f"stride ({self.stride}) must be at most sequence_length - 3 ({most})")
        return self

    @property
    def overlap(self) -> int:
        """`stride`, or its default."""
        return self.sequence_length // 4 if self.stride is None else self.stride


class TextPairs(Section):
    """Two texts that belong together, each encoded alone, for sentence embeddings; with a negative text or a score."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.text_pairs.rows:TEXT_PAIRS"
    kind: Literal["text_pairs"] = "text_pairs"
    sequence_length: int = Field(128, ge=8, le=MAX_SIZE, description="Tokens of each text; longer texts are truncated.")
    text_a: str = Field("anchor", description="Field of a record that holds the first text, such as a question.")
    text_b: str = Field("positive", description="Field that holds the text that belongs to it, such as its answer.")
    negative: str | None = Field(None, description="Field that holds a text that does not belong to `text_a`.")
    score: str | None = Field(None, description="Field that holds the similarity of the two texts, a number.")
    score_range: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="Lowest and highest `score`, which become 0 and 1: `[0, 5]`. Default: scores are from -1 to 1.",
    )

    @model_validator(mode="after")
    def _check(self) -> "TextPairs":
        if self.score_range is not None and self.score is None:
            raise ValueError("score_range needs score, the field that holds the number")
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError("score_range: the first number must be below the second")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the texts, in the order of a row: T = 2 or 3 of them."""
        return (self.text_a, self.text_b, *([self.negative] if self.negative is not None else []))


class SpanCorruption(Section):
    """T5's denoising: sentinels replace spans of the inputs, and the targets are the hidden spans (span_corruption)."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.denoising.kinds:SPAN_CORRUPTION"
    kind: Literal["span_corruption"] = "span_corruption"
    sequence_length: InputLength = 512
    target_length: Size | None = Field(None, description="Tokens per target row. Default: as needed (114 for 512).")
    noise_density: Density = 0.15
    mean_noise_span_length: float = Field(3.0, ge=1, description="Mean length of a hidden span, in tokens.")
    random_roll: bool = Field(False, description="Rotate the mask: a row's start is hidden as often as its end.")
    prefix: Prefix = ""


class IidDenoising(Section):
    """Denoising of independently chosen tokens (arXiv 1910.10683, section 3.3)."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.denoising.kinds:IID_DENOISING"
    kind: Literal["iid_denoising"] = "iid_denoising"
    sequence_length: InputLength = 512
    target_length: Size | None = Field(None, description="Tokens per row of targets. Default: as needed.")
    noise_density: Density = 0.15
    style: Literal["bert", "mass", "replace_spans", "drop"] = Field(
        "bert",
        description="`bert`: hidden tokens become a mask or random token, the targets are all tokens; `mass`: always "
        "a mask token; `replace_spans`: sentinels replace runs of hidden tokens, the targets are the hidden tokens; "
        "`drop`: hidden tokens are removed and are the targets.",
    )
    random_token_prob: Probability = Field(0.1, description="Fraction of hidden tokens that become random (`bert`).")
    prefix: Prefix = ""


class Deshuffling(Section):
    """Inputs are the tokens of the text in random order, targets the text (arXiv 1910.10683, section 3.3.1)."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.denoising.kinds:DESHUFFLING"
    kind: Literal["deshuffling"] = "deshuffling"
    sequence_length: InputLength = 512
    target_length: Size | None = Field(None, description="Tokens per row of targets. Default: `sequence_length`.")
    prefix: Prefix = ""


class PrefixLm(Section):
    """Inputs are the text up to a random position, targets the rest (prefix_lm of T5)."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.denoising.kinds:PREFIX_LM"
    kind: Literal["prefix_lm"] = "prefix_lm"
    sequence_length: InputLength = 512
    target_length: Size | None = Field(None, description="Tokens per row of targets. Default: `sequence_length`.")
    noise_density: float = Field(0.5, gt=0, le=0.5, description="Mean fraction of the tokens that are targets.")
    prefix: Prefix = ""


class CausalLm(Section):
    """The targets are the full text, without inputs (full_lm of T5); for decoder-only models."""

    architecture: ClassVar[str] = "decoder_only"  # of the model that trains on it

    implementation: ClassVar[str] = "bertjax.data.preprocess.denoising.kinds:CAUSAL_LM"
    kind: Literal["causal_lm"] = "causal_lm"
    sequence_length: int = Field(512, ge=8, le=MAX_SIZE, description="Tokens per row, end token included.")


Prompt: TypeAlias = Literal[
    "glue_cola", "glue_sst2", "glue_mrpc", "glue_qqp", "glue_stsb", "glue_mnli", "glue_qnli", "glue_rte", "glue_wnli",
    "glue_ax", "super_glue_boolq", "super_glue_cb", "super_glue_copa", "super_glue_multirc", "super_glue_record",
    "super_glue_rte", "super_glue_wic", "super_glue_wsc", "super_glue_axb", "super_glue_axg", "squad",
    "squad_closed_book", "trivia_qa_closed_book", "translate", "summarize", "definite_pronoun_resolution",
]  # fmt: skip


class TextToText(Section):
    """Inputs and targets as text: a prompt of the T5 paper, or templates over the fields of the records."""

    implementation: ClassVar[str] = "bertjax.data.preprocess.text_to_text:TEXT_TO_TEXT"
    kind: Literal["text_to_text"] = "text_to_text"
    sequence_length: InputLength = 512
    target_length: int = Field(114, ge=2, le=MAX_SIZE, description="Tokens per row of targets, end token included.")
    prompt: Prompt | None = Field(None, description="Prompt of the T5 paper; instead of `inputs` and `targets`.")
    fields: dict[str, str] = Field({}, description="Field of the prompt -> field of the records, where names differ.")
    languages: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Source and target language of `prompt: translate`, such as `[English, German]`."
    )
    inputs: str | None = Field(None, description="Template such as `question: {question} context: {context}`.")
    targets: str | None = Field(None, description="Template such as `{answer}`.")
    labels: dict[str, str] | list[str] | None = Field(None, description="Text of each label, by its value or number.")
    pack: Pack = False
    max_segments: MaxSegments = 8

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
    "token_labels": TokenLabels,
    "text_pairs": TextPairs,
    "text_rows": TextRows,
    "span_corruption": SpanCorruption,
    "iid_denoising": IidDenoising,
    "deshuffling": Deshuffling,
    "prefix_lm": PrefixLm,
    "causal_lm": CausalLm,
    "text_to_text": TextToText,
}
Preprocess = Annotated[Any, KindOf("kind", "bert_pairs", PREPROCESS)]


class Task(Section):
    """Sources and the preprocessing that makes examples of them."""

    source: Sources = Field(description="A source, or a list of sources.")
    preprocess: Preprocess = Field(BertPairs(), description="Preprocessing of the sources.")
    limit: Limit | None = Field(None, description="Lines, rows, questions or documents to sample. Default: all.")


class Mixture(Section):
    """Tasks and their sampling rates, by the rules of T5 (arXiv 1910.10683, section 3.5.2).

    A mixture inside another one needs an explicit rate there, which its tasks share by its own rates.
    """

    mixture: list[str] | dict[str, PositiveFloat] = Field(
        min_length=1, description="Tasks or mixtures, or the rate of each."
    )
    rate: Literal["proportional", "equal", "explicit"] = Field(
        "proportional", description="`proportional`: to the number of examples, after `limit` and `temperature`."
    )
    limit: Limit | None = Field(None, description="K: data set sizes above it count as K. Default: no limit.")
    temperature: PositiveFloat = Field(1.0, description="T: rates are raised to the power 1/T.")

    @model_validator(mode="after")
    def _check(self) -> "Mixture":
        if (self.rate == "explicit") != isinstance(self.mixture, dict):
            raise ValueError("explicit rates are written as 'mixture: {task: rate}' with 'rate: explicit'")
        if twice := [name for i, name in enumerate(self.mixture) if name in [*self.mixture][:i]]:
            raise ValueError(f"mixture names {twice[0]!a:.80} twice; name it once, and its share in 'rate: explicit'")
        if self.rate != "proportional" and (self.limit is not None or self.temperature != 1.0):
            raise ValueError(f"limit and temperature change proportional rates; with 'rate: {self.rate}' give neither")
        return self


def _data_tag(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return "mixture" if "mixture" in keys else "task"


Data = Annotated[
    Union[Annotated[str, Tag("name")], Annotated[Mixture, Tag("mixture")], Annotated[Task, Tag("task")]],  # noqa: UP007
    Discriminator(_data_tag),
]


TokenizerPath = Annotated[
    AnyPath | None, Field(description="Tokenizer file, or any model as for `pretrained`; null: train one.")
]
TrainedSize = Annotated[VocabSize | None, Field(description="Ids of a trained tokenizer. Default: `model.vocab_size`.")]
TrainOn = Annotated[Sources | None, Field(description="Sources to train it on. Default: those of the first stage.")]


class WordPieceConfig(Section):
    """WordPiece, or any tokenizer with [CLS] and [SEP] in a vocab.txt, a tokenizer.json or a Hugging Face folder."""

    kind: Literal["wordpiece"] = "wordpiece"
    path: TokenizerPath = None
    lowercase: bool = Field(True, description="Lowercase the text, unless `path` decides.")
    strip_accents: bool | None = Field(None, description="Remove accents, unless `path` decides. Default: `lowercase`.")
    tokenize_chinese_chars: bool = Field(True, description="Split CJK text into characters, unless `path` decides.")
    vocab_size: TrainedSize = None
    min_frequency: Positive = Field(2, description="Least frequency of a piece in training.")
    train_on: TrainOn = None
    extra_ids: ExtraIds = Field(
        0,
        exclude_if=not_,
        description="For a `t5` model that reads WordPiece: sentinels after the pieces; `[PAD]` must be id 0, `[SEP]` "
        "ends a text.",
    )


class BpeConfig(Section):
    """Byte-level BPE with RoBERTa's special tokens and rows, for any encoder; or a tokenizer as for `wordpiece`."""

    stands_for: ClassVar[str] = "wordpiece"  # in the `tokenizer` of a model family

    kind: Literal["bpe"] = "bpe"
    path: TokenizerPath = None
    vocab_size: TrainedSize = None
    min_frequency: Positive = Field(2, description="Least frequency of a merged pair in training.")
    train_on: TrainOn = None


class SentencePieceConfig(Section):
    """SentencePiece unigram with T5's sentinels: a spiece.model, tokenizer.json or folder, or a trained one."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    path: TokenizerPath = None
    extra_ids: ExtraIds = Field(100, description="Sentinels after the pieces; `<extra_id_0>` has the highest id.")
    vocab_size: TrainedSize = None
    character_coverage: float = Field(0.9995, gt=0, le=1, description="Fraction of the characters that have a piece.")
    train_on: TrainOn = None


class BytesConfig(Section):
    """ByT5's bytes of UTF-8, for a `t5` model: 3 special ids, 256 bytes and `extra_ids`; no file is needed."""

    stands_for: ClassVar[str] = "sentencepiece"
    train_on: ClassVar[None] = None  # it is not trained
    vocab_size: ClassVar[None] = None

    kind: Literal["bytes"] = "bytes"
    path: Annotated[
        AnyPath | None, Field(description="ByT5 folder, run or model that says `extra_ids`. Default: none is read.")
    ] = None
    extra_ids: ExtraIds = Field(
        125, description="Ids after the bytes, and sentinels, which are the last bytes: number N is id 258 - N."
    )


TOKENIZERS: dict[str, type[Section]] = {
    "wordpiece": WordPieceConfig,
    "bpe": BpeConfig,
    "sentencepiece": SentencePieceConfig,
    "bytes": BytesConfig,
}
Tokenizer = Annotated[Any, KindOf("kind", "wordpiece", TOKENIZERS)]


def max_predictions(pairs: BertPairs) -> int:
    """Most masked positions of a row (K of `masked_positions [B, K]`).

    Each example in a packed row masks round(length * masked_lm_prob) tokens, at least one, and the lengths add up to at
    most `sequence_length`.
    """
    if not pairs.pack:
        return pairs.max_predictions_per_seq
    share = math.ceil(pairs.sequence_length * pairs.masked_lm_prob) + pairs.max_segments
    return min(share, pairs.max_segments * pairs.max_predictions_per_seq)
