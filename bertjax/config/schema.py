"""The configuration schema: every option, and the only home of every default.

A configuration is `model`, `tokenizer`, `mesh`, `run`, a registry of `tasks` and a list of `stages`. All sections are
frozen and refuse unknown keys. Nothing here imports jax.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def tagged(tag: str, default: str, **members: type[BaseModel]) -> Any:
    """A union told apart by the key `tag`; a section that leaves the key out is of the `default` kind."""

    def which(value: Any) -> str | None:
        found = value.get(tag, default) if isinstance(value, dict) else getattr(value, tag, None)
        return found if found in members else None

    names = ", ".join(members)
    kind = Discriminator(
        which, custom_error_type="unknown_kind", custom_error_message=f"'{tag}' must be one of: {names}"
    )
    return Annotated[Union[tuple(Annotated[cls, Tag(name)] for name, cls in members.items())], kind]  # noqa: UP007


# ---- model ----------------------------------------------------------------------------------------------------------


class ModelConfig(Section):
    """An encoder. Fields as in Hugging Face BertConfig; `distilbert` has no segment embeddings and no pooler."""

    family: Literal["bert", "distilbert"] = "bert"
    config_from: str | None = None  # a Hugging Face folder or a bertjax checkpoint whose sizes fill the fields below
    vocab_size: Positive = 30522
    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    max_position_embeddings: Positive = 512
    type_vocab_size: NonNegative = 2
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"  # gelu: erf form; gelu_new: the reference's tanh form
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    position_init: Literal["normal", "sinusoidal"] = "normal"  # where learnt positions start; DistilBERT's sinusoidal

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})"
            )
        if self.family == "distilbert" and self.type_vocab_size != 0:
            raise ValueError("a distilbert model has no segment embeddings: set type_vocab_size to 0")
        return self


# ---- text, tasks and mixtures ---------------------------------------------------------------------------------------


class TextFiles(Section):
    """Plain text. `sentences`: one sentence a line, blank lines between documents; `documents`: one a file."""

    kind: Literal["text"] = "text"
    files: list[str] = Field(min_length=1)  # paths or globs; .gz, .xz and .bz2 are read as they are
    layout: Literal["sentences", "documents"] = "documents"


class JsonLines(Section):
    kind: Literal["jsonl"] = "jsonl"
    files: list[str] = Field(min_length=1)
    text_field: str = "text"


class Parquet(Section):
    kind: Literal["parquet"] = "parquet"
    files: list[str] = Field(min_length=1)
    text_field: str = "text"


class HuggingFaceData(Section):
    """A folder made by `Dataset.save_to_disk`, a local dataset folder, or a name on the Hugging Face Hub."""

    kind: Literal["huggingface"] = "huggingface"
    name: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"


class TfdsData(Section):
    """A TensorFlow Datasets builder prepared as array_record; read through `tfds.data_source`, without TensorFlow."""

    kind: Literal["tfds"] = "tfds"
    name: str
    split: str = "train"
    data_dir: str | None = None
    text_field: str = "text"


class StdlibDocs(Section):
    """The documentation inside the Python standard library; one document a module, split by a hash of its name."""

    kind: Literal["stdlib_docs"] = "stdlib_docs"
    split: Literal["train", "heldout", "all"] = "train"


class SquadFiles(Section):
    """The official SQuAD JSON (v1.1 or v2.0), plain or compressed."""

    kind: Literal["squad"] = "squad"
    files: list[str] = Field(min_length=1)


class StdlibQa(Section):
    """SQuAD-form questions made from the standard library's documentation; splits share no module."""

    kind: Literal["stdlib_qa"] = "stdlib_qa"
    split: Literal["train", "heldout"] = "train"


if TYPE_CHECKING:
    Source: TypeAlias = Any
else:
    Source = tagged(
        "kind", "text", text=TextFiles, jsonl=JsonLines, parquet=Parquet, huggingface=HuggingFaceData, tfds=TfdsData,
        stdlib_docs=StdlibDocs, squad=SquadFiles, stdlib_qa=StdlibQa,
    )  # fmt: skip

Sources = Annotated[list[Source], BeforeValidator(lambda v: v if isinstance(v, list) else [v]), Field(min_length=1)]


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
    """Windows over a document for extractive question answering, as run_squad.py makes them."""

    kind: Literal["span_qa"] = "span_qa"
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


if TYPE_CHECKING:
    Preprocess: TypeAlias = Any
else:
    Preprocess = tagged("kind", "bert_pairs", bert_pairs=BertPairs, span_qa=SpanQa, classify=Classify)


class Task(Section):
    """One or more sources and the preprocessing that turns them into examples."""

    source: Sources
    preprocess: Preprocess = BertPairs()
    limit: Positive | None = None  # use only the first examples


