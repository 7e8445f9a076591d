"""The training state: one pytree, born in its shards, re-cut when layers thaw."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh as JaxMesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.models import paths
from bertjax.training.freezing import group_of

Params = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Attributes:
    step: int32, steps done in this stage.
    params, frozen: {path: float32 array}: what trains and what does not; together the whole model.
    opt: {group: optax state} for the groups that train (a group thawed later starts with fresh slots and counts).
    key: the stage's random key; step s uses fold_in(key, s), so nothing random is stored.
    bad_steps: int32, non-finite steps in a row; each was skipped.
    """

    step: jax.Array
    params: Params
    frozen: Params
    opt: dict[str, optax.OptState]
    key: jax.Array
    bad_steps: jax.Array


def by_group(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{path: x} -> {group: {path: x}}."""
    grouped: dict[str, dict[str, Any]] = {}
    for path, value in params.items():
        grouped.setdefault(group_of(path), {})[path] = value
    return grouped


def split(params: Mapping[str, Any], groups: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> (trained, frozen)."""
    hot = {path: x for path, x in params.items() if group_of(path) in groups}
    return hot, {path: x for path, x in params.items() if path not in hot}


def fresh(params: Params, groups: tuple[str, ...], tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state at step 0; pure, to be jitted with out_shardings."""
    hot, cold = split(params, groups)
    opt = {group: tx.init(part) for group, part in by_group(hot).items()}
    return TrainState(jnp.int32(0), hot, cold, opt, key, jnp.int32(0))


def thaw(state: TrainState, groups: tuple[str, ...], tx: optax.GradientTransformation) -> TrainState:
    """The same state with other groups training: surviving slots are kept, thawed groups get new ones; pure."""
    hot, cold = split({**state.params, **state.frozen}, groups)
    opt = {group: state.opt.get(group, None) or tx.init(part) for group, part in by_group(hot).items()}
    return replace(state, params=hot, frozen=cold, opt=opt)


def shardings(state: TrainState, placed: Mapping[str, NamedSharding], mesh: JaxMesh) -> Any:
    """Where each leaf of a (possibly abstract) state lives: slots follow their parameter, scalars are replicated."""
    everywhere = NamedSharding(mesh, P())
    params = {**state.params, **state.frozen}

    def slot(path: tuple, leaf: jax.Array) -> NamedSharding:
        name = next((k.key for k in reversed(path) if getattr(k, "key", None) in placed), None)
        if name is None or not leaf.ndim:
            return everywhere
        if leaf.shape == params[name].shape:
            return placed[name]
        axes = kept_axes(path, leaf.shape, params[name].shape)
        return NamedSharding(mesh, P(*(placed[name].spec[axis] for axis in axes)))

    make: Any = TrainState  # with a sharding in the place of every array
    return make(
        step=everywhere,
        params={path: placed[path] for path in state.params},
        frozen={path: placed[path] for path in state.frozen},
        opt=jax.tree_util.tree_map_with_path(slot, state.opt),
        key=everywhere,
        bad_steps=everywhere,
    )


def kept_axes(path: tuple, shape: tuple[int, ...], whole: tuple[int, ...]) -> list[int]:
    """The axes of a parameter of shape `whole` that its Adafactor slot still has; none of a slot that stands empty.

    optax.scale_by_factored_rms: v_row lacks the largest axis and v_col the second largest, in the order of np.argsort.
    """
    lacks = {"v_row": -1, "v_col": -2}
    which = next((lacks[k.name] for k in path if getattr(k, "name", None) in lacks), None)
    if which is None or len(whole) < 2:
        return []
    axes = [axis for axis in range(len(whole)) if axis != np.argsort(whole)[which]]
    return axes if shape == tuple(whole[axis] for axis in axes) else []


def abstract(state: TrainState, where: Any) -> TrainState:
    """Shapes, dtypes and shardings, for restoring."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)


def to_tree(state: TrainState) -> dict[str, Any]:
    """The canonical checkpoint layout: whole parameters nested by path, slots by group, scalars and key."""
    opt = {group.replace("/", "."): paths.flatten(slots) for group, slots in state.opt.items()}
    opt = {group: {name.replace("/", "."): leaf for name, leaf in slots.items()} for group, slots in opt.items()}
    params = paths.unflatten({**state.params, **state.frozen})
    return {"params": params, "opt": opt, "step": state.step, "key": state.key, "bad_steps": state.bad_steps}


def from_tree(tree: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `to_tree` for a state of the same structure as `like`."""
    flat = paths.flatten(tree["params"])
    opt = {}
    for group, slots in like.opt.items():
        stored = tree["opt"][group.replace("/", ".")]
        opt[group] = jax.tree_util.tree_map_with_path(
            lambda path, _, stored=stored: stored[paths.join(path).replace("/", ".")], slots
        )
    return TrainState(
        step=tree["step"],
        params={path: flat[path] for path in like.params},
        frozen={path: flat[path] for path in like.frozen},
        opt=opt,
        key=tree["key"],
        bad_steps=tree["bad_steps"],
    )
