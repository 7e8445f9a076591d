"""What a compiled program sends between devices, by the axes of its mesh, and the shapes of the arrays in it."""

from collections import Counter
from typing import Any

import jax

from bertjax.plan.collectives import collectives
from bertjax.plan.hlo import Module, arrays
from bertjax.training import freezing
from bertjax.training.step import Program


def lower_step(program: Program, batch: dict) -> Any:
    like = program.abstract_state(freezing.groups_of(program.abstract_params()), jax.random.key(0))
    return program.jit_train_step(like).lower(like, batch)


def compile_step(program: Program, batch: dict) -> Any:
    return lower_step(program, batch).compile()


def sent(compiled: Any, mesh: jax.sharding.Mesh) -> Counter[tuple[str, str]]:
    """{(kind, axes): bytes of whole arrays a step}; axes as in "dcn+fsdp"."""
    found: Counter[tuple[str, str]] = Counter()
    for one in collectives(Module.of(compiled.as_text()), dict(mesh.shape)):
        found[one.kind, one.axes] += one.bytes
    return found


def lengths(compiled: Any) -> set[int]:
    """The lengths of all axes of all arrays."""
    return {n for one in arrays(compiled.as_text()) for n in one.shape}
