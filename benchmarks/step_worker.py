"""One side of a comparison: builds a model, then times training steps for every line (a number) on standard input.

    python benchmarks/step_worker.py ours|torch SHAPE [JSON OPTIONS]

benchmarks/step.py, gpu.py and tpu.py start it; unfreeze.py and ablate.py use its parts. Needs neither grain nor
datasets. OPTIONS: `rows` (of each device), for BERT `packed` (examples in a row), and those of `build` or `theirs`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import t5_sides  # noqa: E402

SHAPES = {  # name: (layers, hidden, heads, rows, length, masked)
    "tiny128": (2, 128, 2, 16, 128, 20),
    "tiny512": (2, 128, 2, 2, 512, 77),
    "mini128": (4, 256, 4, 16, 128, 20),
    "mini512": (4, 256, 4, 8, 512, 77),
    "base128": (12, 768, 12, 8, 128, 20),
    "base512": (12, 768, 12, 4, 512, 77),
    "large128": (24, 1024, 16, 8, 128, 20),
    "large512": (24, 1024, 16, 8, 512, 77),
}
VOCAB = 30522


def batch(shape: tuple[int, ...], rows: int, seed: int, packed: int = 1) -> dict[str, np.ndarray]:
    """Random rows in the layout of the data pipeline, every position real; `packed` examples of equal length in each.

    Raises ValueError where they do not divide the row.
    """
    _, _, _, _, S, K = shape
    if S % packed:
        raise ValueError(f"{packed} examples of equal length do not fit a row of {S} tokens")
    length = S // packed
    rng = np.random.default_rng(seed)
    i32 = lambda x: np.ascontiguousarray(x, np.int32)  # noqa: E731
    return {
        "input_ids": i32(rng.integers(5, VOCAB, (rows, S))),
        "token_type_ids": i32(np.tile(np.arange(S) % length >= length // 2, (rows, 1))),
        "segment_ids": i32(np.tile(np.arange(S) // length + 1, (rows, 1))),
        "positions": i32(np.tile(np.arange(S) % length, (rows, 1))),
        "masked_positions": i32(np.sort(rng.permuted(np.tile(np.arange(1, S), (rows, 1)), axis=1)[:, :K])),
        "masked_ids": i32(rng.integers(5, VOCAB, (rows, K))),
        "masked_weights": np.ones((rows, K), np.float32),
        "cls_positions": i32(np.tile(np.arange(packed) * length, (rows, 1))),
        "nsp_labels": i32(rng.integers(0, 2, (rows, packed))),
        "nsp_weights": np.ones((rows, packed), np.float32),
    }


def model_config(shape: tuple[int, ...], attention_dropout: float = 0.1):  # noqa: ANN201
    from bertjax.config.schema.model import BertConfig

    layers, hidden, heads, *_ = shape
    return BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        attention_probs_dropout_prob=attention_dropout,
    )


def full_head(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same batch with every position sent through the vocabulary; the weights, and so the loss, stay the same."""
    rows, S = batch["input_ids"].shape
    ids, weights = np.zeros((rows, S), np.int32), np.zeros((rows, S), np.float32)
    np.put_along_axis(ids, batch["masked_positions"], batch["masked_ids"], axis=1)
    np.put_along_axis(weights, batch["masked_positions"], batch["masked_weights"], axis=1)
    every = np.tile(np.arange(S, dtype=np.int32), (rows, 1))
    return batch | {"masked_positions": every, "masked_ids": ids, "masked_weights": weights}


