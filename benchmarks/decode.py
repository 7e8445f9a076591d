"""Cached generation of a T5 against transformers' torch `generate`: tokens a second, interleaved in one run.

    python benchmarks/decode.py
    python benchmarks/decode.py --shapes t5_small --rounds 5 --output benchmarks/results/decode.json

Both sides have the same random weights and inputs and no end-of-sequence id, so that every row gets all its tokens.
`ours` computes in what the commands take on this machine (bfloat16 where the CPU multiplies it), `ours_float32` as
torch does by default; `torch_bfloat16` is torch with its weights in bfloat16. `same_tokens` is the share of equal
tokens of the two float32 sides: 1 unless rounding decides a step. Prints one JSON line a shape and way of decoding,
with ratios of tokens a second, ours over theirs, and of the time on all cores (`cpu_time_of_torch_over_ours`: the best
of torch's data types over the best of ours), for a machine that other programs share. Needs: pip install torch
transformers.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads would spin through our turns
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
from t5_sides import SHAPES, VOCAB, batch, build  # noqa: E402
from turns import provenance, take_turns  # noqa: E402

ROWS, NO_EOS = 8, -1
WAYS = {"greedy": 1, "beam4": 4}
DTYPES = {"torch_float32": "float32", "torch_bfloat16": "bfloat16"}


def torch_model(shape: tuple[int, ...], device: str) -> Any:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    layers, d_model, heads, d_kv, d_ff, *_ = shape
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB, d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=layers, num_heads=heads,
        decoder_start_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).to(device).eval()
    model.generation_config.eos_token_id = None
    return model


def theirs(model: Any, dtype: str, beams: int, ids: np.ndarray, tokens: int) -> Callable[[], np.ndarray]:
    import torch

    model = model if dtype == "float32" else type(model)(model.config).eval().to(model.device, torch.bfloat16)
    model.generation_config.eos_token_id = None
    inputs = torch.tensor(ids, dtype=torch.long, device=model.device)
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": tokens}

    def run() -> np.ndarray:
        with torch.inference_mode():
            found = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)
        return found.cpu().numpy()[:, 1:]

    return run


def ours(program: Any, params: dict[str, Any], beams: int, ids: np.ndarray, tokens: int) -> Callable[[], np.ndarray]:
    """The program's own decoding, placed and jitted as evaluation does it."""
    import jax

    from bertjax.models.decoding.beam import beam_search
    from bertjax.models.decoding.sample import greedy
    from bertjax.training.program import MeshJit

    def decode(params: dict[str, Any], ids: jax.Array, real: jax.Array) -> jax.Array:
        inputs = (program.build_model(params), ids, real, tokens)
        return greedy(*inputs, eos_id=NO_EOS) if beams == 1 else beam_search(*inputs, beam_size=beams, eos_id=NO_EOS)[0]

    jitted = MeshJit(jax.jit(decode), program.mesh, program.rules)
    placed = [jax.device_put(x, program.batch_sharding()) for x in (ids, np.ones_like(ids))]
    return lambda: np.asarray(jitted(params, *placed))


def measure(name: str, length: int, tokens: int, rounds: int, device: str) -> list[dict[str, Any]]:
    shape = SHAPES[name]
    program = build(shape)  # first: it tells the allocator what to do before any thread starts
    import jax
    import jax.numpy as jnp

    from bertjax.interop.t5 import t5_tensor_names

    model = torch_model(shape, device)
    state = {key: x.detach().cpu().numpy() for key, x in model.state_dict().items()}
    placed = program.param_shardings()
    found = {path: state[tensor] for path, tensor in t5_tensor_names(program.model).items()}
    params = {p: jax.device_put(x.T if p.endswith("kernel") else x, placed[p]) for p, x in found.items()}
    ids = batch((*shape[:-3], ROWS, length, tokens), 0)["input_ids"]
    single = replace(program, compute=replace(program.compute, dtype=jnp.dtype("float32")))
    results = []
    for way, beams in WAYS.items():
        steps = {
            "ours": ours(program, params, beams, ids, tokens),
            "ours_float32": ours(single, params, beams, ids, tokens),
        }
        steps |= {side: theirs(model, dtype, beams, ids, tokens) for side, dtype in DTYPES.items()}
        same = float((steps["ours_float32"]() == steps["torch_float32"]()).mean())
        times = take_turns({side: lambda run=run: run().sum() for side, run in steps.items()}, rounds)
        rates = {side: round(1000 * ROWS * tokens / t["median_ms"], 1) for side, t in times.items()}
        about = {"shape": name, "way": way, "rows": ROWS, "inputs": length, "new_tokens": tokens}
        ours_cpu = min(times[side]["cpu_ms"] for side in ("ours", "ours_float32"))
        ratios = {
            "ours_over_torch": round(rates["ours"] / max(rates[side] for side in DTYPES), 2),
            "float32_over_float32": round(rates["ours_float32"] / rates["torch_float32"], 2),
            "cpu_time_of_torch_over_ours": round(min(times[side]["cpu_ms"] for side in DTYPES) / ours_cpu, 2),
        }
        dtype = str(program.compute.dtype)
        results.append(about | ratios | {"tokens_per_second": rates, "ours_dtype": dtype, "same_tokens": same, **times})
    return [one | provenance() | _torch_versions() for one in results]


def _torch_versions() -> dict[str, Any]:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="t5_small", help="of t5_sides.py's SHAPES")
    parser.add_argument("--inputs", type=int, default=64, help="tokens of an input")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-device", default="cpu", help="where torch computes; we take what jax finds")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for name in arguments.shapes.split(","):
        for found in measure(name, arguments.inputs, arguments.tokens, arguments.rounds, arguments.torch_device):
            results.append(found)
            print(json.dumps(found), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
