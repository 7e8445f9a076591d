"""Heads of BERT and DistilBERT: MLM, NSP, answer spans and classification."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.model import BertConfig
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.modules import Dense, Initializer, LayerNorm, out_sharding
from bertjax.models.layers.numerics import activation, add_bias, einsum_lowp
from bertjax.parallel.sharding import all_gather_fsdp, with_logical_constraint


def gather_positions(hidden_BSD: jax.Array, positions_BN: jax.Array) -> jax.Array:
    """hidden [B, S, D] at positions [B, N] -> [B, N, D]."""
    return jnp.take_along_axis(hidden_BSD, positions_BN[..., None], axis=1)


class MlmHead(nnx.Module):
    """Dense, activation, layer norm, then the word embeddings as output matrix, and a bias (run_pretraining.py)."""

    def __init__(self, config: BertConfig, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs):
        D = config.hidden_size
        self.transform = Dense((D, D), ("embed", None), init, compute, rngs)
        self.norm = LayerNorm(D, config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32), **out_sharding("vocab"))
        self.act, self.compute = config.hidden_act, compute

    def __call__(self, hidden_BKD: jax.Array, table_VD: jax.Array) -> jax.Array:
        compute = self.compute
        h = activation(self.act, self.transform(hidden_BKD).astype(jnp.float32))
        h = self.norm(h).astype(compute.dtype)
        table = all_gather_fsdp(table_VD.astype(compute.dtype), "vocab", "embed")
        logits = einsum_lowp("bkd,vd->bkv", h, table, compute.platform)
        return with_logical_constraint(add_bias(logits, self.bias[...]), "batch", None, "vocab")


class Pooler(nnx.Module):
    """tanh(dense([CLS])) per example of a packed row; relu in DistilBERT."""

    def __init__(self, config: BertConfig, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs):
        D = config.hidden_size
        self.kernel = nnx.Param(init(rngs.params(), (D, D), jnp.float32), **out_sharding("embed", None))
        self.bias = nnx.Param(jnp.zeros((D,), jnp.float32), **out_sharding(None))
        self.act = "tanh" if "pooler" in config.heads else "relu"
        self.compute = compute

    def __call__(self, cls_BGD: jax.Array) -> jax.Array:
        compute = self.compute
        kernel = all_gather_fsdp(self.kernel[...].astype(compute.dtype), "embed", None)
        y = add_bias(einsum_lowp("bgd,df->bgf", cls_BGD, kernel, compute.platform), self.bias[...])
        return (jax.nn.relu if self.act == "relu" else jnp.tanh)(y).astype(compute.dtype)


class Output(Dense):
    """A small output layer, x [B, S, D] -> float32 [B, S, F]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = all_gather_fsdp(self.kernel[...].astype(self.compute.dtype), *self.names)
        y = einsum_lowp("bsd,df->bsf", x, kernel, self.compute.platform).astype(jnp.float32)
        return add_bias(y, self.bias[...])


class Heads(nnx.Module):
    """The heads `names`: mlm, nsp, qa, classifier, and pooler if no other head reads it."""

    def __init__(
        self, config: BertConfig, names: tuple[str, ...], num_labels: int, init: Initializer, compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        if other := set(names) - set(config.heads):
            known = ", ".join(config.heads)
            raise ValueError(f"a {config.family} model has no head '{min(other)}'; it can have {known}")
        D, has_pooler = config.hidden_size, "pooler" in config.heads
        output = lambda width: Output((D, width), ("embed", None), init, compute, rngs)  # noqa: E731
        if "mlm" in names:
            self.mlm = MlmHead(config, init, compute, rngs)
        if has_pooler and {"nsp", "classifier", "pooler"} & set(names):
            self.pooler = Pooler(config, init, compute, rngs)
        if "nsp" in names:
            self.nsp = output(2)
        if "qa" in names:
            self.qa = output(2)
        if "classifier" in names:
            if not has_pooler:
                self.pre_classifier = Pooler(config, init, compute, rngs)
            self.classifier = output(num_labels)


def find_heads(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that {path: parameter} holds: mlm, nsp, qa, classifier, and pooler where no other head reads it."""
    inside = {path.split("/")[1] for path in params if path.startswith("heads/")}
    heads = tuple(head for head in ("mlm", "nsp", "qa", "classifier") if head in inside)
    return (*heads, "pooler") if "pooler" in inside and not {"nsp", "classifier"} & inside else heads
