"""Parse a compiled program: every executed operation, its number of executions per step, and custom kernels.

The text is XLA's optimized HLO. A loop body counts as often as its trip count (`known_trip_count`, or the constant of
its condition), each branch of a conditional once.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

DTYPE_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s4": 1, "u4": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|async_computation|true_computation|false_computation)=%?([\w.-]+)"
)
_CALLED_SETS = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_PALLAS_KERNEL = re.compile(r"splash_\w+|fused_attention_(?:forward|backward(?:_(?:query|key|bias)(?![a-z]))?)")
_TRIPS = re.compile(r'known_trip_count\\?"?:\s*\{\\?"?n\\?"?:\s*\\?"?(\d+)')


class Array(NamedTuple):
    """An array of a result."""

    dtype: str
    shape: tuple[int, ...]
    in_vmem: bool  # stored in VMEM instead of HBM

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES.get(self.dtype, 0)


def parse_arrays(text: str) -> list[Array]:
    """The arrays of a result type, tuples flattened."""
    return [
        Array(kind, tuple(map(int, filter(None, shape.split(",")))), "S(1)" in layout)
        for kind, shape, layout in _ARRAY.findall(text)
    ]


@dataclass(frozen=True)
class HloOp:
    """One line of a computation. `type` is that of its result, `rest` the text after the opening bracket."""

    name: str
    opcode: str
    type: str
    rest: str
    root: bool

    @cached_property
    def result(self) -> list[Array]:
        return parse_arrays(self.type)

    @cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split(")", 1)[0])

    def attribute(self, pattern: str) -> str | None:
        """The first group of `pattern` in `rest`."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None


class ExecutedOp(NamedTuple):
    """An operation with its computation, its number of executions, and whether it is inside a fusion."""

    operation: HloOp
    computation: str
    executions: int
    fused: bool


@dataclass(frozen=True)
class HloModule:
    """A parsed program."""

    entry: str
    computations: dict[str, dict[str, HloOp]]

    @classmethod
    def parse(cls, text: str) -> "HloModule":
        entry = name = ""
        computations: dict[str, dict[str, HloOp]] = {}
        for line in text.replace("kernel_metadata={\n}}", "kernel_metadata={}}").splitlines():
            if found := _COMPUTATION.match(line):
                name = found[2]
                computations[name] = {}
                entry = name if found[1] else entry
            elif name and (made := _OPERATION.match(line)):
                computations[name][made[2]] = HloOp(made[2], made[4], made[3], made[5], bool(made[1]))
        return cls(entry, computations)

    @cached_property
    def executed_ops(self) -> list[ExecutedOp]:
        """Every executed operation of the program."""
        times: Counter[str] = Counter()
        fused: dict[str, bool] = {}

        def visit(name: str, count: int, inside: bool) -> None:
            times[name] += count
            fused[name] = fused.get(name, True) and inside
            for operation in self.computations.get(name, {}).values():
                for called, trips in self._calls(operation):
                    visit(called, count * trips, inside or operation.opcode == "fusion")

        visit(self.entry, 1, False)
        return [
            ExecutedOp(operation, name, times[name], fused[name])
            for name, operations in self.computations.items()
            if times[name]
            for operation in operations.values()
        ]

    def _calls(self, operation: HloOp) -> Iterator[tuple[str, int]]:
        trips = self._trips(operation) if operation.opcode == "while" else 1
        sets = ",".join(_CALLED_SETS.findall(operation.rest))
        for name in _CALLED.findall(operation.rest) + re.findall(r"%?([\w.-]+)", sets):
            yield name, trips

    def _trips(self, loop: HloOp) -> int:
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition = self.computations.get(loop.attribute(r"condition=%?([\w.-]+)") or "", {}).values()
        bounds = [op.rest.split(")")[0] for op in condition if op.opcode == "constant" and op.type.startswith("s32[]")]
        return max((int(bound) for bound in bounds if bound.isdecimal()), default=1)


def custom_kernels(module: HloModule) -> dict[str, int]:
    """{kernel: calls per step} of custom kernels (Pallas, cuDNN)."""
    out: Counter[str] = Counter()
    for operation, _, times, _ in module.executed_ops:
        target = operation.attribute(r'custom_call_target="([^"]+)"') if operation.opcode == "custom-call" else None
        if target and any(kind in target for kind in ("tpu_custom_call", "cudnn", "triton")):
            named = _PALLAS_KERNEL.search(f"{operation.name} {operation.rest}")
            out[named[0] if named else target.strip("_")] += times
    return dict(out)


def attention_kernel(found: dict[str, int]) -> str:
    """splash, fused, cudnn or xla, from `custom_kernels`."""
    for kernel in ("splash", "fused"):
        if any(name.startswith(kernel) for name in found):
            return kernel
    return "cudnn" if any("fmha" in name for name in found) else "xla"


def custom_kernel_flops(operation: HloOp) -> int:
    """FLOPs that a custom kernel of Pallas states (`pl.CostEstimate`); 0 if it states none."""
    return int(operation.attribute(r'"cost_estimate":\{[^}]*"flops":"(\d+)"') or 0)
