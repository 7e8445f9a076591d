"""What is measured on each platform: the sides of a comparison, shapes with their rows, and the parts of a call.

The sides whose names end in `nodrop` (and cuDNN and splash, which have none) have no dropout on attention
probabilities, all others 0.1; hidden dropout is 0.1 everywhere. Fused attention is the package's own kernel.
"""

from dataclasses import dataclass
from typing import Any

from step_worker import SHAPES
from t5_sides import SHAPES as T5_SHAPES

NODROP = {"attention_dropout": 0.0}
CUDNN = {"attention": "cudnn"} | NODROP
SPLASH = {"attention": "splash"} | NODROP
SIDES: dict[str, tuple[str, dict[str, Any]]] = {  # name: (whose, options of step_worker.py)
    "xla": ("ours", {"attention": "xla"}),
    "xla_nodrop": ("ours", {"attention": "xla"} | NODROP),
    "fused": ("ours", {"attention": "fused"}),
    "fused_nodrop": ("ours", {"attention": "fused"} | NODROP),
    "cudnn": ("ours", CUDNN),
    "splash": ("ours", SPLASH),
    "cudnn_scan": ("ours", CUDNN | {"segments": "scan"}),
    "cudnn_threefry": ("ours", CUDNN | {"dropout_rng": "threefry"}),
    "splash_list": ("ours", SPLASH | {"segments": "list"}),
    "xla_fp8": ("ours", {"attention": "xla", "dense_dtype": "fp8"}),
    "cudnn_fp8": ("ours", CUDNN | {"dense_dtype": "fp8"}),
    "torch_eager": ("torch", {}),
    "torch_eager_nodrop": ("torch", NODROP),
    "torch_compile": ("torch", {"compiled": True}),
    "torch_compile_nodrop": ("torch", {"compiled": True} | NODROP),
}
RATIOS = (  # name: time of the first over time of the second, in one run
    ("torch_eager_over_xla", "torch_eager", "xla"),
    ("torch_compile_over_xla", "torch_compile", "xla"),
    ("torch_compile_over_fused", "torch_compile", "fused"),
    ("torch_eager_over_cudnn", "torch_eager_nodrop", "cudnn"),
    ("torch_compile_over_cudnn", "torch_compile_nodrop", "cudnn"),
    ("xla_over_fused", "xla", "fused"),
    ("xla_over_fused_nodrop", "xla_nodrop", "fused_nodrop"),
    ("xla_over_cudnn", "xla_nodrop", "cudnn"),
    ("xla_over_splash", "xla_nodrop", "splash"),
    ("fused_over_cudnn", "fused_nodrop", "cudnn"),
    ("fused_over_splash", "fused_nodrop", "splash"),
    ("scan_over_list", "cudnn_scan", "cudnn"),
    ("list_over_scan", "splash_list", "splash"),
    ("threefry_over_hash", "cudnn_threefry", "cudnn"),
    ("bfloat16_over_fp8", "cudnn", "cudnn_fp8"),
    ("bfloat16_over_fp8", "xla", "xla_fp8"),
)


@dataclass(frozen=True)
class Part:
    """One part of a call.

    Attributes:
        name: in the results.
        kind: steps, kernels, decode, parity or flags.
        shape: of step_worker.py or t5_sides.py.
        rows: of each device; 0: those of the shape.
        sides: of a comparison of steps, those of `SIDES`.
        packed: examples in each row of BERT.
        seconds: what it should take, for the budget.
    """

    name: str
    kind: str
    shape: str
    rows: int = 0
    sides: tuple[str, ...] = ()
    packed: int = 1
    seconds: float = 45.0

    @property
    def is_t5(self) -> bool:
        return self.shape in T5_SHAPES

    @property
    def row_count(self) -> int:
        return self.rows or (T5_SHAPES[self.shape][5] if self.is_t5 else SHAPES[self.shape][3])


TORCH = ("torch_eager", "torch_compile")
TORCH_NODROP = ("torch_eager_nodrop", "torch_compile_nodrop")
OURS = {
    "gpu": ("xla", "fused", "xla_nodrop", "fused_nodrop", "cudnn"),
    "tpu": ("xla", "fused", "xla_nodrop", "fused_nodrop", "splash"),
}
FP8 = {"gpu": ("cudnn", "cudnn_fp8"), "tpu": ("xla", "xla_fp8")}
ROWS = {  # of each device
    "gpu": {"base128": 128, "base512": 32, "large128": 64, "large512": 16, "t5_base": 16, "t5_large": 8},
    "tpu": {"base128": 64, "base512": 16, "large128": 16, "large512": 4, "t5_base": 8, "t5_large": 2},
}
# Parts by how much they are wanted: the last ones are left out first when time runs out.
ORDER = (
    "base512", "kernels", "t5_base", "fp8", "fp8_parity", "large512", "decode", "packed", "base128", "large128",
    "t5_large",
)  # fmt: skip


def list_parts(platform: str, shapes: list[str] | None = None, on_cpu: bool = False) -> list[Part]:
    """All parts of a platform ("gpu" or "tpu"), the most wanted first; or those of some shapes, with their own rows.

    `on_cpu`: what a CPU can run of them, to check the code.
    """
    rows = ROWS[platform] if shapes is None else dict.fromkeys(shapes, 0)
    torch = platform == "gpu"
    found = []
    for shape, count in rows.items():
        seconds = _estimate(shape, platform)
        if shape in T5_SHAPES:
            sides = ("xla", "fused", *(TORCH if torch else ()))
            found.append(Part(shape, "steps", shape, count, sides, seconds=seconds))
            continue
        sides = (*OURS[platform], *(TORCH + TORCH_NODROP if torch else ()))
        found.append(Part(shape, "steps", shape, count, sides, seconds=seconds))
        if not shape.endswith("128") or shapes is not None:
            found.append(Part(f"{shape}_packed", "steps", shape, count, OURS[platform], 4, seconds))
    bert = [shape for shape in rows if shape not in T5_SHAPES]
    if bert:
        chosen = "base512" if "base512" in bert else bert[0]
        found.append(Part("kernels", "kernels", chosen, rows[chosen], seconds=40))
        found.append(
            Part(
                "fp8",
                "steps",
                chosen,
                2 * rows[chosen],
                FP8["tpu" if on_cpu else platform],
                seconds=_estimate(chosen, platform),
            )
        )
        short = "base128" if "base128" in bert else bert[0]
        found.append(Part("fp8_parity", "parity", short, 32 if shapes is None else 0, seconds=60))
    if decoders := [shape for shape in rows if shape in T5_SHAPES]:
        found.append(Part("decode", "decode", decoders[0], seconds=60))
    return sorted(found, key=_rank)


def _estimate(shape: str, platform: str) -> float:
    """Starting and compiling take most of it. On a GPU the sides compile at the same time."""
    seconds = 60.0 if "large" in shape else 40.0
    return seconds if platform == "gpu" else 4 * seconds


def _rank(part: Part) -> int:
    name = "packed" if part.packed > 1 else part.name
    return ORDER.index(name) if name in ORDER else 0
