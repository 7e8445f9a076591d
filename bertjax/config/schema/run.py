"""The configuration schema: with the other *_schema.py files every option, and the only home of every default.

A configuration is `model`, `tokenizer`, `mesh`, `run`, a registry of `tasks` and `mixtures` and a list of `stages`. All
sections are frozen and refuse unknown keys. Nothing here imports jax.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from bertjax.config.schema.base import AnyPath, LocalPath, Name, NonNegative, Positive, Section
from bertjax.config.schema.data import Data, Mixture, Task, Tokenizer, WordPieceConfig
from bertjax.config.schema.evaluation import Evaluation
from bertjax.config.schema.model import BertConfig, Model
from bertjax.config.schema.training import AdamW, MlmNspObjective, Objective, Optimizer, Trainable, expand_trainable

# ---- stages, mesh, run ----------------------------------------------------------------------------------------------


class Stage(Section):
    name: Name
    data: Data
    objective: Objective = MlmNspObjective()
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None  # instead of steps
    batch_size: Positive = 32  # global, in rows
    grad_accum: Positive = 1  # micro-batches a step; the numbers do not change
    optimizer: Optimizer = AdamW()
    trainable: Annotated[Trainable, BeforeValidator(expand_trainable)] = Trainable()
    init_from: LocalPath | None = None  # scratch | previous | a checkpoint or run folder | a Hugging Face folder
    # Heads (or adapters) that start fresh though init_from has them, as for a task with other classes.
    fresh: list[Literal["classifier", "pooler", "qa", "mlm", "nsp", "adapters"]] = Field(
        default=[], exclude_if=lambda found: not found
    )
    # Where the weights below the adapters of `init_from` are, or below this stage's own, if not where they were.
    init_base: LocalPath | None = Field(default=None, exclude_if=lambda found: found is None)
    evaluate: list[Evaluation] = []

    @model_validator(mode="after")
    def _check(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"grad_accum ({self.grad_accum}) must divide batch_size ({self.batch_size})")
        warmup = self.optimizer.warmup_steps
        ramp = self.optimizer.schedule != "inverse_sqrt"  # which is flat while it warms up
        if ramp and self.steps is not None and warmup is not None and warmup > self.steps:
            raise ValueError(f"warmup_steps ({warmup}) is more than steps ({self.steps})")
        return self


class Variant(Section):
    """One way to fine-tune: what it changes in the last stage."""

    name: Name
    trainable: Annotated[Trainable, BeforeValidator(expand_trainable)]
    optimizer: Optimizer | None = None  # default: the stage's


class MeshConfig(Section):
    """Devices along each axis; one axis may be -1 and takes what is left."""

    slices: Positive = 1  # TPU slices or groups of GPU hosts, each with a mesh of the axes below
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: dict[str, str | list[str] | None] = {}  # logical axis -> mesh axes; defaults: parallel/mesh_shape.py

    @model_validator(mode="after")
    def _check(self) -> "MeshConfig":
        sizes = (self.data, self.fsdp, self.tensor)
        if any(n < 1 and n != -1 for n in sizes) or sizes.count(-1) > 1:
            raise ValueError("axis sizes are positive numbers; one of them may be -1")
        return self


class CheckpointPolicy(Section):
    save_every: Positive = 1000  # steps
    keep_last: Positive = 3
    keep_every: Positive | None = None  # steps whose multiples are never removed
    keep_best: str | list[str] | None = None  # scores such as squad/f1: the best step of each is kept too
    best_is: Literal["auto", "highest", "lowest"] = "auto"  # auto: lowest of a loss or perplexity, highest of the rest

    @property
    def best_metrics(self) -> tuple[str, ...]:
        """The scores in `keep_best`."""
        return (self.keep_best,) if isinstance(self.keep_best, str) else tuple(self.keep_best or ())


Seconds = Annotated[float, Field(gt=0)]


class WatchdogTimeouts(Section):
    """Seconds without any progress after which a run leaves with exit code 75; null: no limit."""

    compile: Seconds | None = 7200.0  # the first step of an episode, with what it waits for
    step: Seconds | None = 900.0
    evaluation: Seconds | None = 7200.0  # a batch of it; the first one compiles
    save: Seconds | None = 3600.0
    startup: Seconds | None = 3600.0  # making or restoring the parameters of a stage; preparing data has no limit


class ProfilerConfig(Section):
    """Steps of which the lead process writes a trace, once a start of the run."""

    start_step: Positive = 10  # in the stage; the first ones compile
    steps: Positive = 5


class RunConfig(Section):
    name: Name = "run"
    root: LocalPath = "runs"
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
    prepared: AnyPath | None = None  # where prepared data are kept, a folder or gs://...; default: <root>/prepared
    prepare_workers: Positive | None = None  # default: the machine's cores
    max_bad_steps: Positive = 3  # non-finite steps in a row (each skipped) before the run stops with exit code 3
    compile_cache: AnyPath | None = "~/.cache/bertjax/xla"
    watchdog: WatchdogTimeouts | None = WatchdogTimeouts()
    profile: ProfilerConfig | None = None  # SIGUSR1 asks for a trace too
    tensorboard: bool = True
    wandb: bool = False


class Config(Section):
    model: Model = BertConfig()
    tokenizer: Tokenizer = WordPieceConfig()
    mesh: MeshConfig = MeshConfig()
    run: RunConfig = RunConfig()
    tasks: dict[str, Task] = {}
    mixtures: dict[str, Mixture] = {}  # named, so that other mixtures and stages can draw from them
    stages: list[Stage] = Field(min_length=1)
    compare: list[Variant] = Field(default=[], exclude_if=lambda found: not found)  # what `bertjax compare` tries

    @model_validator(mode="after")
    def _check(self) -> "Config":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages need different names")
        variants = [variant.name for variant in self.compare]
        if len({*variants, "base"}) <= len(variants):
            raise ValueError("entries of compare need different names, and 'base' is none of them")
        shared = self.tasks.keys() & self.mixtures.keys()
        if shared:
            raise ValueError(f"'{min(shared)}' is both a task and a mixture: give one of them another name")
        if (self.model.family == "t5") != (self.tokenizer.kind == "sentencepiece"):
            need = "sentencepiece" if self.model.family == "t5" else "wordpiece"
            raise ValueError(f"a model of family '{self.model.family}' needs tokenizer.kind: {need}")
        for stage in self.stages:
            self._check_stage(stage)
        if self.stages[0].init_from == "previous":
            raise ValueError("the first stage has no previous stage to start from")
        evaluations = {e.name: None for stage in self.stages for e in stage.evaluate}
        for score in self.run.checkpoint.best_metrics:
            if score.split("/")[0] not in evaluations or "/" not in score:
                there = ", ".join(f"{name}/..." for name in evaluations) or "none"
                raise ValueError(f"run.checkpoint.keep_best: no evaluation gives '{score}'; the scores are {there}")
        if isinstance(self.run.segments, list) and sum(self.run.segments) != self.model.num_hidden_layers:
            raise ValueError(f"run.segments must add up to num_hidden_layers ({self.model.num_hidden_layers})")
        return self

    def _check_stage(self, stage: Stage) -> None:
        where = f"stage '{stage.name}'"
        try:
            tasks = self.stage_tasks(stage)
        except KeyError as error:
            raise ValueError(f"{where} uses task '{error.args[0]}', which is not under 'tasks:'") from None
        except RecursionError:
            raise ValueError(f"{where}: its mixtures contain each other") from None
        except TypeError as error:
            raise ValueError(
                f"{where}: mixture '{error.args[0]}' stands inside a mixture with proportional rates, which count the "
                f"examples of tasks alone; give that one rate: explicit with a number for '{error.args[0]}', or equal"
            ) from None
        if (stage.objective.kind == "text_to_text") != (self.model.family == "t5"):
            raise ValueError(f"{where}: objective '{stage.objective.kind}' is not for a {self.model.family} model")
        if stage.fresh and (stage.init_from or ("previous" if stage is not self.stages[0] else "scratch")) == "scratch":
            raise ValueError(f"{where}: fresh: everything starts fresh without init_from; name what it starts from")
        if other := [name for name in stage.fresh if name not in _HEADS[stage.objective.kind]]:
            there = ", ".join(_HEADS[stage.objective.kind])
            raise ValueError(f"{where}: fresh: a stage of {stage.objective.kind} has no '{other[0]}'; it has: {there}")
        for what in (*tasks.values(), *(e.data for e in stage.evaluate)):
            self._check_classes(where, stage, what)
        if stage.trainable.kind == "adapters" and self.model.family != "t5":
            raise ValueError(f"{where}: trainable: adapters needs a t5 model")
        for what in (*tasks.values(), *(e.data for e in stage.evaluate)):
            self._check_lengths(where, what)

    def _check_lengths(self, where: str, task: Task) -> None:
        length = task.preprocess.sequence_length
        if isinstance(self.model, BertConfig) and length > self.model.max_position_embeddings:
            raise ValueError(
                f"{where}: sequence_length ({length}) is more than "
                f"model.max_position_embeddings ({self.model.max_position_embeddings})"
            )

    def _check_classes(self, where: str, stage: Stage, task: Task) -> None:
        names = getattr(task.preprocess, "labels", None) if task.preprocess.kind == "classify" else None
        count = getattr(stage.objective, "num_labels", None)
        if names and count not in (None, len(names)):
            one = "1 is regression, which has none" if count == 1 else f"set objective.num_labels={len(names)}"
            raise ValueError(f"{where}: labels has {len(names)} names and objective.num_labels is {count}: {one}")

    def stage_tasks(self, stage: Stage) -> dict[str, Task]:
        """The tasks a stage draws from, by name; a task written inside the stage takes the stage's name.

        Raises KeyError for a name that is neither a task nor a mixture, RecursionError for mixtures in a circle,
        TypeError for a mixture inside another whose rate there is no number (seqio.Mixture refuses that).
        """
        if isinstance(stage.data, Task):
            return {stage.name: stage.data}
        if isinstance(stage.data, str) and stage.data in self.tasks:
            return {stage.data: self.tasks[stage.data]}
        mixture = self.mixtures[stage.data] if isinstance(stage.data, str) else stage.data
        return {name: self.tasks[name] for name in self._members(mixture)}

    def stage_mixture(self, stage: Stage) -> Mixture | None:
        """The mixture a stage draws from; None where it draws from a single task."""
        if isinstance(stage.data, str):
            return self.mixtures.get(stage.data)
        return stage.data if isinstance(stage.data, Mixture) else None

    def _members(self, mixture: Mixture, depth: int = 0) -> dict[str, None]:
        """Names of the tasks in a mixture and the mixtures inside it, in order, each once."""
        if depth > len(self.mixtures):
            raise RecursionError
        found: dict[str, None] = {}
        for name in mixture.mixture:
            if name in self.mixtures:
                if mixture.rate == "proportional":
                    raise TypeError(name)
                found |= self._members(self.mixtures[name], depth + 1)
            elif name in self.tasks:
                found[name] = None
            else:
                raise KeyError(name)
        return found

    @property
    def run_dir(self) -> Path:
        return Path(self.run.root).expanduser() / self.run.name


# The heads (and adapters) of a stage's model, by its objective, which `fresh` can name.
_HEADS = {
    "classification": ("classifier", "pooler"), "span_qa": ("qa",), "mlm_nsp": ("mlm", "nsp", "pooler"),
    "text_to_text": ("adapters",),
}  # fmt: skip
SECRET_KEY = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)
