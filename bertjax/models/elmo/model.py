"""ELMo (arXiv 1802.05365): forward and backward LSTM language models that share embeddings and softmax.

Tokens are word pieces in place of the paper's characters; the reference (allenai/bilm-tf) also clips cells and
projections, and samples the softmax.

B rows, S positions, D width of one direction, H cells, V vocabulary, G examples in a row.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.ladder_models import ElmoConfig
from bertjax.models import task_heads
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.elmo.lstm import run_lstm
from bertjax.models.families import Family
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.modules import Embed, Initializer, out_sharding
from bertjax.models.layers.numerics import add_bias, einsum_lowp
from bertjax.models.peft_options import PeftOptions
from bertjax.models.task_heads import TASK_HEADS, TaskHeads, put_mean_first
from bertjax.models.vocab_parallel import embedding_lookup
from bertjax.parallel.sharding import all_gather_fsdp, unshard, with_logical_constraint


def kernel_init(width: int) -> Initializer:
    """Uniform in +-1 / sqrt(width), as torch.nn.LSTM."""
    bound = width**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Lstm(nnx.Module):
    """One direction of a layer: x [B, S, D] -> float32 [B, S, D]."""

    def __init__(self, config: ElmoConfig, compute: ComputeOptions, rngs: nnx.Rngs):
        D, H, init = config.embedding_width, config.hidden_size, kernel_init(config.hidden_size)
        names = ("embed", None, "mlp")
        self.kernel = nnx.Param(init(rngs.params(), (D, 4, H), jnp.float32), **out_sharding(*names))
        self.recurrent_kernel = nnx.Param(init(rngs.params(), (D, 4, H), jnp.float32), **out_sharding(*names))
        self.bias = nnx.Param(jnp.zeros((4, H), jnp.float32).at[1].set(1.0), **out_sharding(None, "mlp"))
        if config.projection_size is not None:
            self.projection_kernel = nnx.Param(init(rngs.params(), (H, D), jnp.float32), **out_sharding("mlp", "embed"))
        self.compute = compute

    def __call__(self, x_BSD: jax.Array, starts_BS: jax.Array) -> jax.Array:
        """The state begins again at `starts`. The products of all inputs are one matmul before the recurrence."""
        gathered = lambda p, *names: all_gather_fsdp(p[...].astype(self.compute.dtype), *names)  # noqa: E731
        names, projection = ("embed", None, "mlp"), None
        z = einsum_lowp("bsd,dgh->bsgh", x_BSD, gathered(self.kernel, *names), self.compute.platform)
        z = add_bias(z, unshard(self.bias[...], None, "mlp")).astype(self.compute.dtype)
        z = with_logical_constraint(z, "batch", None, None, "mlp")
        if hasattr(self, "projection_kernel"):
            projection = gathered(self.projection_kernel, "mlp", "embed")
        y = run_lstm(z, starts_BS, gathered(self.recurrent_kernel, *names), projection)
        return with_logical_constraint(y, "batch", None, None)


class Layer(nnx.Module):
    """A forward and a backward LSTM: x [B, S, 2 D], each half the input of its direction, -> [B, S, 2 D]."""

    def __init__(self, config: ElmoConfig, compute: ComputeOptions, rngs: nnx.Rngs):
        self.forward, self.backward = Lstm(config, compute, rngs), Lstm(config, compute, rngs)
        self.rate, self.compute = config.hidden_dropout_prob, compute

    def __call__(self, x: jax.Array, segment_ids: jax.Array, key: jax.Array | None) -> jax.Array:
        """States begin again where the segment changes: examples and padding do not see each other."""
        left, right = jnp.split(dropout(x, self.rate, key, self.compute), 2, axis=-1)
        changes = segment_ids[:, 1:] != segment_ids[:, :-1]
        edge = jnp.ones_like(segment_ids[:, :1], bool)
        ahead = self.forward(left, jnp.concatenate([edge, changes], axis=1))
        starts = jnp.flip(jnp.concatenate([changes, edge], axis=1), 1)
        back = jnp.flip(self.backward(jnp.flip(right, 1), starts), 1)
        return jnp.concatenate([ahead, back], axis=-1).astype(self.compute.dtype)


class LmHead(nnx.Module):
    """The bias of the softmax that both directions share; its matrix is the token embeddings."""

    def __init__(self, vocab_size: int):
        self.bias = nnx.Param(jnp.zeros((vocab_size,), jnp.float32), **out_sharding("vocab"))


class Elmo(nnx.Module):
    """Encoder and heads; all methods are pure. States are [forward; backward], token embeddings [x; x].

    A classifier reads [CLS], whose forward state has seen no other token: `encode` puts the mean over the tokens of
    each example there. `token_states` has every token's own.
    """

    put_summary = staticmethod(put_mean_first)
    encode, features, hidden_states = task_heads.encode, task_heads.features, task_heads.hidden_states
    mix_layers, class_logits = task_heads.mix_layers, task_heads.class_logits
    token_logits, qa_logits = task_heads.token_logits, task_heads.qa_logits

    def __init__(
        self, config: ElmoConfig, heads: tuple[str, ...], num_labels: int, compute: ComputeOptions, rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):  # fmt: skip
        init = nnx.initializers.normal(config.initializer_range)
        self.embeddings = nnx.Dict(word=Embed(config.vocab_size, config.embedding_width, init, rngs))
        self.layers = nnx.List([Layer(config, compute, rngs) for _ in range(config.num_hidden_layers)])
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        width = 2 * config.embedding_width
        mixed = 1 + config.num_hidden_layers if peft.feature_layers == "weighted" else 0
        self.heads = TaskHeads(width, heads, config.heads, num_labels, rate, init, compute, rngs, mixed)
        if "lm" in heads:
            self.heads.lm = LmHead(config.vocab_size)
        self.config, self.compute, self.feature_layers = config, compute, peft.feature_layers

    def all_states(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
        packed: bool = False, key: jax.Array | None = None,
    ) -> list[jax.Array]:  # fmt: skip
        """int [B, S] x 4 -> the embeddings and each layer, all [B, S, 2 D], of each token.

        `segment_ids` is 0 on padding and numbers examples, packed or not; token types and positions are not read.
        """
        x = embedding_lookup(self.embeddings["word"].embedding[...], input_ids).astype(self.compute.dtype)
        states = [with_logical_constraint(jnp.concatenate([x, x], axis=-1), "batch", None, None)]
        for number, layer in enumerate(self.layers):
            own = None if key is None else jax.random.fold_in(key, number)
            step = layer if self.compute.remat == "none" else jax.checkpoint(layer)
            y = step(states[-1], segment_ids, own)
            states.append(y + states[-1] if number else y)  # residual between layers
        return states

    def token_states(self, *fields: jax.Array, packed: bool = False, key: jax.Array | None = None) -> jax.Array:
        """The top layer of `all_states`, [B, S, 2 D]."""
        return self.all_states(*fields, packed=packed, key=key)[-1]

    def lm_logits(self, hidden: jax.Array) -> jax.Array:
        """States of one direction [B, S, D] -> logits [B, S, V] of the token that it predicts."""
        compute = self.compute
        table = all_gather_fsdp(self.embeddings["word"].embedding[...].astype(compute.dtype), "vocab", "embed")
        logits = einsum_lowp("bsd,vd->bsv", hidden, table, compute.platform)
        return with_logical_constraint(add_bias(logits, self.heads.lm.bias[...]), "batch", None, "vocab")


def find_heads(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that {path: parameter} holds."""
    inside = {path.split("/")[1] for path in params if path.startswith("heads/")}
    return tuple(name for name in ("lm", *TASK_HEADS) if name in inside)


def row_flops(
    model: ElmoConfig, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], peft: PeftOptions
) -> int:
    """FLOPs of a training step for one row of S tokens: 2 S (8 D H + H P) each direction and layer, and the logits.

    Trained layers and those above the lowest of them cost their product again for the gradient of their inputs, and
    trained ones once more; the softmax is that of both directions.
    """
    S, D, H = widths["input_ids"], model.embedding_width, model.hidden_size
    if "features" in widths:  # a cache has the outputs of the encoder
        return 0
    layer = 2 * 2 * S * (8 * D * H + (H * D if model.projection_size is not None else 0))
    trained = [f"layers/{number}" in groups for number in range(model.num_hidden_layers)]
    below = "embeddings" in groups
    total = 0
    for trains in trained:
        below = below or trains
        total += layer * (1 + below + trains)
    logits = 2 * 2 * S * D * model.vocab_size * (1 + below + ("embeddings" in groups))
    return total + (logits if "lm" in heads else 0)


ELMO = Family(
    build=Elmo,
    find_heads=find_heads,
    row_flops=row_flops,
    encoder_inputs=lambda model: ("input_ids", "token_type_ids", "segment_ids", "positions"),
)
