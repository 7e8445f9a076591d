"""The configuration schema: with data_schema.py every option, and the only home of every default.

A configuration is `model`, `tokenizer`, `mesh`, `run`, a registry of `tasks` and a list of `stages`. All sections are
frozen and refuse unknown keys. Nothing here imports jax.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from bertjax.config.data_schema import Data, Task, TokenizerConfig
from bertjax.config.sections import FiniteFloat, Name, NonNegative, Positive, Probability, Section, tagged

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
    position_init: Literal["normal", "sinusoidal"] = "normal"  # where learnt positions start

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})"
            )
        if self.family == "distilbert" and self.type_vocab_size != 0:
            raise ValueError("a distilbert model has no segment embeddings: set type_vocab_size to 0")
        return self


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


SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)