class Mixture(Section):
    """Tasks and the rates they are drawn at; T5's rules (arXiv 1910.10683 section 3.5.2)."""

    mixture: list[str] | dict[str, float] = Field(min_length=1)  # names, or names with explicit rates
    rate: Literal["proportional", "equal", "explicit"] = "proportional"
    limit: Positive | None = None  # K: the artificial data set size limit
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> "Mixture":
        if (self.rate == "explicit") != isinstance(self.mixture, dict):
            raise ValueError("explicit rates are written as 'mixture: {task: rate}' with 'rate: explicit'")
        if isinstance(self.mixture, dict) and any(not r > 0 for r in self.mixture.values()):
            raise ValueError("every explicit rate must be above zero")
        return self


def _which_data(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    keys = value if isinstance(value, dict) else type(value).model_fields
    return "mixture" if "mixture" in keys else "task"


Data = Annotated[
    Union[Annotated[str, Tag("name")], Annotated[Mixture, Tag("mixture")], Annotated[Task, Tag("task")]],  # noqa: UP007
    Discriminator(_which_data),
]


class TokenizerConfig(Section):
    """WordPiece. Loaded from `path` (vocab.txt, tokenizer.json, a Hugging Face folder) or trained on `train_on`."""

    kind: Literal["wordpiece"] = "wordpiece"
    path: str | None = None
    lowercase: bool = True
    vocab_size: Positive | None = None  # when trained; default: model.vocab_size
    min_frequency: Positive = 2
    train_on: Sources | None = None  # default: the text of the first stage


# ---- objectives, optimizer, freezing --------------------------------------------------------------------------------


class MlmNsp(Section):
    """Masked language modelling, with next sentence prediction when `nsp_weight` is above zero."""

    kind: Literal["mlm_nsp"] = "mlm_nsp"
    mlm_weight: Annotated[float, Field(ge=0)] = 1.0
    nsp_weight: Annotated[float, Field(ge=0)] = 1.0


class SpanQaObjective(Section):
    kind: Literal["span_qa"] = "span_qa"


class Classification(Section):
    kind: Literal["classification"] = "classification"
    num_labels: Annotated[int, Field(ge=1)] = 2  # 1: regression


if TYPE_CHECKING:
    Objective: TypeAlias = Any
else:
    Objective = tagged("kind", "mlm_nsp", mlm_nsp=MlmNsp, span_qa=SpanQaObjective, classification=Classification)


class Optimizer(Section):
    """`bert_adamw` is optimization.py of google-research/bert (no bias correction); `adamw` is optax's."""

    kind: Literal["bert_adamw", "adamw"] = "bert_adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["linear", "constant"] = "linear"  # linear: lr*s/W below W steps, lr*(1-s/N) from there
    warmup_steps: NonNegative | None = None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1  # used when warmup_steps is not given
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    b1: Probability = 0.9
    b2: Probability = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-6
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0


class Trainable(Section):
    """What trains. `gradual` opens the stack from the top, one episode at a time (arXiv 1910.10683 section 3.5.1)."""

    kind: Literal["all", "head", "gradual"] = "all"
    episodes: Positive | None = None  # default: one for each layer
    embeddings: Literal["last", "always", "never"] = "last"  # when gradual unfreezing reaches the input embeddings


def _trainable(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


# ---- evaluation -----------------------------------------------------------------------------------------------------


class MlmEvaluation(Section):
    """Masked-token and next-sentence loss and accuracy on held-out text."""

    kind: Literal["mlm"] = "mlm"
    name: Name = "mlm"
    data: Task
    batch_size: Positive = 32
    batches: Positive | None = None  # default: all
    every: Positive | None = None  # in steps; always at the end of the stage


class SquadEvaluation(Section):
    """Extractive answers by run_squad.py's rules, scored by the official v1.1 or v2.0 script's rules."""

    kind: Literal["squad"] = "squad"
    name: Name = "squad"
    data: Task
    batch_size: Positive = 32
    every: Positive | None = None
    n_best: Positive = 20
    max_answer_length: Positive = 30
    null_score_diff_threshold: FiniteFloat = 0.0
    version_2: bool | None = None  # default: whether the file has unanswerable questions


class ClassificationEvaluation(Section):
    kind: Literal["classification"] = "classification"
    name: Name = "classification"
    data: Task
    batch_size: Positive = 32
    every: Positive | None = None


if TYPE_CHECKING:
    Evaluation: TypeAlias = Any
else:
    Evaluation = tagged(
        "kind", "mlm", mlm=MlmEvaluation, squad=SquadEvaluation, classification=ClassificationEvaluation
    )


# ---- stages, mesh, run ----------------------------------------------------------------------------------------------


class Stage(Section):
    name: Name
    data: Data
    objective: Objective = MlmNsp()
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None  # instead of steps
    batch_size: Positive = 32  # global, in rows
    grad_accum: Positive = 1  # micro-batches a step; the numbers do not change
    optimizer: Optimizer = Optimizer()
    trainable: Annotated[Trainable, BeforeValidator(_trainable)] = Trainable()
    init_from: str | None = None  # scratch | previous | a checkpoint or run folder | a Hugging Face folder
    evaluate: list[Evaluation] = []

    @model_validator(mode="after")
    def _check(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"grad_accum ({self.grad_accum}) must divide batch_size ({self.batch_size})")
        warmup = self.optimizer.warmup_steps
        if self.steps is not None and warmup is not None and warmup > self.steps:
            raise ValueError(f"warmup_steps ({warmup}) is more than steps ({self.steps})")
        return self


class Mesh(Section):
    """Devices along each axis; one axis may be -1 and takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: dict[str, str | list[str] | None] = {}  # logical axis -> mesh axes, over the defaults in parallel/mesh.py

    @model_validator(mode="after")
    def _check(self) -> "Mesh":
        sizes = (self.data, self.fsdp, self.tensor)
        if any(n < 1 and n != -1 for n in sizes) or sizes.count(-1) > 1:
            raise ValueError("axis sizes are positive numbers; one of them may be -1")
        return self


class CheckpointPolicy(Section):
    save_every: Positive = 1000  # steps
    keep_last: Positive = 3
    keep_every: Positive | None = None  # steps whose multiples are never removed
    keep_best: str | None = None  # an evaluation score such as squad/f1: the best step is kept too
    best_is: Literal["highest", "lowest"] = "highest"


class Run(Section):
    name: Name = "run"
    root: str = "runs"
    seed: NonNegative = 0
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 where the chip multiplies it fast
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    dropout_rng: Literal["hash", "threefry"] = "hash"
    segments: Literal["auto", "list", "scan"] | list[Positive] = (
        "auto"  # layers per scanned segment; auto: per platform
    )
    remat: Literal["none", "full", "dots"] = "none"
    log_every: Positive = 10
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    prefetch: Positive = 4  # batches prepared ahead
    prepare_workers: Positive | None = None  # default: the machine's cores
    max_bad_steps: Positive = 3  # non-finite steps in a row (each skipped) before the run stops with exit code 3
    compile_cache: str | None = "~/.cache/bertjax/xla"
    tensorboard: bool = True
    wandb: bool = False


class Config(Section):
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mesh: Mesh = Mesh()
    run: Run = Run()
    tasks: dict[str, Task] = {}
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Config":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages need different names")
        for stage in self.stages:
            wanted = [stage.data] if isinstance(stage.data, str) else list(getattr(stage.data, "mixture", []))
            for name in wanted:
                if name not in self.tasks:
                    raise ValueError(f"stage '{stage.name}' uses task '{name}', which is not under 'tasks:'")
            for task in self.stage_tasks(stage).values():
                length = task.preprocess.sequence_length
                if length > self.model.max_position_embeddings:
                    raise ValueError(
                        f"stage '{stage.name}': sequence_length ({length}) is more than "
                        f"model.max_position_embeddings ({self.model.max_position_embeddings})"
                    )
        if self.stages[0].init_from == "previous":
            raise ValueError("the first stage has no previous stage to start from")
        if isinstance(self.run.segments, list) and sum(self.run.segments) != self.model.num_hidden_layers:
            raise ValueError(f"run.segments must add up to num_hidden_layers ({self.model.num_hidden_layers})")
        return self

    def stage_tasks(self, stage: Stage) -> dict[str, Task]:
        """The tasks a stage draws from, by name; a task written inside the stage takes the stage's name."""
        if isinstance(stage.data, str):
            return {stage.data: self.tasks[stage.data]}
        if isinstance(stage.data, Task):
            return {stage.name: stage.data}
        return {name: self.tasks[name] for name in stage.data.mixture}

    @property
    def run_dir(self) -> Path:
        return Path(self.run.root).expanduser() / self.run.name


def max_predictions(pairs: BertPairs) -> int:
    """Masked positions a row can hold (K of `masked_positions [B, K]`).

    An unpacked row holds `max_predictions_per_seq`. A packed row can hold more than one example's share: each example
    masks round(length * masked_lm_prob), at least one, and the lengths add up to at most `sequence_length`.
    """
    if not pairs.pack:
        return pairs.max_predictions_per_seq
    share = math.ceil(pairs.sequence_length * pairs.masked_lm_prob) + pairs.max_segments
    return min(share, pairs.max_segments * pairs.max_predictions_per_seq)


SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)
