"""Choose model, sequence length, batch size and epochs by the machine and the size of the data."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHARACTERS_PER_TOKEN = {True: 4.2, False: 3.3}  # of English, with a published vocabulary or a small trained one
MAX_LENGTH = {"cpu": 128, "gpu": 512, "tpu": 512}
NVIDIA, ACCEL, VFIO = "/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"


def find_device() -> str:
    """`gpu` or `tpu` if this machine has one and JAX's plugin for it is installed, else `cpu`; without loading JAX."""
    wanted = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if wanted in ("cpu", "tpu"):
        return wanted
    if wanted in ("cuda", "gpu"):
        return "gpu"
    if any(map(os.path.exists, (ACCEL, VFIO))) and importlib.util.find_spec("libtpu"):
        return "tpu"
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    return "gpu" if Path(NVIDIA).exists() and any(map(importlib.util.find_spec, plugins)) else "cpu"


@dataclass(frozen=True)
class Machine:
    """Where the run will be trained, and whether it starts from published weights."""

    device: str
    pretrained: str | None
    longest: int = 512  # tokens that the pretrained model reads

    @property
    def is_small(self) -> bool:
        return self.device == "cpu"

    def sequence_length(self, characters: int, least: int = 32, most: int | None = None) -> int:
        """Tokens for texts of so many characters: a multiple of 16 (32 above 128), bounded by what the machine does."""
        tokens = characters / CHARACTERS_PER_TOKEN[self.pretrained is not None] * 1.1 + 3
        step = 16 if tokens <= 128 else 32
        wanted = max(least, min(most or MAX_LENGTH[self.device], -(-int(tokens) // step) * step))
        return min(wanted, self.longest)

    def batch_size(self, length: int) -> int:
        """Rows of a fine-tuning step."""
        if not self.is_small:
            return 32
        return 32 if self.pretrained is None or length <= 64 else 16


def fine_tuning_epochs(machine: Machine, examples: int) -> int:
    """More passes over small data, and more for a model that starts from random weights."""
    epochs = 3 if examples >= 5000 else 5 if examples >= 500 else 10
    return epochs if machine.pretrained else 2 * epochs


def fine_tuning_optimizer(machine: Machine) -> dict[str, Any]:
    if machine.pretrained:
        return {"learning_rate": 2e-5, "warmup_ratio": 0.1}
    return {"kind": "adamw", "learning_rate": 5e-4, "b2": 0.98}


def vocabulary(machine: Machine, size: int) -> int:
    """Entries of a vocabulary trained on `size` bytes of text."""
    if size < 200_000:
        return 1024
    if size < 1_000_000:
        return 2048
    return 4096 if size < 10_000_000 else 8192 if machine.is_small or size < 200_000_000 else 30_592


def bert_sizes(machine: Machine, size: int, length: int, *, pretraining: bool = False) -> dict[str, Any]:
    """A small encoder; for pre-training on an accelerator, one of medium size."""
    width, layers = (128, 2) if machine.is_small else (512, 8) if pretraining else (256, 4)
    if machine.is_small and pretraining:
        width, layers = 256, 4
    sizes = {
        "vocab_size": vocabulary(machine, size), "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "intermediate_size": 4 * width, "max_position_embeddings": max(128, length),
        "initializer_range": 0.06 if width <= 128 else 0.04 if width <= 256 else 0.03, "position_init": "sinusoidal",
    }  # fmt: skip
    return sizes


def t5_sizes(machine: Machine, size: int) -> dict[str, Any]:
    """A small T5 of version 1.1."""
    width, layers, d_ff, heads = (128, 2, 256, 4) if machine.is_small else (512, 6, 1024, 8)
    return {
        "family": "t5", "vocab_size": vocabulary(machine, size), "d_model": width, "d_kv": width // heads, "d_ff": d_ff,
        "num_layers": layers, "num_heads": heads, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "dropout_rate": 0,
    }  # fmt: skip


def pretraining_length(machine: Machine, size: int, steps: int, rows: int, length: int) -> dict[str, Any]:
    """`epochs` for text that is read within `steps` steps of `rows` rows, else `steps`."""
    tokens = size / CHARACTERS_PER_TOKEN[machine.pretrained is not None]
    epoch = max(tokens / (rows * length), 1)
    epochs = min(int(steps / epoch), 40)
    return {"epochs": epochs} if epochs >= 1 else {"steps": steps}
