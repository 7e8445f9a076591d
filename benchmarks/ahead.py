"""Compile the real train step for devices that are not here, and say what came out. Prints one JSON line.

    python benchmarks/ahead.py configs/bert/pretrain_base.yaml --topology v5e:16x16 mesh.fsdp=16
    python benchmarks/ahead.py configs/bert/pretrain_base.yaml --topology h200:8 --stage 1

Needs libtpu (`pip install libtpu`), or jax[cuda13] for h200, which compile without the hardware. This proves that the
step lowers and fits, and shows the collectives and kernels that the compiler chose; it says nothing about speed. The
stage's data is not read.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 150000000000
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } device_description_str: "NVIDIA H200"
"""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"= (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|async_computation)=%?([\w.-]+)")


def batch_shapes(task: Any, objective: str, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """{field: (shape, dtype)} of a global batch, as the loader yields it."""
    from bertjax.config.data_schema import max_predictions

    if objective == "text_to_text":
        return text_to_text_shapes(task.preprocess, rows)
    options = task.preprocess
    examples = options.max_segments if getattr(options, "pack", False) else 1
    tokens, each = (rows, options.sequence_length), (rows, examples)
    fields = dict.fromkeys(("input_ids", "token_type_ids", "segment_ids", "positions"), (tokens, "int32"))
    fields["cls_positions"] = (each, "int32")
    if objective == "mlm_nsp":
        masked = (rows, max_predictions(options))
        fields |= {"masked_positions": (masked, "int32"), "masked_ids": (masked, "int32")}
        fields |= {"masked_weights": (masked, "float32")}
        fields |= {"nsp_labels": (each, "int32"), "nsp_weights": (each, "float32")}
    elif objective == "span_qa":
        fields |= {
            "start_positions": (each, "int32"),
            "end_positions": (each, "int32"),
            "span_weights": (each, "float32"),
        }
    else:
        fields |= {"labels": (each, "int32"), "label_weights": (each, "float32")}
    return fields


def text_to_text_shapes(options: Any, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """The same for a T5 with an encoder."""
    from bertjax.data.spans import span_lengths

    targets = options.target_length
    if targets is None:
        targets = span_lengths(options.sequence_length, options.noise_density, options.mean_noise_span_length).targets
    inputs, outputs = (rows, options.sequence_length), (rows, targets)
    fields = dict.fromkeys(("input_ids", "segment_ids", "positions"), (inputs, "int32"))
    fields |= dict.fromkeys(("target_ids", "target_segment_ids", "target_positions"), (outputs, "int32"))
    return fields | {"target_weights": (outputs, "float32")}


def devices_of(topology: str) -> Any:
    """The devices of a TPU slice such as v5e:2x4, or of one host with so many GPUs, h200:8."""
    from jax.experimental import topologies

    kind, _, count = topology.partition(":")
    if kind == "h200":
        shape = f"1x1x{count or 1}"
        return topologies.get_topology_desc("h200", "cuda", target_config=H200, topology=shape).devices
    return topologies.get_topology_desc(topology, platform="tpu").devices


def compile_step(config: Any, topology: str, stage_index: int = 0, episode: int = -1) -> Any:
    """The compiled train step of a stage for `devices_of(topology)`; `episode` counts gradual unfreezing."""
    import jax

    from bertjax import objectives
    from bertjax.parallel import mesh as meshes
    from bertjax.training import freezing, setup
    from bertjax.training.step import Program

    mesh = meshes.make_mesh(config.mesh, devices_of(topology))
    stage = config.stages[stage_index]
    objective = objectives.build(stage.objective)
    program = Program(
        model=config.model,
        objective=objective,
        heads=objective.heads,
        optimizer=stage.optimizer,
        steps=stage.steps or 1000,
        grad_accum=stage.grad_accum,
        execution=setup.execution(config, mesh),
        mesh=mesh,
        rules=meshes.rules(config.mesh.rules),
    )
    groups = freezing.groups_of(program.abstract_params())
    plan = freezing.episodes(stage.trainable, groups, program.steps)
    state = program.abstract_state(plan[episode].groups, jax.eval_shape(lambda: jax.random.key(0)))
    task = next(iter(config.stage_tasks(stage).values()))
    shapes = batch_shapes(task, stage.objective.kind, stage.batch_size)
    put = program.batch_sharding()
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=put) for name, (shape, dtype) in shapes.items()}
    return program.jit_train_step(state).lower(state, batch).compile()


