"""Heads of BERT and of the encoders derived from it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.model import BertConfig
from bertjax.errors import UserError
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.modules import Dense, Initializer, LayerNorm, out_sharding
from bertjax.models.layers.numerics import activation, add_bias, einsum_lowp
from bertjax.parallel.sharding import all_gather_fsdp, with_logical_constraint


def gather_positions(hidden_BSD: jax.Array, positions_BN: jax.Array) -> jax.Array:
    """hidden [B, S, D] at positions [B, N] -> [B, N, D]."""
    return jnp.take_along_axis(hidden_BSD, positions_BN[..., None], axis=1)


class MlmHead(nnx.Module):
    """Dense, activation, layer norm, then the word embeddings as output matrix, and a bias (run_pretraining.py).

    The dense layer maps to the width of the embeddings, E.
    """

    def __init__(self, config: BertConfig, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs):
        D, E = config.hidden_size, config.embedding_width
        self.transform = Dense((D, E), ("embed", None), init, compute, rngs)
        self.norm = LayerNorm(E, config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32), **out_sharding("vocab"))
        # RobertaLMHead and ElectraGeneratorPredictions have gelu, whatever hidden_act is
        self.act = "gelu" if config.family in ("roberta", "electra") else config.hidden_act
        self.compute = compute

    def __call__(self, hidden_BKD: jax.Array, table_VE: jax.Array) -> jax.Array:
        compute = self.compute
        h = activation(self.act, self.transform(hidden_BKD).astype(jnp.float32))
        h = self.norm(h).astype(compute.dtype)
        table = all_gather_fsdp(table_VE.astype(compute.dtype), "vocab", "embed")
        logits = einsum_lowp("bkd,vd->bkv", h, table, compute.platform)
        return with_logical_constraint(add_bias(logits, self.bias[...]), "batch", None, "vocab")


class Pooler(nnx.Module):
    """activation(dense([CLS])) per example of a packed row: the pooler (tanh), or the classifier's own dense layer."""

    def __init__(self, config: BertConfig, act: str, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs):
        D = config.hidden_size
        self.kernel = nnx.Param(init(rngs.params(), (D, D), jnp.float32), **out_sharding("embed", None))
        self.bias = nnx.Param(jnp.zeros((D,), jnp.float32), **out_sharding(None))
        self.act, self.compute = act, compute

    def __call__(self, cls_BGD: jax.Array) -> jax.Array:
        compute = self.compute
        kernel = all_gather_fsdp(self.kernel[...].astype(compute.dtype), "embed", None)
        y = add_bias(einsum_lowp("bgd,df->bgf", cls_BGD, kernel, compute.platform), self.bias[...])
        return (jnp.tanh(y) if self.act == "tanh" else activation(self.act, y)).astype(compute.dtype)


class Output(Dense):
    """A small output layer, x [B, S, D] -> float32 [B, S, F]."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        kernel = all_gather_fsdp(self.kernel[...].astype(self.compute.dtype), *self.names)
        y = einsum_lowp("bsd,df->bsf", x, kernel, self.compute.platform).astype(jnp.float32)
        return add_bias(y, self.bias[...])


class Discriminator(nnx.Module):
    """Whether a token was replaced (ElectraDiscriminatorPredictions): hidden [B, S, D] -> logits, float32 [B, S]."""

    def __init__(self, config: BertConfig, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs):
        D = config.hidden_size
        self.dense = Dense((D, D), ("embed", None), init, compute, rngs)
        self.output = Output((D, 1), ("embed", None), init, compute, rngs)
        self.act, self.compute = config.hidden_act, compute

    def __call__(self, hidden_BSD: jax.Array) -> jax.Array:
        h = activation(self.act, self.dense(hidden_BSD).astype(jnp.float32)).astype(self.compute.dtype)
        return self.output(h)[..., 0]


class LayerMix(nnx.Module):
    """gamma * sum_l softmax(weights)_l h_l over the embeddings and all layers (ELMo, arXiv 1802.05365, equation 1).

    `normalize`: a layer norm without parameters of each h_l first (`do_layer_norm` of AllenNLP's ScalarMix), for models
    whose states have no norm.
    """

    def __init__(self, states: int, compute: ComputeOptions, normalize: bool = False):
        self.weights = nnx.Param(jnp.zeros((states,), jnp.float32), **out_sharding(None))
        self.gamma = nnx.Param(jnp.ones((1,), jnp.float32), **out_sharding(None))
        self.compute, self.normalize = compute, normalize

    def __call__(self, states_BSND: jax.Array) -> jax.Array:
        """-> [B, S, D], summed in float32."""
        states = states_BSND.astype(jnp.float32)
        if self.normalize:
            states = jax.nn.standardize(states, axis=-1, epsilon=1e-12)
        shares = jax.nn.softmax(self.weights[...])
        mixed = (shares[:, None] * states).sum(-2)
        return (self.gamma[...] * mixed).astype(self.compute.dtype)


class Heads(nnx.Module):
    """The heads `names`; a pooler also where a head reads it: nsp, sop, and a classifier without a dense layer.

    `generator`, which has layers, is added by the model. `mixed`: the number of hidden states whose mixture the heads
    read; 0: they read one.
    """

    def __init__(
        self, config: BertConfig, names: tuple[str, ...], num_labels: int, init: Initializer, compute: ComputeOptions,
        rngs: nnx.Rngs, mixed: int = 0,
    ):  # fmt: skip
        if other := set(names) - set(config.heads):
            known = ", ".join(config.heads)
            raise UserError(f"a {config.family} model has no head '{min(other)}'; it can have {known}")
        D, dense = config.hidden_size, config.classifier_dense
        output = lambda width: Output((D, width), ("embed", None), init, compute, rngs)  # noqa: E731
        if "mlm" in names:
            self.mlm = MlmHead(config, init, compute, rngs)
        if {"nsp", "sop", "pooler", *([] if dense else ["classifier"])} & set(names):
            self.pooler = Pooler(config, "tanh", init, compute, rngs)
        if "nsp" in names:
            self.nsp = output(2)
        if "sop" in names:
            self.sop = output(2)
        if "discriminator" in names:
            self.discriminator = Discriminator(config, init, compute, rngs)
        if "qa" in names:
            self.qa = output(2)
        if "classifier" in names:
            if dense:
                self.pre_classifier = Pooler(config, dense, init, compute, rngs)
            self.classifier = output(num_labels)
        if "token_classifier" in names:
            self.token_classifier = output(num_labels)
        if mixed:
            self.layer_mix = LayerMix(mixed, compute)


def find_heads(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that {path: parameter} holds: pooler only where no other head reads it."""
    inside = {path.split("/")[1] for path in params if path.startswith("heads/")}
    known = ("mlm", "nsp", "sop", "generator", "discriminator", "qa", "classifier", "token_classifier")
    heads = tuple(head for head in known if head in inside)
    readers = {"nsp", "sop", *(["classifier"] if "pre_classifier" not in inside else [])}
    return (*heads, "pooler") if "pooler" in inside and not readers & inside else heads
