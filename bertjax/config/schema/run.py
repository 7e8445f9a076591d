"""The configuration: model, tokenizer, mesh, run, tasks, mixtures and stages."""

import re
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bertjax.config.limits import MAX_ELEMENTS, MAX_SIZE
from bertjax.config.schema.base import (
    AnyFolder,
    AnyPath,
    LocalPath,
    Name,
    NonNegative,
    Positive,
    PositiveFloat,
    RunRoot,
    Section,
    Seed,
    Size,
)
from bertjax.config.schema.data import Data, Mixture, Task, Tokenizer, WordPieceConfig
from bertjax.config.schema.distillation import Distillation, find_stage_problem
from bertjax.config.schema.evaluation import EarlyStopping, Evaluation
from bertjax.config.schema.ladder import Ladder
from bertjax.config.schema.model import BertConfig, Model, find_tokenizer_problem
from bertjax.config.schema.optimizers import AdamW, Optimizer
from bertjax.config.schema.training import MlmNspObjective, Objective, SkipSpikes, Trainable, expand_trainable
from bertjax.storage.mirror import local_root
from bertjax.storage.remote import as_path, is_remote

Files = Annotated[list[LocalPath], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)]
TrainableField = Annotated[Trainable, BeforeValidator(expand_trainable), Field(description="What trains, or its kind.")]

FreshName = Literal[
    "classifier", "token_classifier", "pooler", "qa", "mlm", "nsp", "generator", "discriminator", "adapters", "lora"
]


