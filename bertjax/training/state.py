"""The training state, one pytree; it is divided differently when other groups train."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.models import param_paths
from bertjax.training import freezing
from bertjax.training.guards.spikes import SpikeWindow, empty_window

Params = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of training in a stage; `params` and `frozen` ({path: float32 array}) together are the model."""

    step: jax.Array  # int32, steps done in this stage
    params: Params
    frozen: Params
    opt_state: dict[str, optax.OptState]  # {group: state} of groups that train; fresh when a group is unfrozen
    key: jax.Array  # of the stage; step s uses fold_in(key, s)
    nonfinite_steps: jax.Array  # int32, non-finite steps in a row; each was skipped
    spikes: SpikeWindow | None = None  # of a stage that skips spikes: the last losses and gradient norms


def stage_keys(seed: int, index: int) -> tuple[jax.Array, jax.Array]:
    """The keys of stage `index` of a run: (of its initial parameters, of its steps)."""
    init_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
    return init_key, step_key


def group_params(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{path: x} -> {group: {path: x}}."""
    found: dict[str, dict[str, Any]] = {}
    for path, group in freezing.grouped(params).items():
        found.setdefault(group, {})[path] = params[path]
    return found


def split_trainable(params: Mapping[str, Any], groups: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> (trained, frozen)."""
    of = freezing.grouped(params)
    trainable = {path: x for path, x in params.items() if of[path] in groups}
    return trainable, {path: x for path, x in params.items() if path not in trainable}


def init_state(
    params: Params, groups: tuple[str, ...], tx: optax.GradientTransformation, key: jax.Array, spike_window: int = 0
) -> TrainState:
    """A state at step 0; pure, to be jitted with out_shardings. spike_window: 0 if spikes are not skipped."""
    trainable, frozen = split_trainable(params, groups)
    opt = {group: tx.init(part) for group, part in group_params(trainable).items()}
    window = empty_window(spike_window) if spike_window else None
    return TrainState(jnp.int32(0), trainable, frozen, opt, key, jnp.int32(0), window)


def unfreeze(state: TrainState, groups: tuple[str, ...], tx: optax.GradientTransformation) -> TrainState:
    """The state with other groups training: optimizer state is kept, and fresh for unfrozen groups; pure.

    The window of spikes is emptied: the gradients of more groups have another norm.
    """
    trainable, frozen = split_trainable({**state.params, **state.frozen}, groups)
    opt = {group: state.opt_state.get(group, None) or tx.init(part) for group, part in group_params(trainable).items()}
    window = empty_window(state.spikes.losses.size) if state.spikes else None
    return replace(state, params=trainable, frozen=frozen, opt_state=opt, spikes=window)


def shardings(state: TrainState, param_shardings: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Sharding of each leaf of a state: slots are sharded like their parameter, scalars are replicated."""
    replicated = NamedSharding(mesh, P())
    params = {**state.params, **state.frozen}

    def slot(path: tuple, leaf: jax.Array) -> NamedSharding:
        name = next((k.key for k in reversed(path) if getattr(k, "key", None) in param_shardings), None)
        if name is None or not leaf.ndim:
            return replicated
        if leaf.shape == params[name].shape:
            return param_shardings[name]
        axes = factored_axes(path, leaf.shape, params[name].shape)
        return NamedSharding(mesh, P(*(param_shardings[name].spec[axis] for axis in axes)))

    make: Any = TrainState  # with a sharding in the place of every array
    return make(
        step=replicated,
        params={path: param_shardings[path] for path in state.params},
        frozen={path: param_shardings[path] for path in state.frozen},
        opt_state=jax.tree_util.tree_map_with_path(slot, state.opt_state),
        key=replicated,
        nonfinite_steps=replicated,
        spikes=jax.tree.map(lambda _: replicated, state.spikes),
    )


def factored_axes(path: tuple, shape: tuple[int, ...], full_shape: tuple[int, ...]) -> list[int]:
    """The axes of a parameter of shape `full_shape` that its Adafactor slot has; none for an unused slot.

    optax.scale_by_factored_rms: v_row lacks the largest axis and v_col the second largest, in the order of np.argsort.
    """
    lacks = {"v_row": -1, "v_col": -2}
    which = next((lacks[k.name] for k in path if getattr(k, "name", None) in lacks), None)
    if which is None or len(full_shape) < 2:
        return []
    axes = [axis for axis in range(len(full_shape)) if axis != np.argsort(full_shape)[which]]
    return axes if shape == tuple(full_shape[axis] for axis in axes) else []


def abstract(state: TrainState, where: Any) -> TrainState:
    """The state as ShapeDtypeStructs with shardings, for restoring."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)


def to_tree(state: TrainState) -> dict[str, Any]:
    """The checkpoint layout: parameters nested by path, optimizer state by group, scalars and key."""
    opt = {
        group.replace("/", "."): {name.replace("/", "."): leaf for name, leaf in param_paths.flatten(slots).items()}
        for group, slots in state.opt_state.items()
    }
    params = param_paths.unflatten({**state.params, **state.frozen})
    spikes = {"spikes": vars(state.spikes)} if state.spikes else {}
    scalars = {"step": state.step, "key": state.key, "bad_steps": state.nonfinite_steps}
    return {"params": params, "opt": opt, **scalars, **spikes}


def from_tree(tree: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `to_tree` for a state of the same structure as `like`."""
    flat = param_paths.flatten(tree["params"])
    opt = {}
    for group, opt_state in like.opt_state.items():
        stored = tree["opt"][group.replace("/", ".")]
        opt[group] = jax.tree_util.tree_map_with_path(
            lambda path, _, stored=stored: stored[param_paths.keystr(path).replace("/", ".")], opt_state
        )
    return TrainState(
        step=tree["step"],
        params={path: flat[path] for path in like.params},
        frozen={path: flat[path] for path in like.frozen},
        opt_state=opt,
        key=tree["key"],
        nonfinite_steps=tree["bad_steps"],
        spikes=SpikeWindow(**tree["spikes"]) if like.spikes else None,
    )
