"""Attention kernels alone, forward and backward, against XLA: milliseconds in turns, and errors in the same call.

    python benchmarks/accelerator/kernels.py PLATFORM ROWS LENGTH HEADS HEAD_SIZE [ROUNDS] [CALLS]

Errors are those of the result and of each gradient to XLA's attention in float32 with the highest precision, from the
same inputs and dropout bits: the largest absolute one, and that over the largest magnitude of the reference. XLA's own
errors in bfloat16 are the measure for the others. Prints one line of JSON for each case. Run by gpu.py and tpu.py.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from turns import provenance, take_turns  # noqa: E402

from bertjax.models.attention import dot_product_attention as bert_attention  # noqa: E402
from bertjax.models.compute_options import ComputeOptions  # noqa: E402
from bertjax.models.fused_attention.sharded import segment_key_mask  # noqa: E402
from bertjax.models.t5.attention import dot_product_attention as t5_attention  # noqa: E402
from bertjax.models.t5.attention import make_segment_mask  # noqa: E402

KERNELS = {"gpu": ("xla", "fused", "cudnn"), "tpu": ("xla", "fused", "splash"), "cpu": ("xla", "fused")}


@dataclass(frozen=True)
class Case:
    """One attention: dropout on probabilities, examples in a row, and T5's bias by distance (with T5's dropout)."""

    name: str
    rate: float = 0.0
    packed: int = 1
    biased: bool = False


CASES = (
    Case("plain"),
    Case("dropout", rate=0.1),
    Case("packed", packed=4),
    Case("packed_dropout", rate=0.1, packed=4),
    Case("bias_dropout", rate=0.1, biased=True),
)
Function = Callable[..., jax.Array]


def attention(case: Case, kernel: str, compute: ComputeOptions, segments: jax.Array) -> Function:
    """(q, k, v, bias by distance) [B, S, H, K] x 3, [H, 2 S - 1] -> [B, S, H, K]."""
    compute, key = replace(compute, attention=kernel), jax.random.key(7)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, values: jax.Array) -> jax.Array:
        return bert_attention(q, k, v, segments, packed=case.packed > 1, rate=case.rate, key=key, compute=compute)

    def biased(q: jax.Array, k: jax.Array, v: jax.Array, values: jax.Array) -> jax.Array:
        visible: Any = segment_key_mask(segments, segments)
        if kernel == "xla":
            place = jnp.arange(q.shape[1])
            values = values[:, place[None, :] - place[:, None] + q.shape[1] - 1][None]
            visible = make_segment_mask(segments, segments)
        return t5_attention(q, (k, v), values, visible, rate=case.rate, key=key, compute=compute)

    return biased if case.biased else plain


def gradients(function: Function, weights: jax.Array) -> Function:
    """-> (the sum of weighted results, (gradients of all arguments, the results))."""

    def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(*inputs)
        return (out.astype(jnp.float32) * weights).sum(), out

    run = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)

    def both(*inputs: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        (value, out), found = run(*inputs)
        return value, {"out": out} | dict(zip(("dq", "dk", "dv", "d_bias"), found, strict=True))

    return jax.jit(both)


def errors(found: dict[str, jax.Array], expected: dict[str, jax.Array]) -> dict[str, dict[str, float]]:
    """Largest absolute errors, and those over the largest magnitude; without gradients that are zero by definition."""
    table = {}
    for name, want in expected.items():
        size = float(jnp.abs(want).max())
        if size > 0:
            off = float(jnp.abs(found[name].astype(jnp.float32) - want).max())
            table[name] = {"max_abs": float(f"{off:.3g}"), "max_rel": float(f"{off / size:.3g}")}
    return table


def measure(case: Case, platform: str, sizes: tuple[int, int, int, int], rounds: int, calls: int) -> dict[str, Any]:
    B, S, H, _ = sizes
    keys = jax.random.split(jax.random.key(0), 5)
    inputs = [jax.random.normal(key, sizes, jnp.bfloat16) for key in keys[:3]]
    if case.biased:
        inputs[0] = inputs[0] * sizes[-1] ** -0.5  # T5 does not scale its scores
    inputs.append(jax.random.normal(keys[3], (H, 2 * S - 1), jnp.float32))
    weights = jax.random.normal(keys[4], sizes, jnp.float32)
    segments = jnp.tile(jnp.arange(S, dtype=jnp.int32) * case.packed // S + 1, (B, 1))
    compute = ComputeOptions(platform=platform, dtype=jnp.dtype(jnp.bfloat16))
    with jax.default_matmul_precision("highest"):
        exact = replace(compute, dtype=jnp.dtype(jnp.float32))
        run = gradients(attention(case, "xla", exact, segments), weights)
        expected = run(*(x.astype(jnp.float32) for x in inputs))[1]
    steps: dict[str, Callable[[], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for kernel in KERNELS[platform]:
        try:
            run = gradients(attention(case, kernel, compute, segments), weights)
            found[kernel] = {"errors": errors(run(*inputs)[1], expected)}
        except Exception as error:  # noqa: BLE001 - the reason is the result of this kernel
            found[kernel] = {"failed": " ".join(str(error).split())[:300] or type(error).__name__}
            continue
        steps[kernel] = lambda run=run: _repeat(run, inputs, calls)
    for kernel, times in take_turns(steps, rounds).items():
        found[kernel] |= {k: round(v / calls, 4) if k.endswith("ms") else v for k, v in times.items()}
    ms = {kernel: one["median_ms"] for kernel, one in found.items() if "median_ms" in one}
    ratios = {
        f"xla_over_{kernel}": round(ms["xla"] / x, 3) for kernel, x in ms.items() if kernel != "xla" and "xla" in ms
    }
    shape = dict(zip(("rows", "length", "heads", "head_size"), sizes, strict=True))
    return {"case": case.name} | shape | {"ratios": ratios, "kernels": found} | provenance()


def _repeat(run: Function, inputs: list[jax.Array], calls: int) -> jax.Array:
    """Start so many calls; the caller waits for the last one."""
    for _ in range(calls):
        value = run(*inputs)[0]
    return value


def main() -> None:
    platform, *numbers = sys.argv[1:]
    B, S, H, K, rounds, calls = [*map(int, numbers), *(5, 10)[len(numbers) - 4 :]]
    for case in CASES:
        print(json.dumps(measure(case, platform, (B, S, H, K), rounds, calls)), flush=True)


if __name__ == "__main__":
    main()