class Stage(Section):
    """One training stage: data, objective, optimizer and evaluations."""

    name: Name = Field(description="Name of the stage in logs, folders and overrides (`stages.NAME.steps=10`).")
    data: Data = Field(description="Name of a task or mixture, or a task or mixture written here.")
    objective: Objective = Field(MlmNspObjective(), description="What is learned.")
    steps: Positive | None = Field(None, description="Training steps; give either `steps` or `epochs`.")
    epochs: PositiveFloat | None = Field(None, le=1e6, description="Passes over the data.")
    batch_size: Size = Field(32, description="Rows per step, over all devices.")
    grad_accum: Size = Field(1, description="Micro-batches per step; must divide `batch_size`. Same results.")
    optimizer: Optimizer = Field(AdamW(), description="Optimizer and learning-rate schedule.")
    trainable: TrainableField = Trainable()
    init_from: AnyPath | None = Field(
        None,
        description="Initial weights: `scratch`, `previous` (the last checkpoint of the previous stage), `best` (its "
        "best one), a run folder, a checkpoint, a Hugging Face folder or a model on the Hub. Default: `previous`, in "
        "the first stage `scratch`.",
    )
    fresh: list[FreshName] = Field(
        [],
        exclude_if=not_,
        description="Heads (or adapters, LoRA) to initialize although `init_from` has them, as for other classes.",
    )
    init_layers: list[NonNegative] | None = Field(
        None,
        min_length=1,
        exclude_if=lambda layers: layers is None,
        description="Layer i starts from layer `init_layers[i]` of `init_from`, a deeper model of the same width: "
        "`[0, 2, 4, 7, 9, 11]` for DistilBERT from BERT-base.",
    )
    distillation: Distillation | None = Field(
        None,
        exclude_if=lambda teacher: teacher is None,
        description="Learn from the outputs of a trained model (the teacher) besides the labels.",
    )
    skip_spikes: SkipSpikes | None = Field(
        None,
        exclude_if=lambda rule: rule is None,
        description="Skip steps with a spike of loss or gradient norm: `{}` for the defaults. Default: none.",
    )
    adapter_base: LocalPath | None = Field(
        None, exclude_if=lambda path: path is None, description="Weights below the adapters, if they were moved."
    )
    evaluate: list[Evaluation] = Field([], description="Evaluations during and after the stage.")
    early_stopping: EarlyStopping | None = Field(
        None,
        exclude_if=lambda rule: rule is None,
        description="End the stage early when a score stops improving. Its best checkpoint is kept.",
    )

    @model_validator(mode="after")
    def _check(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and null for the other")
        if self.batch_size % self.grad_accum:
            raise ValueError(f"grad_accum ({self.grad_accum}) must divide batch_size ({self.batch_size})")
        if self.early_stopping is not None:
            self._check_early_stopping(self.early_stopping)
        if self.optimizer.restart and self.trainable.kind != "gradual":
            raise ValueError("optimizer.restart is for the episodes of trainable: gradual")
        warmup = self.optimizer.warmup_steps
        ramp = self.optimizer.schedule != "inverse_sqrt"  # which is constant during warm-up
        if ramp and self.steps is not None and warmup is not None and warmup > self.steps:
            raise ValueError(f"warmup_steps ({warmup}) is more than steps ({self.steps})")
        decay = self.optimizer.decay_steps
        if self.steps is not None and decay is not None and decay + (warmup or 0) > self.steps:
            raise ValueError(f"decay_steps ({decay}) and warm-up are more than steps ({self.steps})")
        return self

    def _check_early_stopping(self, rule: EarlyStopping) -> None:
        names = {evaluation.name: evaluation.every for evaluation in self.evaluate}
        name, slash, _ = rule.metric.partition("/")
        if name not in names or not slash:
            there = ", ".join(f"{name}/..." for name in names) or "none"
            raise ValueError(
                f"early_stopping: no evaluation of this stage gives '{rule.metric}'; the scores are {there}"
            )
        if names[name] in (None, "end"):
            raise ValueError(f"early_stopping needs evaluations during the stage: set evaluate.{name}.every")


class Variant(Section):
    """A variant of the last stage, for `bertjax compare`."""

    name: Name = Field(description="Name of the variant.")
    trainable: TrainableField
    optimizer: Optimizer | None = Field(None, description="Optimizer. Default: that of the stage.")
    overrides: dict[str, Any] = Field(
        {},
        exclude_if=not_,
        description="Other changes: keys of the stage such as `init_from: scratch` or `data.source.split: '[:1000]'`, "
        "and of the configuration such as `run.seed`.",
    )
    curve: str | None = Field(
        None, exclude_if=not_, description="Curve of the scores against the training examples that it is a point of."
    )


class MeshConfig(Section):
    """Size of each axis of the device mesh. One of `data`, `fsdp` and `tensor` may be -1: all remaining devices."""

    dcn: int = Field(
        1,
        le=MAX_SIZE,
        description="TPU slices or groups of GPU hosts; each holds a mesh of the other axes. -1: as many as there are "
        "(slices of TPUs, hosts of GPUs, processes with CPU devices), also when the run goes on with more or fewer.",
    )
    data: int = Field(-1, le=MAX_SIZE, description="Data parallelism: each device has all parameters.")
    fsdp: int = Field(
        1, le=MAX_SIZE, description="Data parallelism with parameters and optimizer state sharded (ZeRO-3)."
    )
    tensor: int = Field(1, le=MAX_SIZE, description="Tensor parallelism: each layer is split over the devices.")
    rules: dict[str, str | list[str] | None] = Field(
        {},
        description="Changes of the sharding rules: logical axis (batch, sequence, vocab, embed, heads, mlp) -> mesh "
        "axes (dcn, data, fsdp, tensor) or null.",
    )

    @model_validator(mode="after")
    def _check(self) -> "MeshConfig":
        sizes = (self.data, self.fsdp, self.tensor)
        if any(n < 1 and n != -1 for n in (self.dcn, *sizes)) or sizes.count(-1) > 1:
            raise ValueError("axis sizes are positive numbers; the number of slices and one of the others may be -1")
        for name, axes in self.rules.items():
            if isinstance(axes, list) and len(set(axes)) < len(axes):
                raise ValueError(f"rules: {ascii(name)[1:-1][:60]} names a mesh axis twice; name each once")
        return self


class CheckpointPolicy(Section):
    """Which checkpoints are saved and kept."""

    save_every: Positive = Field(1000, description="Steps between checkpoints.")
    save_minutes: PositiveFloat | None = Field(
        None,
        exclude_if=lambda minutes: minutes is None,
        description="Minutes after which a checkpoint is saved too, counted from the last one.",
    )
    keep_last: Positive = Field(3, description="Newest checkpoints to keep.")
    keep_every: Positive | None = Field(None, description="Keep all checkpoints whose step is a multiple of this.")
    keep_best: str | list[str] | None = Field(None, description="Scores whose best checkpoint is kept: `squad/f1`.")
    best_mode: Literal["auto", "highest", "lowest"] = Field(
        "auto",
        description="Which score is best. `auto`: the lowest loss, perplexity, mse or ece, else the highest.",
    )

    @property
    def best_metrics(self) -> tuple[str, ...]:
        """The scores in `keep_best`."""
        return (self.keep_best,) if isinstance(self.keep_best, str) else tuple(self.keep_best or ())


class WatchdogTimeouts(Section):
    """Seconds without progress after which a run exits with code 75; null: no limit."""

    compile: PositiveFloat | None = Field(7200.0, description="First step of an episode, compilation included.")
    step: PositiveFloat | None = Field(900.0, description="Any other step.")
    evaluation: PositiveFloat | None = Field(7200.0, description="One batch of an evaluation; the first one compiles.")
    save: PositiveFloat | None = Field(3600.0, description="Saving a checkpoint.")
    startup: PositiveFloat | None = Field(3600.0, description="Initializing or restoring a stage, without its data.")
    prepare: PositiveFloat | None = Field(
        14400.0, description="Preparing data, on this machine: no byte, row or document counted and no job begun."
    )


class ProfilerConfig(Section):
    """Steps that the primary process profiles after each start of a run."""

    start_step: Positive = Field(10, description="First step of the trace in a stage; the first ones compile.")
    steps: Positive = Field(5, description="Steps in the trace.")


class RunConfig(Section):
    """How and where a run is executed."""

    name: Name = Field("run", description="Name of the run and of its folder.")
    root: RunRoot = Field("runs", description="Folder of the run folders, local or in a bucket (`gs://bucket/runs`).")
    seed: Seed = Field(0, description="Seed of initial weights, data order, masking and dropout.")
    compute_dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Type of matrix multiplications. `auto`: bfloat16 where the hardware multiplies it fast."
    )
    dense_dtype: Literal["compute", "fp8"] = Field(
        "compute",
        exclude_if=lambda name: name == "compute",
        description="Type of the operands of matrix multiplications in layers, forward and backward: `compute` is that "
        "above, `fp8` is E4M3 forward and E5M2 for gradients with a scale per tensor, for H100 and newer GPUs.",
    )
    attention: Literal["auto", "xla", "cudnn", "splash", "fused"] = Field(
        "auto",
        description="Attention kernel: `cudnn` for GPU, `splash` for TPU, `fused` for both (has attention dropout and "
        "T5's bias; on a CPU interpreted, for tests), `xla` anywhere; `auto`: the first that can, by hardware.",
    )
    dropout_rng: Literal["hash", "threefry"] = Field("hash", description="Dropout bits: counter hash, or jax.random.")
    segments: Literal["auto", "list", "scan"] | list[Positive] = Field(
        "auto", description="Layers per scanned segment; `list`: no scan; `scan`: all in one; `auto`: by platform."
    )
    remat: Literal["none", "full", "dots"] = Field(
        "none", description="Activations recomputed backward: none, all, or all but matrix products (`dots`)."
    )
    log_every: Positive = Field(10, description="Steps between log lines.")
    checkpoint: CheckpointPolicy = Field(CheckpointPolicy(), description="Saving and removal of checkpoints.")
    prefetch: Size = Field(4, description="Batches to prepare ahead of training.")
    prepared_dir: AnyFolder | None = Field(
        None,
        description="Folder or bucket of prepared data. Default: ROOT/prepared, a local folder for a root in gs://.",
    )
    prepare_workers: Size | None = Field(None, description="Processes that prepare data. Default: one per core.")
    max_nonfinite_steps: Positive = Field(3, description="Non-finite (skipped) steps in a row before exit with code 3.")
    check_replicas_every: Positive | None = Field(
        None,
        exclude_if=lambda steps: steps is None,
        description="Steps between comparisons of the copies of the training state on different devices (each save "
        "compares them too). Default: none.",
    )
    repeat_step_every: Positive | None = Field(
        None,
        exclude_if=lambda steps: steps is None,
        description="Run every N-th step twice and compare the results; needs memory for the training state twice. "
        "Default: none.",
    )
    compilation_cache_dir: AnyPath | None = Field("~/.cache/bertjax/xla", description="Compilation cache; null: none.")
    compile_ahead: bool = Field(
        True,
        exclude_if=bool,
        description="Compile the step of the next episode of gradual unfreezing while this one trains.",
    )
    watchdog: WatchdogTimeouts | None = Field(WatchdogTimeouts(), description="Time limits; null: none.")
    profile: ProfilerConfig | None = Field(None, description="Steps to profile; SIGUSR1 starts a trace at any time.")
    tensorboard: bool = Field(True, description="Write TensorBoard files.")
    wandb: bool = Field(False, description="Log to Weights & Biases.")