def describe(compiled: Any) -> dict[str, Any]:
    """Bytes per device, collectives by kind and the kernels that were compiled, each counted as often as it runs."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    cost = compiled.cost_analysis() or {}
    return {
        "gib_per_device": {
            "arguments": _gib(memory.argument_size_in_bytes),
            "temporaries": _gib(memory.temp_size_in_bytes),
            "outputs_not_aliased": _gib(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        },
        "flops_per_device": cost.get("flops"),
        "collectives": collectives(text),
        "kernels": kernels(text),
    }


def _gib(size: int) -> float:
    return round(size / 2**30, 3)


def computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """-> (name of the entry, {computation: its lines})."""
    entry = name = ""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            lines[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name and "=" in line:
            lines[name].append(line)
    return entry, lines


def runs(entry: str, lines: dict[str, list[str]]) -> Counter[str]:
    """{computation: how often it runs in one step}, following calls and loops."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in lines.get(name, ()):
            body = re.search(r"condition=%?([\w.-]+)", line)
            trips = _trips(lines[body[1]]) if body else 1
            for called in _CALLED.findall(line):
                visit(called, count * trips)

    visit(entry, 1)
    return times


def _trips(condition: list[str]) -> int:
    """A counted loop compares its counter with a constant."""
    bounds = [int(found[1]) for line in condition if (found := re.search(r" s32\[\]\S* constant\((\d+)\)", line))]
    return max(bounds, default=1)


def operations(text: str) -> list[tuple[str, str, str, int, str]]:
    """(operation, result type, line, times, computation) for every line of the program that runs."""
    entry, lines = computations(text)
    times = runs(entry, lines)
    return [
        (found[2], found[1], line, times[name], name)
        for name in lines
        if times[name]
        for line in lines[name]
        if (found := _OPERATION.search(line))
    ]


def collectives(text: str) -> dict[str, dict[str, float]]:
    """{kind: {count, mib}} per device and step; bytes are those of the whole arrays, gathered or not yet scattered.

    TPU programs spread one collective over several fusions (one chain_id), and write a reduce-scatter as an all-reduce
    in a fusion of that name.
    """
    out: dict[str, dict[str, float]] = {}
    chains: set[tuple[str, ...]] = set()
    for operation, result, line, times, computation in operations(text):
        kind = operation.removesuffix("-start")
        chain = re.search(r'chain_id="(\d+)"', line)
        if kind not in COLLECTIVES or (chain and (kind, chain[1]) in chains):
            continue
        if chain:
            chains.add((kind, chain[1]))
        sizes = [_bytes(dtype, shape) for dtype, shape in re.findall(r"\b(\w+)\[([\d,]*)\]", result)]
        if operation != kind:  # (operands, results)
            sizes = [max(sizes)]
        kind = "reduce-scatter" if "all-reduce-scatter" in computation else kind
        entry = out.setdefault(kind, {"count": 0, "mib": 0.0})
        entry["count"] += times
        entry["mib"] += times * sum(sizes) / 2**20
    return {kind: {"count": x["count"], "mib": round(x["mib"], 2)} for kind, x in sorted(out.items())}


def _bytes(dtype: str, shape: str) -> int:
    size = BYTES.get(dtype, 0)
    for dimension in filter(None, shape.split(",")):
        size *= int(dimension)
    return size


def kernels(text: str) -> dict[str, int]:
    """{kernel: calls per step} of the custom calls made by hand-written kernels (Pallas, cuDNN)."""
    out: Counter[str] = Counter()
    for operation, _, line, times, _ in operations(text):
        target = re.search(r'custom_call_target="([^"]+)"', line)
        if operation == "custom-call" and target and ("tpu_custom_call" in target[1] or "cudnn" in target[1]):
            named = re.search(r"splash_\w+", line)
            out[named[0] if named else target[1].strip("_")] += times
    return dict(out)


def main() -> None:
    os.environ.update(ENVIRONMENT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--topology", default="v5e:2x4", help="v5e:16x16, v5p:4x4x8, h200:8 (default: v5e:2x4)")
    parser.add_argument("--stage", type=int, default=0)
    arguments = parser.parse_intermixed_args()
    from bertjax.config.load import load

    config = load(arguments.config, arguments.overrides)
    found = describe(compile_step(config, arguments.topology, arguments.stage))
    print(json.dumps({"config": str(arguments.config), "topology": arguments.topology, **found}))


if __name__ == "__main__":
    main()
