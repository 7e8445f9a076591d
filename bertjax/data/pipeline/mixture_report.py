"""A report on a mixture before training: rates, epochs and tokens of each task, and the rates of other rules."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any

from bertjax.config.schema.data import Mixture
from bertjax.config.schema.run import Config, Stage
from bertjax.data.pipeline.mixing import rates, to_row_rates
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.data.pipeline.loader import Batches


@dataclass(frozen=True)
class MixtureSize:
    """A stage and the sizes of its tasks."""

    stage: Stage
    steps: int
    examples: Mapping[str, int]  # in one epoch of each task
    rows: Mapping[str, int]  # fewer than examples where they are packed
    rates: Mapping[str, float]  # the share of each task in the examples of the stage
    tokens_per_row: Mapping[str, float] | None  # None: unknown

    @classmethod
    def from_batches(cls, config: Config, stage: Stage, batches: "Batches") -> "MixtureSize":
        steps, examples = batches.steps(stage), batches.example_counts
        return cls(stage, steps, examples, batches.row_counts, _rates(config, stage, examples), batches.tokens_per_row)

    @classmethod
    def from_counts(cls, config: Config, stage: Stage, counts: Mapping[str, int]) -> "MixtureSize":
        """For examples that fill a row each."""
        rows = {name: counts[name] for name in config.stage_tasks(stage)}
        steps = stage.steps or ceil((stage.epochs or 1) * sum(rows.values()) / stage.batch_size)
        return cls(stage, steps, rows, rows, _rates(config, stage, rows), None)


def _rates(config: Config, stage: Stage, examples: Mapping[str, int]) -> dict[str, float]:
    mixture = config.stage_mixture(stage)
    return rates(examples, mixture, config.mixtures) if mixture else dict.fromkeys(examples, 1.0)


@dataclass(frozen=True)
class TaskShare:
    """One task in a stage; `examples` and `rows` are those of one epoch of the task."""

    task: str
    examples: int
    rows: int
    rate: float  # its share of the stage's examples
    drawn: float  # rows of it that the stage reads
    epochs: float  # how often each row is read
    tokens: int | None  # non-padding tokens in the drawn rows, if known


@dataclass(frozen=True)
class MixtureReport:
    """The shares of a stage's tasks, and the rates by other rules: {rule: {task: rate}}."""

    size: MixtureSize
    shares: Sequence[TaskShare]
    rules: Mapping[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        stage = self.size.stage
        head = {"stage": stage.name, "steps": self.size.steps, "batch_size": stage.batch_size}
        return head | {"tasks": [asdict(share) for share in self.shares], "rules": dict(self.rules)}

    def as_text(self) -> str:
        stage, steps = self.size.stage, self.size.steps
        rule = f", {stage.data.rate} rates" if isinstance(stage.data, Mixture) else ""
        rule = f", mixture {stage.data}" if isinstance(stage.data, str) and len(self.shares) > 1 else rule
        total = steps * stage.batch_size
        width = max(10, *(len(share.task) for share in self.shares))
        lines = [
            f"stage {stage.name}: {steps:,} steps of {stage.batch_size} rows = {total:,} rows{rule}",
            f"  {'task':<{width}}{'examples':>14}{'rows':>14}{'rate':>9}{'drawn':>14}{'epochs':>10}{'tokens':>18}",
        ]
        for s in self.shares:
            tokens = "n/a" if s.tokens is None else f"{s.tokens:,}"
            cells = f"{s.examples:>14,}{s.rows:>14,}{s.rate:>9.2%}{s.drawn:>14,.0f}{s.epochs:>10.2f}{tokens:>18}"
            lines.append(f"  {s.task:<{width}}{cells}")
        if self.rules:
            columns = {rule: max(14, len(rule) + 2) for rule in self.rules}
            head = "".join(f"{rule:>{columns[rule]}}" for rule in self.rules)
            lines += ["  other rules:", f"  {'task':<{width}}{head}"]
            for s in self.shares:
                cells = "".join(f"{found[s.task]:>{columns[rule]}.2%}" for rule, found in self.rules.items())
                lines.append(f"  {s.task:<{width}}{cells}")
        return "\n".join(lines)


def build_report(size: MixtureSize, limits: Sequence[int] | None, temperatures: Sequence[float]) -> MixtureReport:
    """`limits`: None tries powers of two between the smallest task and the largest."""
    stage, rows = size.stage, size.rows
    shares = []
    for task, share in to_row_rates(size.rates, size.examples, rows).items():
        drawn = share * size.steps * stage.batch_size
        tokens = None if size.tokens_per_row is None else round(drawn * size.tokens_per_row[task])
        epochs = drawn / rows[task]
        shares.append(TaskShare(task, size.examples[task], rows[task], size.rates[task], drawn, epochs, tokens))
    return MixtureReport(size, shares, sweep_rates(size.examples, limits, temperatures) if len(rows) > 1 else {})


def sweep_rates(
    examples: Mapping[str, int], limits: Sequence[int] | None, temperatures: Sequence[float]
) -> dict[str, dict[str, float]]:
    """{rule: rates} as in arXiv 1910.10683 section 3.5.2: proportional, each K, each T, given K with each T, equal."""
    names = list(examples)
    rules = {"proportional": Mixture(mixture=names)}
    for limit in candidate_limits(examples) if limits is None else limits:
        rules[f"K={limit:,}"] = Mixture(mixture=names, limit=limit)
    for temperature in temperatures:
        rules[f"T={temperature:g}"] = Mixture(mixture=names, temperature=temperature)
    for limit, temperature in product(limits or (), temperatures):
        rules[f"K={limit:,} T={temperature:g}"] = Mixture(mixture=names, limit=limit, temperature=temperature)
    rules["equal"] = Mixture(mixture=names, rate="equal")
    return {rule: rates(examples, mixture) for rule, mixture in rules.items()}


def candidate_limits(examples: Mapping[str, int]) -> list[int]:
    """At most three powers of two above the smallest task and below the largest; others change nothing."""
    low, high = min(examples.values()), max(examples.values())
    between = [1 << power for power in range(64) if low < 1 << power < high]
    return between[:: -(-len(between) // 3)] if between else []


def parse_counts(pairs: Sequence[str], config: Config) -> dict[str, int]:
    """['cola:8551', ...] -> {'cola': 8551}, for exactly the tasks of the configuration. Raises UserError."""
    wanted = {name: None for stage in config.stages for name in config.stage_tasks(stage)}
    counts = {}
    for pair in pairs:
        task, _, number = pair.partition(":")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--count {pair}: must be TASK:COUNT with an integer above zero")
        if task not in wanted:
            raise UserError(f"--count {pair}: no stage has a task '{task}'; there are: {', '.join(wanted)}")
        counts[task] = int(number)
    if missing := [task for task in wanted if task not in counts]:
        raise UserError(f"--count: task '{missing[0]}' has none; state the examples of every task, or of none")
    return counts
