"""The train step: a pure function, jitted with donated state and explicit shardings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bertjax.objectives.base import LossTerm, rows_by_task
from bertjax.parallel import sharding
from bertjax.parallel.xla_flags import compiler_options
from bertjax.training import optimizers
from bertjax.training import state as training_state
from bertjax.training.guards import spikes
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def jit_train_step(program: TrainProgram, like: TrainState, teacher: Params | None = None) -> MeshJit:
    """Jit the step for states shaped like `like` (one per episode): (state, batch) -> (state, metrics).

    The state is donated. teacher: the parameters of `program.teacher` in their shards; without them the step can only
    be lowered.
    """
    shardings = training_state.shardings(like, program.param_shardings(), program.mesh)
    split = program.split_segments(like.opt_state)
    last: tuple[Any, ...] = ()
    where: tuple[Any, ...] = ()
    if program.teacher is not None:
        last, where = (teacher or program.teacher.abstract_params(),), (program.teacher.param_shardings(),)
    jitted = jax.jit(
        lambda state, batch, *last: train_step(split, state, batch, *last),
        in_shardings=(shardings, program.batch_sharding(), *where),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=compiler_options(program.compute.platform, program.mesh.size) or None,
    )
    return MeshJit(jitted, program.mesh, program.rules, last)


def jit_eval_step(program: TrainProgram) -> Callable[[Params, Batch], dict[str, LossTerm]]:
    """Jit the losses of a batch, without dropout or gradients."""
    losses = lambda params, batch: program.objective.losses(program.build_model(params), batch, None)  # noqa: E731
    jitted = jax.jit(losses, in_shardings=(program.param_shardings(), program.batch_sharding()))
    return MeshJit(jitted, program.mesh, program.rules)


def train_step(
    program: TrainProgram, state: TrainState, batch: Batch, teacher: Params | None = None
) -> tuple[TrainState, Metrics]:
    """One optimizer step on a global batch (arrays [B, ...]).

    A non-finite one changes only `nonfinite_steps`, a spike (`program.spike_rule`) only the window of spikes.
    """
    rate = optimizers.restarting_schedule(program.optimizer, program.steps, program.episodes)(state.step)
    grads, terms, loss = compute_gradients(program, state, batch, teacher)
    param_shardings = program.param_shardings()
    grads = {path: jax.lax.with_sharding_constraint(g, param_shardings[path]) for path, g in grads.items()}
    grads, norm = optimizers.clip_by_global_norm(grads, program.optimizer.clip_norm)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    applied = finite
    spike: jax.Array | None = None
    window: spikes.SpikeWindow | None = None
    if program.spike_rule is not None and state.spikes is not None:
        spike, window = spikes.check(program.spike_rule, state.spikes, state.step, loss, norm)
        applied = finite & ~spike
    factor = program.rate_factors

    params: Params = {}
    opt: dict[str, Any] = {}
    for group, part in training_state.group_params(grads).items():
        old = {path: state.params[path] for path in part}
        update, opt_state = program.tx.update(part, state.opt_state[group], old)  # type: ignore[attr-defined]
        rates = {path: rate * factor[path] if path in factor else rate for path in old}
        params |= {path: jnp.where(applied, w - rates[path] * update[path], w) for path, w in old.items()}
        before = state.opt_state[group]
        opt[group] = jax.tree.map(lambda new, old: jnp.where(applied, new, old), opt_state, before)
    nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1)
    done: dict[str, Any] = {"step": state.step + 1, "nonfinite_steps": nonfinite_steps, "spikes": window}
    state = replace(state, params=params, opt_state=opt, **done)
    metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "bad_steps": nonfinite_steps}
    if spike is not None:
        metrics["spike"] = spike.astype(jnp.int32)
    if program.tasks > 1:
        metrics["rows/tasks"] = rows_by_task(batch, program.tasks)
    return state, metrics | loss_metrics(terms)


def loss_metrics(terms: Mapping[str, LossTerm]) -> Metrics:
    """{mlm: term} -> mlm_loss, mlm_accuracy (means) and mlm_weight; of a mixture also mlm_loss/tasks [T].

    Of a yes-or-no decision also `precision`, `recall` and the share of `positives`, and in evaluations `auc`, the area
    under the ROC curve (0.5 where one of the classes is missing).
    """
    out: Metrics = {}
    for name, t in terms.items():
        weight = jnp.maximum(t.weight, 1e-5)
        out |= {f"{name}_loss": t.loss / weight, f"{name}_accuracy": t.correct / weight, f"{name}_weight": t.weight}
        if t.positives is not None:
            true, predicted, positives = t.positives
            out[f"{name}_precision"] = true / jnp.maximum(predicted, 1e-5)
            out[f"{name}_recall"] = true / jnp.maximum(positives, 1e-5)
            out[f"{name}_positives"] = positives / weight
        if t.by_score is not None:
            out[f"{name}_auc"] = _area_under_roc(*t.by_score)
        if t.by_task is not None:
            losses, weights = t.by_task.T
            out |= {f"{name}_loss/tasks": losses / jnp.maximum(weights, 1e-5), f"{name}_weight/tasks": weights}
    return out


def _area_under_roc(negatives: jax.Array, positives: jax.Array) -> jax.Array:
    """The chance that a positive has a higher score than a negative, equal ones half: from weights by score [bins]."""
    below = jnp.cumsum(negatives) - negatives / 2
    pairs = negatives.sum() * positives.sum()
    return jnp.where(pairs > 0, (positives * below).sum() / jnp.maximum(pairs, 1e-5), 0.5)


def compute_gradients(
    program: TrainProgram, state: TrainState, batch: Batch, teacher: Params | None = None
) -> tuple[Params, dict[str, LossTerm], jax.Array]:
    """-> (gradients of the trained parameters, summed terms, loss), summed here along `program.manual_axes`."""
    teacher = teacher or {}
    normalizers = program.objective.normalizers(batch)
    key = jax.random.fold_in(state.key, state.step)
    axes = program.manual_axes
    if not axes:
        return accumulate_gradients(program, state.params, state.frozen, teacher, batch, normalizers, key)

    def manual_specs(one: TrainProgram) -> dict[str, P]:
        shardings = one.param_shardings()
        return {path: P(*(_restrict_axes(entry, axes) for entry in s.spec)) for path, s in shardings.items()}

    where, taught = manual_specs(program), manual_specs(program.teacher) if program.teacher else {}
    names = program.logical_axes()
    trainable, frozen = ({path: where[path] for path in part} for part in (state.params, state.frozen))

    def per_shard(*args: Any) -> tuple[Params, dict[str, LossTerm], jax.Array]:
        grads, terms, loss = accumulate_gradients(program, *args)
        # Gradients are summed already over the axes that split their parameter.
        cut = {path: jax.tree.leaves(tuple(spec)) for path, spec in trainable.items()}
        rest = {path: tuple(a for a in axes if a not in cut[path]) for path in grads}
        sums = {path: sharding.psum_manual(g, rest[path], *names[path]) for path, g in grads.items()}
        terms, loss = jax.tree.map(lambda x: jax.lax.psum(x, axes), (terms, loss))
        return sums, terms, loss

    run = jax.shard_map(
        per_shard,
        mesh=program.mesh,
        in_specs=(trainable, frozen, taught, P(axes), P(), P()),
        out_specs=(trainable, P(), P()),
        axis_names={*axes, *(a for a, size in program.mesh.shape.items() if size == 1)},
        check_vma=False,
    )
    return run(state.params, state.frozen, teacher, batch, normalizers, key)


def _restrict_axes(entry: Any, axes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The entry of a PartitionSpec, restricted to these mesh axes."""
    entries = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(a for a in entries if a in axes) or None


