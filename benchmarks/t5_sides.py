"""T5's sides of the benchmarks: our span-corruption step and transformers' torch T5, both with Adafactor."""

import numpy as np

# name: (layers of each stack, d_model, heads, d_kv, d_ff, rows, inputs, targets); version 1.0, 512 -> 114 as the paper
SHAPES = {
    "t5_tiny": (2, 128, 2, 64, 256, 4, 128, 32),
    "t5_mini": (4, 256, 4, 64, 1024, 8, 128, 32),
    "t5_small": (6, 512, 8, 64, 2048, 4, 512, 114),
    "t5_base": (12, 768, 12, 64, 3072, 2, 512, 114),
    "t5_large": (24, 1024, 16, 64, 4096, 2, 512, 114),
}
VOCAB = 32128


def batch(shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Random rows in the layout of the data pipeline, every position real."""
    *_, rows, S, T = shape
    rng = np.random.default_rng(seed)
    out = {}
    for prefix, ids, length in (("", "input_ids", S), ("target_", "target_ids", T)):
        out[ids] = rng.integers(3, 32000, (rows, length), np.int32)
        out[f"{prefix}segment_ids"] = np.ones((rows, length), np.int32)
        out[f"{prefix}positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return out | {"target_weights": np.ones((rows, T), np.float32)}


def build(shape: tuple[int, ...], **options):  # noqa: ANN003, ANN201
    """The shipped Program of a shape; `options` are keys of the configuration's `run`."""
    from bertjax.parallel.host_allocator import cpu_only, keep_freed_memory
    from bertjax.parallel.mesh import make_mesh

    if cpu_only():  # as the commands do, before jax starts its threads
        keep_freed_memory()

    from bertjax.config.loading.load import build as config_of
    from bertjax.training.program import stage_program

    layers, d_model, heads, d_kv, d_ff, *_ = shape
    model = {
        "family": "t5", "vocab_size": VOCAB, "d_model": d_model, "d_kv": d_kv, "d_ff": d_ff, "num_layers": layers,
        "num_heads": heads,
    }  # fmt: skip
    stage = {
        "name": "bench",
        "data": {"source": {"kind": "stdlib_docs"}, "preprocess": {"kind": "span_corruption"}},
        "objective": {"kind": "text_to_text"},
        "optimizer": {"kind": "adafactor"},
        "steps": 10000,
    }
    config = config_of({"model": model, "tokenizer": {"kind": "sentencepiece"}, "run": options, "stages": [stage]})
    return stage_program(config, config.stages[0], make_mesh(config.mesh), 10000)


def theirs(shape: tuple[int, ...], device: str = "cpu", compiled: bool = False):  # noqa: ANN201
    """transformers' torch T5ForConditionalGeneration in bf16 autocast with transformers' own Adafactor."""
    import torch
    from transformers import Adafactor, T5Config, T5ForConditionalGeneration

    layers, d_model, heads, d_kv, d_ff, *_ = shape
    config = T5Config(
        vocab_size=VOCAB, d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=layers, num_heads=heads,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).to(device).train()
    optimizer = Adafactor(model.parameters(), lr=1e-2, scale_parameter=True, relative_step=False, warmup_init=False)
    rows = batch(shape, 0)
    fields = {"input_ids": "input_ids", "attention_mask": "segment_ids", "labels": "target_ids"}
    data = {theirs: torch.from_numpy(rows[name]).to(device).long() for theirs, name in fields.items()}
    forward = torch.compile(model) if compiled else model

    def run() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(**data).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run
