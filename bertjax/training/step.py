"""The train step: a pure function, jitted with donated state and explicit shardings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh as JaxMesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.model_schema import BertConfig
from bertjax.config.training_schema import Optimizer
from bertjax.models import family, paths, stack
from bertjax.models.execution import Execution
from bertjax.objectives import Objective, Term, rows_by_task
from bertjax.parallel import mesh as meshes
from bertjax.training import optim
from bertjax.training import state as states
from bertjax.training.freezing import layer_of
from bertjax.training.state import Params, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class Program:
    """Everything static about a stage; its methods give the pure functions and the shardings they are jitted with."""

    model: BertConfig
    objective: Objective
    heads: tuple[str, ...]
    optimizer: Optimizer
    steps: int
    grad_accum: int
    execution: Execution
    mesh: JaxMesh
    rules: meshes.Rules
    tasks: int = 1  # that its batches are mixed from
    adapter_size: int = 0  # inner width of the adapters; 0: none
    adapter_init: str = "reference"
    num_labels: int | None = None  # outputs of a classifier; default: the objective's

    @property
    def classes(self) -> int:
        return self.objective.num_labels if self.num_labels is None else self.num_labels

    def __post_init__(self) -> None:
        structure = family.structure(self.model, self.heads, self.classes, self.execution, self.adapter_size)
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "tx", optim.direction(self.optimizer))

    def module(self, params: Mapping[str, jax.Array]) -> family.Module:
        return family.merge(*self._structure, params)  # type: ignore[attr-defined,call-arg]

    def names(self) -> dict[str, tuple[str | None, ...]]:
        """{path: logical axes} of all parameters."""
        return family.logical_axes(self._structure[1])  # type: ignore[attr-defined]

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape, dtype and sharding} of all parameters."""
        names = self.names()
        flat = paths.flatten(nnx.as_pure(self._structure[1]))  # type: ignore[attr-defined]
        return {
            path: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=meshes.sharding(self.mesh, names[path], x.shape, self.rules)
            )
            for path, x in flat.items()
        }

    def placed(self) -> dict[str, NamedSharding]:
        return {path: x.sharding for path, x in self.abstract_params().items()}

    @property
    def by_hand(self) -> tuple[str, ...]:
        """Mesh axes of the batch over which the step itself gathers weights and sums gradients, none in most programs.

        The partitioner would sum whole gradients over all devices, in every micro-batch. By hand they are summed and
        cut inside a slice, or inside a group along `fsdp`, and only the pieces are summed between these, once a step.
        Left to the partitioner: programs where that gains nothing (`data` or `fsdp` alone, without slices, micro-
        batches or split positions), and where uneven sizes, unusual rules or jax's own dropout bits ask for the batch
        in one piece.
        """
        size, batch = self.mesh.shape, self.rules["batch"]
        gains = size["dcn"] > 1 or (size["data"] > 1 and (self.grad_accum > 1 or size["fsdp"] > 1))
        gains = gains or prod(size[a] for a in self.rules["sequence"]) > 1
        inner = [axes for name, axes in self.rules.items() if name not in ("batch", "embed")]
        plain = batch == meshes.RULES["batch"] and not any(set(batch) & set(axes) for axes in inner)
        plain = plain and self.execution.dropout_rng == "hash" and self._even()
        return tuple(a for a in batch if size[a] > 1) if gains and plain else ()

    def _even(self) -> bool:
        """Whether the mesh divides every axis that the rules split over axes of the batch."""
        ways = prod(self.mesh.shape[a] for a in self.rules["embed"] if a in self.rules["batch"])
        names, params = self.names(), self.abstract_params()
        axes = (axis for path, x in params.items() for axis in zip(names[path], x.shape, strict=True))
        return all(size % ways == 0 for name, size in axes if name == "embed")

    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, meshes.partition(("batch",), self.rules))

    @property
    def batch_shards(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return meshes.batch_shards(self.mesh.shape, self.rules["batch"])

    def in_shards(self, grads: Params) -> Params:
        """Gradients where their parameters live: each device is left with the sums that it needs."""
        names = self.names()
        return {path: meshes.constrain(g, *names[path]) for path, g in grads.items()}

    def initialize(self, key: jax.Array) -> Params:
        """Fresh parameters, each array born in its shard."""

        def make(key: jax.Array) -> Params:
            params = family.initialize(self.model, self.heads, self.classes, key, self.adapter_size)
            return family.near_identity(params, key) if self.adapter_init == "near_identity" else params

        with meshes.placing(self.mesh, self.rules):
            return jax.jit(make, out_shardings=self.placed())(key)

    def start(self, params: Params, groups: tuple[str, ...], key: jax.Array) -> TrainState:
        """A state at step 0 of a stage, from parameters in their shards."""
        make = lambda p, k: states.fresh(p, groups, self.tx, k)  # type: ignore[attr-defined]  # noqa: E731
        return self._recut(make, params, key)

    def thaw(self, state: TrainState, groups: tuple[str, ...]) -> TrainState:
        return self._recut(lambda s: states.thaw(s, groups, self.tx), state)  # type: ignore[attr-defined]

    def _recut(self, make: Callable[..., TrainState], *args: Any) -> TrainState:
        where = states.shardings(jax.eval_shape(make, *args), self.placed(), self.mesh)
        with meshes.placing(self.mesh, self.rules):
            return jax.jit(make, out_shardings=where)(*args)

    def abstract_state(self, groups: tuple[str, ...], key: jax.Array) -> TrainState:
        """Shapes and shardings of the state while `groups` train, for restoring and for compiling ahead."""
        params = self.abstract_params()
        make = lambda p, k: states.fresh(p, groups, self.tx, k)  # type: ignore[attr-defined]  # noqa: E731
        shape = jax.eval_shape(make, params, key)
        return states.abstract(shape, states.shardings(shape, params_shardings(params), self.mesh))

    def jit_train_step(self, like: TrainState) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The compiled step for states shaped like `like` (one per episode); the state is donated."""
        where = states.shardings(like, self.placed(), self.mesh)
        program = self.cut_below(like)
        jitted = jax.jit(
            lambda state, batch: train_step(program, state, batch),
            in_shardings=(where, self.batch_sharding()),
            out_shardings=(where, None),
            donate_argnums=0,
        )
        return in_mesh(jitted, self.mesh, self.rules)

    def cut_below(self, state: TrainState) -> "Program":
        """This program with its segments cut where training begins, in either stack of a T5.

        A scan over frozen and trained layers together would give all of them a backward pass.
        """
        lowest: dict[str, int] = {}
        for name, layer in filter(None, map(layer_of, state.opt)):
            lowest[name] = min(layer, lowest.get(name, layer))
        segments = self.execution.segments
        for at in lowest.values():
            segments = stack.cut(segments, at)
        if segments == self.execution.segments:
            return self
        return replace(self, execution=replace(self.execution, segments=segments))

    def jit_eval_step(self) -> Callable[[Params, Batch], dict[str, Term]]:
        """Terms of a batch without dropout or gradients."""
        terms = lambda params, batch: self.objective.terms(self.module(params), batch, None)  # noqa: E731
        return in_mesh(jax.jit(terms, in_shardings=(self.placed(), self.batch_sharding())), self.mesh, self.rules)


def params_shardings(params: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
    return {path: x.sharding for path, x in params.items()}


class in_mesh:  # noqa: N801
    """A jitted function that runs, and lowers, under its mesh and rules."""

    def __init__(self, jitted: Any, mesh: JaxMesh, rules: meshes.Rules):
        self.jitted, self.mesh, self.rules = jitted, mesh, rules

    def __call__(self, *args: Any) -> Any:
        with meshes.placing(self.mesh, self.rules):
            return self.jitted(*args)

    def lower(self, *args: Any) -> Any:
        with meshes.placing(self.mesh, self.rules):
            return self.jitted.lower(*args)


def train_step(program: Program, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """One optimizer step on a global batch (arrays [B, ...]); a non-finite step changes nothing but `bad_steps`."""
    rate = optim.schedule(program.optimizer, program.steps)(state.step)
    grads, terms, loss = gradients(program, state, batch)
    placed = program.placed()
    grads = {path: jax.lax.with_sharding_constraint(g, placed[path]) for path, g in grads.items()}
    grads, norm = optim.clip(grads, program.optimizer.clip_norm)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)

    params: Params = {}
    opt: dict[str, Any] = {}
    for group, part in states.by_group(grads).items():
        old = {path: state.params[path] for path in part}
        update, slots = program.tx.update(part, state.opt[group], old)  # type: ignore[attr-defined]
        params |= {path: jnp.where(good, w - rate * update[path], w) for path, w in old.items()}
        opt[group] = jax.tree.map(lambda new, before: jnp.where(good, new, before), slots, state.opt[group])
    bad_steps = jnp.where(good, 0, state.bad_steps + 1)
    state = replace(state, step=state.step + 1, params=params, opt=opt, bad_steps=bad_steps)
    metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "bad_steps": bad_steps}
    if program.tasks > 1:
        metrics["rows/tasks"] = rows_by_task(batch, program.tasks)
    return state, metrics | flat_terms(terms)


def flat_terms(terms: Mapping[str, Term]) -> Metrics:
    """{mlm: Term} -> mlm_loss, mlm_accuracy (means) and mlm_weight; of a mixture mlm_loss/tasks [T] too."""
    out: Metrics = {}
    for name, t in terms.items():
        weight = jnp.maximum(t.weight, 1e-5)
        out |= {f"{name}_loss": t.loss / weight, f"{name}_accuracy": t.correct / weight, f"{name}_weight": t.weight}
        if t.by_task is not None:
            losses, weights = t.by_task.T
            out |= {f"{name}_loss/tasks": losses / jnp.maximum(weights, 1e-5), f"{name}_weight/tasks": weights}
    return out


def gradients(program: Program, state: TrainState, batch: Batch) -> tuple[Params, dict[str, Term], jax.Array]:
    """-> (gradients of the trained parameters, summed terms, loss).

    Along `program.by_hand` every device computes the sums of its own rows, and what they give is added up here.
    """
    divisors = program.objective.divisors(batch)
    key = jax.random.fold_in(state.key, state.step)
    axes = program.by_hand
    if not axes:
        return accumulated(program, state.params, state.frozen, batch, divisors, key)
    where = {path: P(*(_within(entry, axes) for entry in s.spec)) for path, s in program.placed().items()}
    names = program.names()
    hot, cold = ({path: where[path] for path in part} for part in (state.params, state.frozen))

    def of_own_rows(*args: Any) -> tuple[Params, dict[str, Term], jax.Array]:
        grads, terms, loss = accumulated(program, *args)
        cut = {path: jax.tree.leaves(tuple(spec)) for path, spec in hot.items()}  # by axes they are summed over already
        rest = {path: tuple(a for a in axes if a not in cut[path]) for path in grads}
        sums = {path: meshes.summed(g, rest[path], *names[path]) for path, g in grads.items()}
        terms, loss = jax.tree.map(lambda x: jax.lax.psum(x, axes), (terms, loss))
        return sums, terms, loss

    run = jax.shard_map(
        of_own_rows, mesh=program.mesh, in_specs=(hot, cold, P(axes), P(), P()), out_specs=(hot, P(), P()),
        axis_names={*axes, *(a for a, size in program.mesh.shape.items() if size == 1)}, check_vma=False,
    )  # fmt: skip
    return run(state.params, state.frozen, batch, divisors, key)


def _within(entry: Any, axes: tuple[str, ...]) -> tuple[str, ...] | None:
    """An entry of a PartitionSpec, of which only these mesh axes are left."""
    entries = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(a for a in entries if a in axes) or None


def accumulated(
    program: Program, params: Params, frozen: Params, batch: Batch, divisors: Mapping[str, jax.Array], key: jax.Array
) -> tuple[Params, dict[str, Term], jax.Array]:
    """`gradients` of a batch, or of one share of it, by micro-batches; the sums of a share lack the other shares'.

    Micro-batches add up to exactly the whole batch's gradient because the loss is divided by the whole batch's weights.
    Row i goes to micro-batch i mod N: every device then splits its own rows and none of them move.
    """

    def loss_fn(params: Params, micro: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Term]]:
        terms = program.objective.terms(program.module({**frozen, **params}), micro, key)
        return program.objective.total(terms, divisors), terms

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    n = program.grad_accum
    if n == 1:
        (loss, terms), grads = grad_fn(params, batch, key)
        return grads, terms, loss

    def accumulate(carry: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        (loss, terms), grads = grad_fn(params, xs[0], jax.random.fold_in(key, xs[1]))
        return jax.tree.map(jnp.add, carry, (program.in_shards(grads), terms, loss)), None

    micros = {name: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    first = jax.tree.map(lambda x: x[0], micros)
    shape = jax.eval_shape(lambda p, b, k: grad_fn(p, b, k), params, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shape[1], shape[0][1], shape[0][0]))
    (grads, terms, loss), _ = jax.lax.scan(accumulate, zeros, (micros, jnp.arange(n)))
    return grads, terms, loss