class FeatureLengths(Section):
    """Tokens per row, as in T5X; the lengths that a configuration gives to a task itself have precedence."""

    inputs: int | None = Field(
        None, ge=8, le=MAX_SIZE, description="`preprocess.sequence_length`. Default: that of the task."
    )
    targets: Size | None = Field(None, description="`preprocess.target_length`. Default: that of the task.")


class Config(Section):
    """A run."""

    pretrained: AnyPath | None = Field(
        None,
        exclude_if=lambda name: name is None,
        description="Model to start from: on the Hugging Face Hub (`org/name`, `org/name@revision`), a Hugging Face "
        "folder, a run or a checkpoint. Sets `model`, `tokenizer.path` and `init_from` of the first stage where they "
        "are not given.",
    )
    model: Model = Field(BertConfig(), description="Model family and sizes.")
    tokenizer: Tokenizer = Field(WordPieceConfig(), description="Tokenizer to load or train.")
    mesh: MeshConfig = Field(MeshConfig(), description="Device mesh.")
    run: RunConfig = Field(RunConfig(), description="How and where the run is executed.")
    tasks: dict[str, Task] = Field({}, description="Tasks by name, for stages and mixtures.")
    mixtures: dict[str, Mixture] = Field({}, description="Mixtures by name, for stages and other mixtures.")
    registries: Files = Field(
        [],
        exclude_if=not_,
        description="YAML files with more `tasks` and `mixtures`, relative to this file, or `huggingface`: the shipped "
        "tasks from the Hub instead of TFDS. What is used of them is copied into the configuration.",
    )
    task_feature_lengths: FeatureLengths | None = Field(
        None, exclude_if=lambda one: one is None, description="Lengths of all tasks that are used by name."
    )
    stages: list[Stage] = Field(min_length=1, description="Training stages, in order.")
    compare: list[Variant] = Field([], exclude_if=not_, description="Variants of the last stage for `bertjax compare`.")
    ladder: Ladder | None = Field(
        None, exclude_if=lambda one: one is None, description="Kinds of models to compare with `bertjax ladder`."
    )
    plugins: Files = Field(
        [],
        exclude_if=not_,
        description="Python files (`my_objective.py`) or modules that register kinds, metrics and callbacks.",
    )

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for key in ("pretrained", "registries", "task_feature_lengths"):  # replaced before, by config/loading
            if getattr(self, key):
                raise ValueError(f"{key}: load the configuration with bertjax.config.loading.load")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages need different names")
        variants = [variant.name for variant in self.compare]
        if len({*variants, "base"}) <= len(variants):
            raise ValueError("entries of compare need different names other than 'base'")
        if shared := self.tasks.keys() & self.mixtures.keys():
            raise ValueError(f"'{min(shared)}' is both a task and a mixture: give one of them another name")
        if problem := find_tokenizer_problem(self.model, self.tokenizer):
            raise ValueError(problem)
        if self.run.dense_dtype == "fp8" and self.model.family in ("elmo", "word2vec"):
            raise ValueError(f"run.dense_dtype: fp8: not for a {self.model.family} model; use compute")
        for stage in self.stages:
            self._check_stage(stage)
        if self.stages[0].init_from in ("previous", "best"):
            raise ValueError("the first stage has no previous stage to start from")
        for stage, before in zip(self.stages[1:], self.stages, strict=False):
            if stage.init_from == "best" and self.best_score(before) is None:
                raise ValueError(
                    f"stage '{stage.name}': init_from: best needs a score of stage '{before.name}': set its "
                    "early_stopping, or run.checkpoint.keep_best to one of its scores"
                )
        evaluations = {e.name: None for stage in self.stages for e in stage.evaluate}
        for score in self.run.checkpoint.best_metrics:
            if score.split("/")[0] not in evaluations or "/" not in score:
                there = ", ".join(f"{name}/..." for name in evaluations) or "none"
                raise ValueError(f"run.checkpoint.keep_best: no evaluation gives '{score}'; the scores are {there}")
        if isinstance(self.run.segments, list) and sum(self.run.segments) != self.model.num_hidden_layers:
            raise ValueError(f"run.segments must add up to num_hidden_layers ({self.model.num_hidden_layers})")
        return self

    def best_score(self, stage: Stage) -> str | None:
        """The score whose best checkpoint is that of a stage; None without one.

        It is that of `early_stopping`, else the first one in `keep_best` that an evaluation of the stage gives.
        """
        if rule := stage.early_stopping:
            return rule.metric
        policy, names = self.run.checkpoint, {evaluation.name for evaluation in stage.evaluate}
        return next((score for score in policy.best_metrics if score.partition("/")[0] in names), None)

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
                f"{where}: mixture '{error.args[0]}' is inside a mixture with proportional rates, which count the "
                f"examples of tasks; give that one rate: explicit with a number for '{error.args[0]}', or rate: equal"
            ) from None
        families = getattr(stage.objective, "families", None)
        fits = self.model.family in families if families else set(stage.objective.heads) & set(self.model.heads)
        if not fits:
            raise ValueError(f"{where}: objective '{stage.objective.kind}' is not for a {self.model.family} model")
        if not stage.objective.heads and (kind := stage.trainable.kind) in ("head", "features"):
            raise ValueError(f"{where}: trainable: {kind}: the objective '{stage.objective.kind}' has no head to train")
        tied = "lm" in stage.objective.heads and getattr(self.model, "has_features", False)
        if tied and stage.trainable.kind == "features":
            what = "is made of the embeddings, which the features depend on"
            raise ValueError(f"{where}: trainable: features: the output of '{stage.objective.kind}' {what}")
        if absent := set(getattr(stage.objective, "required_heads", ())) - set(self.model.heads):
            head, family = min(absent), self.model.family
            raise ValueError(f"{where}: a {family} model has no '{head}' head: set objective.{head}_weight=0")
        source = stage.init_from or ("previous" if stage is not self.stages[0] else "scratch")
        if stage.fresh and source == "scratch":
            raise ValueError(f"{where}: fresh: needs init_from; without it everything starts fresh")
        if problem := find_stage_problem(stage, self.model, source):
            raise ValueError(f"{where}: {problem}")
        teacher = stage.distillation
        if teacher is not None and (problem := teacher.find_problem(stage.objective, stage.trainable)):
            raise ValueError(f"{where}: distillation: {problem}")
        there = (*stage.objective.heads, *(["adapters", "lora"] if self.model.has_adapters else []))
        if other := [name for name in stage.fresh if name not in there]:
            has = f"has no '{other[0]}'; it has: {', '.join(there)}"
            raise ValueError(f"{where}: fresh: a stage of {stage.objective.kind} {has}")
        if problem := self._find_added_problem(stage.trainable):
            raise ValueError(f"{where}: trainable{problem}")
        for name, task in tasks.items():
            needed = getattr(task.preprocess, "architecture", None)
            if needed not in (None, getattr(self.model, "architecture", None)):
                raise ValueError(f"{where}: task '{name}': {task.preprocess.kind} needs model.architecture: {needed}")
            check = getattr(stage.objective, "find_task_problem", None)
            if check is not None and (problem := check(task.preprocess, stage.batch_size // stage.grad_accum)):
                raise ValueError(f"{where}: task '{name}': {problem}")
        for evaluation in stage.evaluate:
            if getattr(evaluation, "threshold", 0.5) != 0.5 and not getattr(stage.objective, "multi_label", True):
                needed = "objective.problem_type: multi_label_classification"
                raise ValueError(f"{where}: evaluate.{evaluation.name}.threshold needs {needed}")
        places = [(where, task) for task in tasks.values()]
        places += [(f"{where}: evaluate.{evaluation.name}", evaluation.data) for evaluation in stage.evaluate]
        for place, task in places:
            self._check_classes(where, stage, task)
            length, longest = task.preprocess.sequence_length, self.model.max_length
            if longest is not None and length > longest:
                less = " - model.pad_token_id - 1" if hasattr(self.model, "pad_token_id") else ""
                limit = f"model.max_position_embeddings{less} ({longest})"
                raise ValueError(f"{place}: sequence_length ({length}) is more than {limit}")
            widest = max(self.model.vocab_size, self.model.intermediate_size, length * self.model.num_attention_heads)
            if stage.batch_size * length * widest > MAX_ELEMENTS:
                raise ValueError(
                    f"{place}: batch_size ({stage.batch_size}) times sequence_length ({length}) is more than any "
                    "machine computes; lower one"
                )

    def _find_added_problem(self, trainable: Trainable) -> str | None:
        """Why this model cannot have the layers that a stage adds or unfreezes."""
        kind, family = trainable.kind, self.model.family
        if kind == "gradual" and not self.model.num_hidden_layers:
            return f": gradual: a {family} model has no layers"
        if kind == "gradual" and trainable.cache_frozen and not getattr(self.model, "has_frozen_prefix", False):
            return f".cache_frozen: not for a {family} model, only for encoders of BERT's kind; leave it out"
        if kind == "features" and not getattr(self.model, "has_features", False):
            return f": features: not for a {family} model, only for encoders; use trainable: head"
        if kind == "features" and trainable.feature_layers == "sum_last_four" and self.model.num_hidden_layers < 4:
            return (
                f".feature_layers: sum_last_four needs 4 layers or more; the model has {self.model.num_hidden_layers}"
            )
        if kind not in ("adapters", "lora"):
            return None
        if not self.model.has_adapters:
            return f": {kind}: a {family} model has none"
        stacked = "" not in self.model.stacks  # T5, whose adapters are sublayers of their own
        if kind == "adapters" and stacked and trainable.adapter_placement != "houlsby":
            return f".adapter_placement: a {family} has its adapters after each layer; leave it out"
        if kind == "lora" and "mlp_gate" in trainable.lora_targets and not getattr(self.model, "gated", False):
            return f".lora_targets: this {family} model has no mlp_gate"
        return None

    def _check_classes(self, where: str, stage: Stage, task: Task) -> None:
        names, count = getattr(task.preprocess, "labels", None), getattr(stage.objective, "num_labels", None)
        columns = getattr(task.preprocess, "label_columns", None)
        several = next(
            (key for key in ("label_columns", "label_delimiter") if getattr(task.preprocess, key, None)), None
        )
        if several and count is not None and not getattr(stage.objective, "multi_label", False):
            raise ValueError(f"{where}: {several} needs objective.problem_type: multi_label_classification")
        if columns and count not in (None, len(columns)):
            raise ValueError(
                f"{where}: label_columns has {len(columns)} columns and objective.num_labels is {count}: "
                f"set objective.num_labels={len(columns)}"
            )
        if names and count not in (None, len(names)):
            hint = "1 is regression, without labels" if count == 1 else f"set objective.num_labels={len(names)}"
            raise ValueError(f"{where}: labels has {len(names)} names and objective.num_labels is {count}: {hint}")

    def stage_tasks(self, stage: Stage) -> dict[str, Task]:
        """The tasks that a stage samples from, by name; a task written inside the stage has the stage's name.

        Raises KeyError for a name that is neither a task nor a mixture, RecursionError for mixtures that contain each
        other, TypeError for a mixture without an explicit rate inside another one (seqio.Mixture refuses that).
        """
        if isinstance(stage.data, Task):
            return {stage.name: stage.data}
        if isinstance(stage.data, str) and stage.data in self.tasks:
            return {stage.data: self.tasks[stage.data]}
        mixture = self.mixtures[stage.data] if isinstance(stage.data, str) else stage.data
        return {name: self.tasks[name] for name in self._members(mixture, {})}

    def stage_mixture(self, stage: Stage) -> Mixture | None:
        """The mixture that a stage samples from; None for a single task."""
        if isinstance(stage.data, str):
            return self.mixtures.get(stage.data)
        return stage.data if isinstance(stage.data, Mixture) else None

    def _members(self, mixture: Mixture, known: dict[str, dict[str, None] | None]) -> dict[str, None]:
        """Names of the tasks in a mixture and the mixtures inside it, in order, each once.

        `known` holds those of mixtures already visited, which may be inside many others; None while they are.
        """
        found: dict[str, None] = {}
        for name in mixture.mixture:
            if name in self.mixtures:
                if mixture.rate == "proportional":
                    raise TypeError(name)
                if name not in known:
                    known[name] = None
                    known[name] = self._members(self.mixtures[name], known)
                if (inside := known[name]) is None:
                    raise RecursionError
                found |= inside
            elif name in self.tasks:
                found[name] = None
            else:
                raise KeyError(name)
        return found

    @property
    def run_dir(self) -> Path:
        """The run folder on this machine; for a run in gs:// the mirror of its small files (storage/mirror.py)."""
        if is_remote(self.run.root):
            return local_root(self.run.root) / self.run.name
        return Path(self.run.root).expanduser() / self.run.name

    @property
    def run_place(self) -> Path:
        """The run folder with the checkpoints, on this machine or in gs://."""
        return as_path(self.run.root) / self.run.name if is_remote(self.run.root) else self.run_dir


SECRET_KEY = re.compile(
    r"(_key|api_?key|token|secret|passw(or)?d|passphrase|credentials?|webhook|(?<!by)(?<!com)(?<!sur)(?<!er)pass|"
    r"(?<![a-z])(pat|pwd|auth|jwt))$",
    re.IGNORECASE,
)
