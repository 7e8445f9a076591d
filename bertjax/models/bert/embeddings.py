"""Embeddings of BERT and of the encoders derived from it, and the initializers of all their weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.model import BertConfig
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.modules import Dense, Embed, Initializer, LayerNorm
from bertjax.models.sequence_parallel import map_shards
from bertjax.models.vocab_parallel import embedding_lookup, replicated_lookup
from bertjax.parallel.sharding import all_gather_fsdp, with_logical_constraint


def initializer(config: BertConfig) -> Initializer:
    """Normal, truncated at two standard deviations, as tf.truncated_normal_initializer."""
    return nnx.initializers.truncated_normal(config.initializer_range / 0.87962566)


def sinusoidal_init(config: BertConfig) -> Initializer:
    """Initial learnt positions: sin and cos of arXiv 1706.03762 section 3.5, scaled like the word embeddings.

    A shift is one linear map of all positions, so that attention to a neighbour need not be learnt per position.
    """

    def init(_key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        half = (shape[1] + 1) // 2
        rates = 10000.0 ** (-jnp.arange(half) / half)
        angles = jnp.arange(shape[0])[:, None] * rates
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, : shape[1]]
        return (waves * 2**0.5 * config.initializer_range).astype(dtype)

    return init


def roberta_positions(ids: jax.Array, positions: jax.Array, padding: int) -> jax.Array:
    """int [B, S] rows of the position embeddings, as `create_position_ids_from_input_ids` of modeling_roberta.py.

    They begin at `padding` + 1 in each example. The id of padding inside a text is at `padding` and counts no place.
    `positions` [B, S] count from 0 in each example of a row.
    """
    is_pad = (ids == padding).astype(positions.dtype)
    before = jnp.cumsum(is_pad, axis=1) - is_pad
    first = jnp.maximum(jnp.arange(ids.shape[1], dtype=positions.dtype) - positions, 0)
    own = before - jnp.take_along_axis(before, first, axis=1)
    return jnp.where(is_pad > 0, padding, positions - own + padding + 1)


class Embeddings(nnx.Module):
    """Word + position (+ segment) embeddings, layer norm, dropout; factorized ones (ALBERT, ELECTRA) are projected."""

    def __init__(self, config: BertConfig, compute: ComputeOptions, rngs: nnx.Rngs):
        init, width = initializer(config), config.embedding_width
        start = sinusoidal_init(config) if config.position_init == "sinusoidal" else init
        self.word = Embed(config.vocab_size, width, init, rngs)
        self.position = Embed(config.max_position_embeddings, width, start, rngs, (None, "embed"))
        if config.type_vocab_size:
            self.token_type = Embed(config.type_vocab_size, width, init, rngs, (None, "embed"))
        if config.embedding_norm:
            self.norm = LayerNorm(config.embedding_width, config.layer_norm_eps)
        if config.projects_embeddings:
            shape = (config.embedding_width, config.hidden_size)
            self.project = Dense(shape, ("embed", None), init, compute, rngs)
        self.rate, self.compute = config.hidden_dropout_prob, compute
        self.padding = getattr(config, "pad_token_id", None)

    def __call__(self, ids: jax.Array, types: jax.Array, positions: jax.Array, key: jax.Array | None) -> jax.Array:
        """int [B, S] x 3 -> [B, S, D]; no dropout without a key."""
        x = self.sum(ids, types, positions, key)
        return with_logical_constraint(self.project(x), "batch", "sequence", None) if hasattr(self, "project") else x

    def sum(self, ids: jax.Array, types: jax.Array, positions: jax.Array, key: jax.Array | None) -> jax.Array:
        """The embeddings before their projection, [B, S, E]."""
        x = embedding_lookup(self.word.embedding[...], ids)
        positions = positions if self.padding is None else roberta_positions(ids, positions, self.padding)
        table = all_gather_fsdp(self.position.embedding[...], None, "embed")
        x = x + replicated_lookup(lambda table, positions: jnp.take(table, positions, axis=0), table, positions)
        if hasattr(self, "token_type"):
            table = all_gather_fsdp(self.token_type.embedding[...], None, "embed")
            if table.shape[0] == 1:  # one kind of segment: whatever the row says
                types = jnp.zeros_like(types)
            one_hot = lambda table, ids: jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype) @ table  # noqa: E731
            x = x + replicated_lookup(one_hot, table, types)
        x = with_logical_constraint(x, "batch", "sequence", None)
        x = (map_shards(self.norm, x) if hasattr(self, "norm") else x).astype(self.compute.dtype)
        return dropout(x, self.rate, key, self.compute)
