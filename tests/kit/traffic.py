"""What a compiled program sends between devices, by the axes of its mesh, and the shapes of the arrays in it."""

from collections import Counter
from typing import Any

import jax

from bertjax.plan.hlo.collectives import find_collectives
from bertjax.plan.hlo.module import HloModule, parse_arrays
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_train_step


def lower_step(program: TrainProgram, batch: dict) -> Any:
    like = program.abstract_state(freezing.param_groups(program.abstract_params()), jax.random.key(0))
    return jit_train_step(program, like).lower(like, batch)


def compile_step(program: TrainProgram, batch: dict) -> Any:
    return lower_step(program, batch).compile()


def sent(compiled: Any, mesh: jax.sharding.Mesh) -> Counter[tuple[str, str]]:
    """{(kind, axes): bytes of whole arrays a step}; axes as in "dcn+fsdp"."""
    found: Counter[tuple[str, str]] = Counter()
    for one in find_collectives(HloModule.parse(compiled.as_text()), dict(mesh.shape)):
        found[one.kind, one.axes] += one.bytes
    return found


def lengths(compiled: Any) -> set[int]:
    """The lengths of all axes of all arrays."""
    return {n for one in parse_arrays(compiled.as_text()) for n in one.shape}
