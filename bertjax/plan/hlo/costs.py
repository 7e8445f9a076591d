"""Costs of one step on one device, from its program: matmul FLOPs and HBM traffic."""

import re
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from bertjax.plan.hlo.module import Array, HloModule, HloOp, custom_kernel_flops

Computation = Mapping[str, HloOp]
# No traffic: names of existing values, or calls whose contents are counted.
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-update", "add-dependency", "opt-barrier", "domain",
}  # fmt: skip
_NO_TRAFFIC_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "Sharding"}
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)")


def matmul_flops(module: HloModule) -> int:
    """FLOPs of all dots and convolutions in a step, and those that custom kernels state."""
    total = 0
    for operation, computation, times, _ in module.executed_ops:
        lines = module.computations[computation]
        if operation.opcode == "convolution":
            total += times * _convolution(operation, lines)
        elif operation.opcode == "dot" or _is_library_dot(operation):
            total += times * _dot(operation, lines)
        elif operation.opcode == "custom-call":
            total += times * custom_kernel_flops(operation)
    return total


def _is_library_dot(operation: HloOp) -> bool:
    """Whether this calls cuBLAS or oneDNN."""
    target = operation.attribute(r'custom_call_target="([^"]+)"') if operation.opcode == "custom-call" else None
    return target is not None and ("gemm" in target or "matmul" in target)


def _dot(operation: HloOp, lines: Computation) -> int:
    left = _result(operation.operands[0], lines)
    axes = operation.attribute(r'lhs_contracting_dim(?:s|ensions)\\?"?[=:]\s*[{\[]([^}\]]*)[}\]]')
    contracted = [int(axis) for axis in re.findall(r"\d+", axes)] if axes else [len(left.shape) - 1]
    return 2 * prod(operation.result[0].shape) * prod(left.shape[axis] for axis in contracted if axis < len(left.shape))


def _convolution(operation: HloOp, lines: Computation) -> int:
    """FLOPs as in HloCostAnalysis: products with padding and dilation holes do not count.

    The TPU compiler writes batched matmuls as convolutions over the batch axes that are mostly holes.
    """
    labels = _LABELS.search(operation.rest)
    if labels is None:
        return 0
    left, right = (_result(name, lines).shape for name in operation.operands[:2])
    out = operation.result[0].shape
    sides = dict(zip(("left", "right", "out"), labels.groups(), strict=True))
    window = dict(part.split("=", 1) for part in (_WINDOW.search(operation.rest) or ["", ""])[1].split())
    total = 2 * right[sides["right"].index("i")] * out[sides["out"].index("f")] * out[sides["out"].index("b")]
    for number, letter in enumerate(sorted(c for c in sides["left"] if c.isdigit())):
        bounds = (left[sides["left"].index(letter)], out[sides["out"].index(letter)])
        total *= _num_products(bounds, {key: value.split("x")[number] for key, value in window.items()})
    return total // max(1, int(operation.attribute(r"batch_group_count=(\d+)") or 1))


def _num_products(bounds: tuple[int, int], window: Mapping[str, str]) -> int:
    """Number of (output, window) positions that hit a real element, along one dimension."""
    base, out = bounds
    holes, low = int(window.get("lhs_dilate", 1)), int(window.get("pad", "0_0").split("_")[0])
    offsets = np.arange(int(window.get("size", 1))) * int(window.get("rhs_dilate", 1))
    at = np.arange(out)[:, None] * int(window.get("stride", 1)) + offsets - low
    return int(((at >= 0) & (at < (base - 1) * holes + 1) & (at % holes == 0)).sum())


def memory_bytes(module: HloModule) -> int:
    """Bytes that the operations of a step read from and write to HBM.

    A fusion reads its operands and writes its results once; of an array that it only slices or updates in place, only
    the slice. Arrays in VMEM do not count.
    """
    total = 0
    for operation, computation, times, fused in module.executed_ops:
        if not fused and not _has_no_traffic(operation):
            total += times * _traffic_bytes(operation, module.computations[computation], module)
    return total


def _has_no_traffic(operation: HloOp) -> bool:
    if operation.opcode == "custom-call":
        return operation.attribute(r'custom_call_target="([^"]+)"') in _NO_TRAFFIC_CALLS
    return operation.opcode in _NO_TRAFFIC or operation.opcode.endswith("-done")


def _traffic_bytes(operation: HloOp, lines: Computation, module: HloModule) -> int:
    operands = [_result(name, lines) for name in operation.operands if name in lines and lines[name].result]
    code = operation.opcode
    if code in ("dynamic-slice", "slice", "gather"):
        return 2 * _hbm_bytes(operation.result)
    if code == "dynamic-update-slice":
        return 2 * _hbm_bytes(operands[1:2])
    if code == "scatter":
        return 3 * _hbm_bytes(operands[-1:])
    if code in ("copy-start", "slice-start"):  # results: (target, source, ...) and ((sources), target, ...)
        target = operation.result[0 if code == "copy-start" else len(operands)]
        read = target.bytes if any(not array.in_vmem for array in operands) else 0
        return read + _hbm_bytes([target])
    if code.endswith("-start"):  # the result includes the operands
        return 2 * _hbm_bytes(operands)
    if code == "fusion":
        return _fusion_bytes(operation, operands, module)
    return _hbm_bytes(operands) + _hbm_bytes(operation.result)


def _fusion_bytes(operation: HloOp, operands: list[Array], module: HloModule) -> int:
    read = kept = 0
    for number, array in enumerate(operands):
        if not array.in_vmem:
            found = _argument(operation, number, array, module)
            read, kept = read + found[0], kept + found[1]
    return read + max(0, _hbm_bytes(operation.result) - kept)


def _argument(fusion: HloOp, number: int, array: Array, module: HloModule) -> tuple[int, int]:
    """-> (bytes that a fusion reads of an operand, bytes of it unchanged in a result updated in place)."""
    inner = module.computations.get(fusion.attribute(r"\bcalls=%?([\w.-]+)") or "", {})
    name = next(
        (op.name for op in inner.values() if op.opcode == "parameter" and op.rest.startswith(f"{number})")), None
    )
    return _value(name, inner, array, module) if name else (array.bytes, 0)


def _value(name: str, inner: Computation, array: Array, module: HloModule) -> tuple[int, int]:
    """The same for a value inside a fusion; fusions nest on TPUs."""
    read = kept = 0
    for line in inner.values():
        for place in (at for at, operand in enumerate(line.operands) if operand == name):
            if line.opcode == "dynamic-slice":
                found = line.result[0].bytes, 0
            elif line.opcode == "dynamic-update-slice" and place == 0:
                found = 0, array.bytes - _result(line.operands[1], inner).bytes
            elif line.opcode == "bitcast" or (place == 0 and "output_to_operand_aliasing" in line.rest):
                found = _value(line.name, inner, array, module)
            elif line.opcode == "fusion":
                found = _argument(line, place, array, module)
            else:
                found = array.bytes, 0
            read, kept = read + found[0], max(kept, found[1])
    return min(read, array.bytes), kept


def _hbm_bytes(found: Iterable[Array]) -> int:
    return sum(array.bytes for array in found if not array.in_vmem)


def _result(name: str, lines: Computation) -> Array:
    """The first array of an operation's result; an empty array for an unknown name."""
    found = lines[name].result if name in lines else []
    return found[0] if found else Array("pred", (0,), True)
