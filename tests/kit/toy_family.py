"""A model family of the tests' own: embeddings, feed-forward layers, one head. It needs only `SECTION` and `RECORD`."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.base import Positive, Section
from bertjax.models import layer_stack
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.families import Family
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.modules import Dense, LayerNorm, out_sharding
from bertjax.models.vocab_parallel import embedding_lookup

INIT = nnx.initializers.normal(0.1)


class ToyConfig(Section):
    implementation: ClassVar[str] = "toy_family:RECORD"
    tokenizer: ClassVar[str] = "wordpiece"
    heads: ClassVar[tuple[str, ...]] = ("toy",)
    stacks: ClassVar[tuple[str, ...]] = ("",)
    has_adapters: ClassVar[bool] = False
    max_length: ClassVar[int | None] = None
    num_attention_heads: ClassVar[int] = 1

    family: Literal["toy"] = "toy"
    vocab_size: Positive = 128
    width: Positive = 16
    num_hidden_layers: Positive = 2

    @property
    def intermediate_size(self) -> int:
        return self.width


class Embeddings(nnx.Module):
    def __init__(self, config: ToyConfig, rngs: nnx.Rngs):
        table = INIT(rngs.params(), (config.vocab_size, config.width), jnp.float32)
        self.word = nnx.Param(table, **out_sharding("vocab", "embed"))


class Layer(nnx.Module):
    def __init__(self, config: ToyConfig, compute: ComputeOptions, rngs: nnx.Rngs):
        self.mlp = Dense((config.width, config.width), ("embed", "mlp"), INIT, compute, rngs)
        self.norm = LayerNorm(config.width, 1e-6)
        self.compute = compute

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return self.norm(x + dropout(jax.nn.relu(self.mlp(x)), 0.1, key, self.compute))


class Toy(nnx.Module):
    def __init__(
        self, config: ToyConfig, heads: tuple[str, ...], num_labels: int, compute: ComputeOptions, rngs: nnx.Rngs
    ):
        self.embeddings = Embeddings(config, rngs)
        self.layers = nnx.List([Layer(config, compute, rngs) for _ in range(config.num_hidden_layers)])
        self.heads = nnx.Dict(toy=Dense((config.width, num_labels), ("embed", None), INIT, compute, rngs))
        self.config, self.compute = config, compute

    def encode(self, input_ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """int [B, S] -> [B, S, D]."""
        x = embedding_lookup(self.embeddings.word[...], input_ids).astype(self.compute.dtype)
        call = lambda layer, x, key: layer(x, key)  # noqa: E731
        return layer_stack.apply_layers(list(self.layers), x, call, key, self.compute, heads=1)

    def toy_logits(self, hidden: jax.Array) -> jax.Array:
        """[B, S, D] -> float32 [B, S, C]."""
        return self.heads["toy"](hidden).astype(jnp.float32)


def row_flops(model: ToyConfig, widths: Any, heads: Any, groups: Any, adapter_size: int) -> int:
    return 6 * model.num_hidden_layers * model.width**2 * widths["input_ids"]


SECTION = ToyConfig
RECORD = Family(
    build=lambda config, heads, num_labels, compute, rngs, _: Toy(config, heads, num_labels, compute, rngs),
    find_heads=lambda params: ("toy",),
    row_flops=row_flops,
)
