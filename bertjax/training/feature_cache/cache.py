"""Encode the training rows of a stage once, and keep what its steps read of them.

With `trainable: features` that is what the objective reads of the frozen encoder; with `gradual` and `cache_frozen`, in
each episode, the output of the frozen layers below the trained ones: of programs whose `frozen_layers` is not 0.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.data.pipeline.loader import Batch, Batches
from bertjax.data.pipeline.task_rows import Fields
from bertjax.objectives import encoder
from bertjax.objectives.base import FEATURES, FROZEN_STATES
from bertjax.parallel.batches import place
from bertjax.progress import reporter
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params

EncodeFn = Callable[[Params, dict[str, jax.Array]], jax.Array]


@dataclass(frozen=True)
class FeatureCache:
    """`features` [R, ...] of all R stored rows of a stage, in the compute dtype; `seconds` that they took.

    field: that they are in a batch.
    """

    features: np.ndarray
    seconds: float
    field: str = FEATURES

    @property
    def fields(self) -> Fields:
        """The field that the cache adds to a batch, as `Batches.fields`."""
        return {self.field: (self.features.shape[1:], self.features.dtype)}

    def rows(self, numbers: np.ndarray) -> Batch:
        """Features of stored rows by number: fields [n, ...] for `Batches.batch`."""
        return {self.field: self.features[numbers]}


def field_name(program: TrainProgram) -> str:
    """The name of the field that a cache of this program adds to a batch."""
    return FROZEN_STATES if program.frozen_layers else FEATURES


def feature_field(program: TrainProgram, fields: Fields) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of the features of one row of a batch with these `fields`; the objective's can be kept."""
    params = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in program.abstract_params().items()}
    row = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, (shape, dtype) in fields.items()}
    found = jax.eval_shape(lambda params, row: _features(program, params, row), params, row)
    return found.shape[1:], np.dtype(found.dtype)


def encode_rows(
    program: TrainProgram,
    batches: Batches,
    rows: slice | np.ndarray,
    params: Params,
    heartbeat: Callable[[], None] = lambda: None,
    encode: EncodeFn | None = None,
) -> FeatureCache:
    """Encode every stored row once, without dropout, in batches over the mesh.

    rows: those of each batch that this process reads. params: all of the model. encode: `jit_encode` of the program, if
    there is one already. Each process keeps the features of all rows: in which order it reads them changes with the
    epoch.
    """
    began = time.perf_counter()
    shape, dtype = feature_field(program, batches.fields)
    kept = np.empty((batches.rows_per_epoch, *shape), dtype)
    encode, size = encode or jit_encode(program), batches.batch_size
    with batches.epoch_batches(rows) as source:
        for k, batch in enumerate(reporter.track(source, source.total, "batches")):
            found = encode(params, place(batch, program.batch_sharding(), size))
            local = found.addressable_data(0) if jax.process_count() > 1 else found
            part = kept[k * size : (k + 1) * size]
            part[:] = np.asarray(local)[: len(part)]
            heartbeat()
    return FeatureCache(kept, time.perf_counter() - began, field_name(program))


def jit_encode(program: TrainProgram) -> MeshJit:
    """Jit the features of a batch, in as many micro-batches as the step has; several processes all get all of them."""
    everywhere = NamedSharding(program.mesh, P())

    def encode(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        n = program.grad_accum
        if n == 1:
            return _features(program, params, batch)
        micros = {name: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0) for name, x in batch.items()}
        found = jnp.moveaxis(jax.lax.map(lambda micro: _features(program, params, micro), micros), 0, 1)
        return found.reshape(-1, *found.shape[2:])

    jitted = jax.jit(
        encode,
        in_shardings=(program.param_shardings(), program.batch_sharding()),
        out_shardings=everywhere if jax.process_count() > 1 else program.batch_sharding(),
    )
    return MeshJit(jitted, program.mesh, program.rules)


def _features(program: TrainProgram, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    kept = program.objective.kept_positions
    if kept is None:
        raise ValueError("the objective reads outputs of the encoder that cannot be kept")
    model = program.build_model(params)
    return encoder.frozen_states(model, batch) if program.frozen_layers else encoder.features(model, batch, kept)
