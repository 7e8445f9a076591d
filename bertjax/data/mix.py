"""What a mixture comes to before anything runs: rates, epochs and tokens of each task, with other rules beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from bertjax.config.data_schema import Mixture
from bertjax.config.schema import Config, Stage
from bertjax.data.mixing import rates
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.data.loader import Batches


@dataclass(frozen=True)
class Size:
    """A stage and the rows of its tasks; `tokens_per_row` is None where only the rows are known."""

    stage: Stage
    steps: int
    rows: Mapping[str, int]
    tokens_per_row: Mapping[str, float] | None

    @classmethod
    def of(cls, stage: Stage, batches: "Batches") -> "Size":
        return cls(stage, batches.steps(stage), batches.counts, batches.tokens_per_row)

    @classmethod
    def stated(cls, config: Config, stage: Stage, counts: Mapping[str, int]) -> "Size":
        rows = {name: counts[name] for name in config.stage_tasks(stage)}
        steps = stage.steps or ceil((stage.epochs or 1) * sum(rows.values()) / stage.batch_size)
        return cls(stage, steps, rows, None)


@dataclass(frozen=True)
class Share:
    """One task in a stage.

    Attributes:
        rows: in one epoch of the task.
        rate: its share of the stage's rows.
        drawn: rows that the stage draws from it.
        epochs: how often it sees each of them.
        tokens: real ones in what is drawn, if known.
    """

    task: str
    rows: int
    rate: float
    drawn: float
    epochs: float
    tokens: int | None


@dataclass(frozen=True)
class Plan:
    """The shares of a stage's tasks, and the rates that other rules would give: {rule: {task: rate}}."""

    size: Size
    shares: Sequence[Share]
    rules: Mapping[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        stage = self.size.stage
        head = {"stage": stage.name, "steps": self.size.steps, "batch_size": stage.batch_size}
        return head | {"tasks": [asdict(share) for share in self.shares], "rules": dict(self.rules)}

    def as_text(self) -> str:
        stage, steps = self.size.stage, self.size.steps
        rule = f", {stage.data.rate} rates" if isinstance(stage.data, Mixture) else ""
        total = steps * stage.batch_size
        width = max(10, *(len(share.task) for share in self.shares))
        lines = [
            f"stage {stage.name}: {steps:,} steps of {stage.batch_size} rows = {total:,} rows{rule}",
            f"  {'task':<{width}}{'rows':>14}{'rate':>9}{'drawn':>14}{'epochs':>10}{'tokens':>18}",
        ]
        for s in self.shares:
            tokens = "n/a" if s.tokens is None else f"{s.tokens:,}"
            cells = f"{s.rows:>14,}{s.rate:>9.2%}{s.drawn:>14,.0f}{s.epochs:>10.2f}{tokens:>18}"
            lines.append(f"  {s.task:<{width}}{cells}")
        if self.rules:
            lines += ["  other rules:", f"  {'task':<{width}}" + "".join(f"{rule:>14}" for rule in self.rules)]
            for s in self.shares:
                lines.append(f"  {s.task:<{width}}" + "".join(f"{r[s.task]:>14.2%}" for r in self.rules.values()))
        return "\n".join(lines)


def plan(size: Size, limits: Sequence[int] | None, temperatures: Sequence[float]) -> Plan:
    """`limits`: None tries powers of two between the smallest task and the largest."""
    stage, rows = size.stage, size.rows
    found = rates(rows, stage.data) if isinstance(stage.data, Mixture) else dict.fromkeys(rows, 1.0)
    shares = []
    for task, rate in found.items():
        drawn = rate * size.steps * stage.batch_size
        tokens = None if size.tokens_per_row is None else round(drawn * size.tokens_per_row[task])
        shares.append(Share(task, rows[task], rate, drawn, drawn / rows[task], tokens))
    return Plan(size, shares, sweep(rows, limits, temperatures) if len(rows) > 1 else {})


def sweep(
    rows: Mapping[str, int], limits: Sequence[int] | None, temperatures: Sequence[float]
) -> dict[str, dict[str, float]]:
    """{rule: rates}: proportional, each limit K, each temperature T, equal (arXiv 1910.10683 section 3.5.2)."""
    names = list(rows)
    rules = {"proportional": Mixture(mixture=names)}
    for limit in telling_limits(rows) if limits is None else limits:
        rules[f"K={limit:,}"] = Mixture(mixture=names, limit=limit)
    for temperature in temperatures:
        rules[f"T={temperature:g}"] = Mixture(mixture=names, temperature=temperature)
    rules["equal"] = Mixture(mixture=names, rate="equal")
    return {rule: rates(rows, mixture) for rule, mixture in rules.items()}


def telling_limits(rows: Mapping[str, int]) -> list[int]:
    """At most three powers of two above the smallest task and below the largest; others say nothing new."""
    low, high = min(rows.values()), max(rows.values())
    between = [1 << power for power in range(64) if low < 1 << power < high]
    return between[:: -(-len(between) // 3)] if between else []


def stated_counts(pairs: Sequence[str], config: Config) -> dict[str, int]:
    """['cola:8551', ...] -> {'cola': 8551}, for exactly the tasks of the configuration. Raises UserError."""
    wanted = {name: None for stage in config.stages for name in config.stage_tasks(stage)}
    counts = {}
    for pair in pairs:
        task, _, number = pair.partition(":")
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"--count {pair}: must be TASK:ROWS with a whole number above zero")
        if task not in wanted:
            raise UserError(f"--count {pair}: no stage has a task '{task}'; there are: {', '.join(wanted)}")
        counts[task] = int(number)
    if missing := [task for task in wanted if task not in counts]:
        raise UserError(f"--count: task '{missing[0]}' has none; state the rows of every task, or of none")
    return counts