def spans(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same rows as questions."""
    rows, S = batch["input_ids"].shape
    start = np.arange(rows, dtype=np.int32)[:, None] % (S - 4)
    fields = ("input_ids", "token_type_ids", "segment_ids", "positions", "cls_positions")
    answers = {"start_positions": start, "end_positions": start + 3, "span_weights": np.ones((rows, 1), np.float32)}
    return {name: batch[name] for name in fields} | answers


def build(shape: tuple[int, ...], *, objective: str = "mlm_nsp", dropout: bool = True, **options):  # noqa: ANN003, ANN201
    """The shipped Program of a shape. `options`: attention_dropout, or any key of the configuration's `run`."""
    from bertjax.parallel.host_allocator import cpu_only, keep_freed_memory

    if cpu_only():  # as the commands do, before jax starts its threads
        keep_freed_memory()
    from bertjax.config.schema.optimizers import AdamW
    from bertjax.config.schema.run import Config
    from bertjax.config.schema.training import MlmNspObjective, SpanQaObjective
    from bertjax.objectives import registry
    from bertjax.parallel.mesh import make_mesh
    from bertjax.parallel.mesh_shape import merge_rules
    from bertjax.training.program import TrainProgram, compute_options

    model = model_config(shape, options.pop("attention_dropout", 0.1))
    if not dropout:
        model = model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    stage = {"name": "bench", "data": {"source": {"kind": "stdlib_docs"}}, "steps": 1000}
    config = Config.model_validate({"model": model.model_dump(), "run": options, "stages": [stage]})
    mesh = make_mesh(config.mesh)
    learns = registry.build(SpanQaObjective() if objective == "span_qa" else MlmNspObjective())
    return TrainProgram(
        model=model,
        objective=learns,
        heads=learns.heads,
        optimizer=AdamW(),
        steps=1000,
        grad_accum=1,
        compute=compute_options(config, mesh),
        mesh=mesh,
        rules=merge_rules({}),
    )


def stepper(program, rows: dict[str, np.ndarray], groups: tuple[str, ...] | None = None):  # noqa: ANN001, ANN201
    """-> (a function that starts one step and returns its loss, the compiled program).

    `groups` train (default: all). Neither waits for the device: `float(loss)` does.
    """
    import jax

    from bertjax.training import freezing
    from bertjax.training.step import jit_train_step

    params = program.initialize(jax.random.key(0))
    state = program.init_state(params, groups or freezing.param_groups(params), jax.random.key(1))
    put = jax.device_put(rows, program.batch_sharding())
    compiled = jit_train_step(program, state).lower(state, put).compile()

    def step():  # noqa: ANN202
        nonlocal state
        state, metrics = compiled(state, put)
        return metrics["loss"]

    return step, compiled


def ours(shape: tuple[int, ...], rows: int, packed: int = 1, **options):  # noqa: ANN003, ANN201
    """The shipped step with `rows` on each device -> a function that starts one step and returns the loss."""
    program = build(shape, **options)
    return stepper(program, batch(shape, rows * program.mesh.size, 0, packed))[0]


def ours_t5(shape: tuple[int, ...], **options):  # noqa: ANN003, ANN201
    """The same for T5, whose shape has the rows of each device."""
    program = t5_sides.build(shape, **options)
    return stepper(program, t5_sides.batch((*shape[:5], shape[5] * program.mesh.size, *shape[6:]), 0))[0]


def theirs(
    shape: tuple[int, ...], rows: int, device: str = "cpu", compiled: bool = False, attention_dropout: float = 0.1
):  # noqa: ANN201
    """transformers' torch BertForPreTraining: bf16 autocast, SDPA attention, fused AdamW, clipping by norm 1."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    layers, hidden, heads, _, S, _ = shape
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        attention_probs_dropout_prob=attention_dropout,
    )
    torch.manual_seed(0)
    model = BertForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    data = {name: torch.from_numpy(x).to(device).long() for name, x in batch(shape, rows, 0).items() if x.ndim == 2}
    labels = torch.full((rows, S), -100, device=device)
    labels.scatter_(1, data["masked_positions"], data["masked_ids"])
    forward = torch.compile(model) if compiled else model
    fields = {"input_ids": data["input_ids"], "token_type_ids": data["token_type_ids"]}
    targets = {"labels": labels, "next_sentence_label": data["nsp_labels"][:, 0]}

    def run() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(**fields, attention_mask=data["segment_ids"], **targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return run


def describe_device(side: str, device: str) -> dict[str, object]:
    """Kind and number of the devices, and the most memory in use on one of them so far, where it is known."""
    if side == "ours":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        found: dict[str, object] = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    else:
        import torch

        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        found = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "devices": 1}
    return found | ({} if peak is None else {"peak_gib": round(peak / 2**30, 2)})


def main() -> None:
    side, name = sys.argv[1], sys.argv[2]
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    if name in t5_sides.SHAPES:
        shape = t5_sides.SHAPES[name]
        shape = (*shape[:5], options.pop("rows", shape[5]), *shape[6:])
        run = ours_t5(shape, **options) if side == "ours" else t5_sides.theirs(shape, **options)
    else:
        shape = SHAPES[name]
        rows = options.pop("rows", shape[3])
        run = (ours if side == "ours" else theirs)(shape, rows, **options)
    losses = [float(run()) for _ in range(3)]  # compile and warm up
    import importlib.metadata as metadata

    packages = ("jax", "jaxlib", "flax") if side == "ours" else ("torch", "transformers")
    versions = {p: metadata.version(p) for p in packages}
    about = describe_device(side, options.get("device", "cpu"))
    print(json.dumps({"ready": name, "losses": losses, "versions": versions} | about), flush=True)
    for line in sys.stdin:  # how many steps; they are waited for together, as in training
        steps = int(line.strip() or 1)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = run()
        loss = float(loss)
        seconds = (time.perf_counter() - began) / steps
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