def accumulate_gradients(
    program: TrainProgram,
    params: Params,
    frozen: Params,
    teacher: Params,
    batch: Batch,
    normalizers: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[Params, dict[str, LossTerm], jax.Array]:
    """`compute_gradients` of a batch or one shard of it; `normalizers` of the full batch make micro-batches add up.

    Row i goes to micro-batch i mod N, so that every device splits its own rows. A teacher reads each micro-batch,
    without dropout and outside the gradient: its logits of a global batch may be larger than all parameters.
    """

    def loss_fn(params: Params, micro: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, LossTerm]]:
        terms = program.objective.losses(program.build_model({**frozen, **params}), micro, key)
        return program.objective.total_loss(terms, normalizers), terms

    differentiate = jax.value_and_grad(loss_fn, has_aux=True)

    def grad_fn(params: Params, micro: Batch, key: jax.Array) -> Any:
        if program.teacher is not None and program.objective.teach is not None:
            taught = program.objective.teach(program.teacher.build_model(teacher), micro)
            micro = {**micro, **jax.lax.stop_gradient(taught)}
        return differentiate(params, micro, key)

    n = program.grad_accum
    if n == 1:
        (loss, terms), grads = grad_fn(params, batch, key)
        return grads, terms, loss

    def accumulate(carry: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        (loss, terms), grads = grad_fn(params, xs[0], jax.random.fold_in(key, xs[1]))
        grads = program.constrain_grads(grads)
        if program.manual_axes:
            # The TPU compiler tries to move reduce-scatters behind the loop, and fails with `data` beside `fsdp`
            # (while_loop_all_reduce_code_motion.cc, libtpu 0.0.42 to 0.0.52).
            grads = jax.tree.map(jax.lax.optimization_barrier, grads)
        return jax.tree.map(jnp.add, carry, (grads, terms, loss)), None

    micros = {name: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    first = jax.tree.map(lambda x: x[0], micros)
    shape = jax.eval_shape(lambda p, b, k: grad_fn(p, b, k), params, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shape[1], shape[0][1], shape[0][0]))
    (grads, terms, loss), _ = jax.lax.scan(accumulate, zeros, (micros, jnp.arange(n)))
    return grads, terms, loss
