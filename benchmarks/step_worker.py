"""One side of benchmarks/step.py: builds a model, then times one training step for every line on standard input."""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPES = {  # name: (layers, hidden, heads, rows, length, masked)
    "tiny128": (2, 128, 2, 16, 128, 20),
    "mini128": (4, 256, 4, 16, 128, 20),
    "mini512": (4, 256, 4, 8, 512, 77),
    "base128": (12, 768, 12, 8, 128, 20),
    "base512": (12, 768, 12, 4, 512, 77),
    "large128": (24, 1024, 16, 8, 128, 20),
    "large512": (24, 1024, 16, 8, 512, 77),
}
VOCAB = 30522


def batch(shape: tuple[int, ...], rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random rows in the layout of the data pipeline, every position real."""
    _, _, _, _, S, K = shape
    rng = np.random.default_rng(seed)
    i32 = lambda x: np.ascontiguousarray(x, np.int32)  # noqa: E731
    return {
        "input_ids": i32(rng.integers(5, VOCAB, (rows, S))),
        "token_type_ids": i32(np.tile(np.arange(S) >= S // 2, (rows, 1))),
        "segment_ids": np.ones((rows, S), np.int32),
        "positions": i32(np.tile(np.arange(S), (rows, 1))),
        "masked_positions": i32(np.sort(rng.permuted(np.tile(np.arange(1, S), (rows, 1)), axis=1)[:, :K])),
        "masked_ids": i32(rng.integers(5, VOCAB, (rows, K))),
        "masked_weights": np.ones((rows, K), np.float32),
        "cls_positions": np.zeros((rows, 1), np.int32),
        "nsp_labels": i32(rng.integers(0, 2, (rows, 1))),
        "nsp_weights": np.ones((rows, 1), np.float32),
    }


def model_config(shape: tuple[int, ...], attention_dropout: float = 0.1):  # noqa: ANN201
    from bertjax.config.schema import ModelConfig

    layers, hidden, heads, *_ = shape
    return ModelConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        attention_probs_dropout_prob=attention_dropout,
    )


def ours(shape: tuple[int, ...], rows: int, **options):  # noqa: ANN003, ANN201
    """The shipped step with its defaults -> a function that runs one step and waits for it."""
    import jax

    from bertjax import objectives
    from bertjax.config.schema import Config, MlmNsp, Optimizer
    from bertjax.parallel import mesh as meshes
    from bertjax.training import freezing, setup
    from bertjax.training.allocator import keep_freed_memory
    from bertjax.training.step import Program

    model = model_config(shape, options.pop("attention_dropout", 0.1))
    stage = {"name": "bench", "data": {"source": {"kind": "stdlib_docs"}}, "steps": 1000}
    config = Config.model_validate({"model": model.model_dump(), "run": options, "stages": [stage]})
    mesh = meshes.make_mesh(config.mesh)
    if mesh.devices.flat[0].platform == "cpu":
        keep_freed_memory()
    objective = objectives.build(MlmNsp())
    program = Program(
        model=model,
        objective=objective,
        heads=objective.heads,
        optimizer=Optimizer(),
        steps=1000,
        grad_accum=1,
        execution=setup.execution(config, mesh),
        mesh=mesh,
        rules=meshes.rules({}),
    )
    params = program.initialize(jax.random.key(0))
    state = program.start(params, freezing.groups_of(params), jax.random.key(1))
    train_step = program.jit_train_step(state)
    put = jax.device_put(batch(shape, rows, 0), program.batch_sharding())

    def run() -> float:
        nonlocal state
        state, metrics = train_step(state, put)
        return float(metrics["loss"])

    return run


def theirs(shape: tuple[int, ...], rows: int, device: str = "cpu", compiled: bool = False):  # noqa: ANN201
    """transformers' torch BertForPreTraining: bf16 autocast, SDPA attention, fused AdamW, clipping by norm 1."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    layers, hidden, heads, _, S, _ = shape
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
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

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(**fields, attention_mask=data["segment_ids"], **targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def main() -> None:
    side, name = sys.argv[1], sys.argv[2]
    shape = SHAPES[name]
    run = (ours if side == "ours" else theirs)(shape, shape[3])
    losses = [run() for _ in range(3)]  # compile and warm up
    import importlib.metadata as metadata

    packages = ("jax", "flax") if side == "ours" else ("torch", "transformers")
    versions = {p: metadata.version(p) for p in packages}
    print(json.dumps({"ready": name, "losses": losses, "versions": versions}), flush=True)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        loss = run()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
