"""Make and verify the two JSON items of a checkpoint step.

`digest` holds shape, dtype and digest of every array and the sha256 of the meta data; `meta` holds the meta data and
the sha256 of the digest item. Any change of either, or a mix of two steps, is detected.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from bertjax.config.limits import MAX_ELEMENTS
from bertjax.config.loading.step_meta import find_meta_problem
from bertjax.errors import DivergedError, UserError, brief
from bertjax.training.checkpoint import checksums

FORMAT = 1
_KEY_IMPLEMENTATIONS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


class Metadata(dict[str, Any]):
    """The metadata of a step; a key that no reader can do without and that is missing is a UserError."""

    def __init__(self, where: str, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self._where = where

    def __missing__(self, key: str) -> NoReturn:
        raise UserError(f"{self._where}: its metadata have no '{key}'; copy the step again, or take another one")


class CorruptStepError(Exception):
    """A step that cannot be read back as it was written."""


def seal(
    where: str, step: int, leaves: Mapping[str, Any], meta: Mapping[str, Any], scores: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> (meta item, digest item) of {path: array}; raises DivergedError when an array is not finite."""
    measured = checksums.compute_digests(leaves)
    if bad := [path for path, leaf in measured.items() if leaf.nonfinite]:
        count = sum(measured[path].nonfinite for path in bad)
        raise DivergedError(
            f"{where}: not saved: {count} values are NaN or infinite, "
            f"in {len(bad)} of {len(measured)} arrays; the first is {bad[0]}"
        )
    copied = json.loads(json.dumps(meta))  # as it will be read back
    record = {
        "format": FORMAT,
        "step": step,
        "leaves": {path: [list(leaf.shape), leaf.dtype, f"{leaf.digest:08x}"] for path, leaf in measured.items()},
        "scores": {name: float(score) for name, score in scores.items()},
        "meta_sha256": json_sha256(copied),
    }
    return {"meta": copied, "digest_sha256": json_sha256(record)}, record


def verify(where: str, step: int, meta_item: Any, record: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verify items as read -> (record, meta). Raises CorruptStepError, and UserError for a newer format."""
    try:
        if json_sha256(record) != meta_item["digest_sha256"]:
            raise CorruptStepError("the digest item is not what was saved")
        if record["format"] != FORMAT:
            found = brief(ValueError(record["format"]), 20)
            raise UserError(f"{where}: written in format {found}, this bertjax reads {FORMAT}; upgrade bertjax")
        if json_sha256(meta_item["meta"]) != record["meta_sha256"]:
            raise CorruptStepError("the meta item is not what was saved")
        if record["step"] != step:
            raise CorruptStepError(f"it holds step {record['step']}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptStepError(f"its items have another form ({brief(error, 60)})") from None
    if problem := find_meta_problem(meta_item["meta"]) or _find_record_problem(record):
        raise CorruptStepError(problem)
    return record, Metadata(where, meta_item["meta"])


def _find_record_problem(record: Mapping[str, Any]) -> str | None:
    leaves, scores = record.get("leaves"), record.get("scores")
    for leaf in leaves.values() if isinstance(leaves, dict) else [None]:
        if not (isinstance(leaf, list) and [type(part) for part in leaf] == [list, str, str] and _is_array(*leaf[:2])):
            return "the digest item does not list arrays"
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        return "the scores of the digest item are no numbers"
    return None


def _is_array(shape: Sequence[Any], dtype: str) -> bool:
    """Whether an array can have this shape and dtype."""
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        return False
    try:
        return dtype in _KEY_IMPLEMENTATIONS or not jnp.dtype(dtype).hasobject
    except (TypeError, ValueError):  # of surrogates too
        return False


def json_sha256(value: Any) -> str:
    """Sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_structure(where: str, prefix: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError naming the first array that is missing, unexpected, or of another shape or dtype."""
    faults = []
    for path, leaf in wanted.items():
        if path not in saved:
            faults.append(f"{prefix}{path} is not in the checkpoint")
            continue
        shape, dtype, _ = saved[path]
        if tuple(shape) != tuple(leaf.shape):
            faults.append(f"{prefix}{path} has shape {tuple(shape)}, the model wants {tuple(leaf.shape)}")
        elif dtype != str(leaf.dtype):
            faults.append(f"{prefix}{path} has dtype {dtype}, the model wants {leaf.dtype}")
    faults += [f"{prefix}{path} is in the checkpoint and not in the model" for path in saved if path not in wanted]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{where}: {faults[0]}{more}; use the configuration that the checkpoint was made with")


def check_digests(prefix: str, saved: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Raise CorruptStepError naming the first array whose content differs from what was saved."""
    for path, leaf in checksums.compute_digests(leaves).items():
        if f"{leaf.digest:08x}" != saved[path][2]:
            raise CorruptStepError(f"{prefix}{path} is not what was saved")


def abstract_leaf(shape: Sequence[int], dtype: str) -> jax.ShapeDtypeStruct:
    """The abstract array of a shape and dtype as they are in the digest item."""
    if dtype not in _KEY_IMPLEMENTATIONS:
        return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    key = jax.eval_shape(lambda: jax.random.key(0, impl=_KEY_IMPLEMENTATIONS[dtype]))
    return jax.ShapeDtypeStruct(tuple(shape), key.dtype)


def unwrap_prng_key(leaf: Any) -> Any:
    """The array to write: typed PRNG keys become uint32 words; an abstract array stays abstract."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        plain = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        data = jax.eval_shape(jax.random.key_data, plain) if checksums.is_prng_key(leaf) else plain
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    return jax.random.key_data(leaf) if checksums.is_prng_key(leaf) else leaf


def wrap_prng_key(data: jax.Array, like: Any) -> jax.Array:
    """The inverse of `unwrap_prng_key`."""
    if not checksums.is_prng_key(like):
        return data
    found: list[Any] = []  # key_impl needs an array; a traced one is enough
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(like.shape, like.dtype))
    return jax.random.wrap_key_data(data, impl=found[0])
