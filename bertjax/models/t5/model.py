"""T5 (arXiv 1910.10683): pre-norm encoder and decoder, or decoder-only as a causal or prefix language model.

Semantics as in t5x (examples/t5, examples/decoder_only) and transformers' T5: v1.0 with ReLU and tied embeddings, v1.1
with gated GELU and a separate output matrix. As in t5x, dropout has one mask for all positions of a row, and in
decoder-only models, whose buckets are one-directional, later keys (of a prefix) have distance 0.
B rows, S inputs, T targets, D d_model, H heads, K d_kv, F d_ff, V vocabulary.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.model import T5Config
from bertjax.models import layer_stack
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.families import Family
from bertjax.models.fused_attention.sharded import KeyMask
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.modules import Embed, Linear, RmsNorm
from bertjax.models.layers.numerics import activation, einsum_lowp
from bertjax.models.peft_options import PeftOptions
from bertjax.models.sequence_parallel import LogicalArray, all_gather_sequence, map_shards, unshard_sequence
from bertjax.models.t5 import attention, cache
from bertjax.models.t5.attention import CachedKeysValues, KeysValues, Visible
from bertjax.models.t5.flops import row_flops
from bertjax.models.vocab_parallel import embedding_lookup
from bertjax.parallel.sharding import all_gather_fsdp, with_logical_constraint

BIAS_AXES = {2: ("heads", None), 4: (None, "heads", None, None)}  # logical axes of a position bias by its number


def shift_right(target_ids: jax.Array, target_positions: jax.Array, start: int = 0) -> jax.Array:
    """Targets -> decoder inputs, int32 [B, T]: shifted right, with `start` at the beginning of each packed example.

    seqio utils.py make_autoregressive_inputs, whose start is 0; transformers has T5Config.decoder_start_token_id.
    """
    return jnp.where(target_positions == 0, start, jnp.roll(target_ids, 1, axis=1))


class Embeddings(nnx.Module):
    """One table for encoder inputs, decoder inputs and, when tied, the output."""

    def __init__(self, config: T5Config, compute: ComputeOptions, rngs: nnx.Rngs):
        self.word = Embed(config.vocab_size, config.d_model, nnx.initializers.normal(1.0), rngs)
        self.rate, self.compute = config.dropout_rate, compute

    def __call__(self, ids: jax.Array, key: jax.Array | None) -> jax.Array:
        x = embedding_lookup(self.word.embedding[...], ids).astype(self.compute.dtype)
        x = with_logical_constraint(x, "batch", "sequence", None)
        return dropout(x, self.rate, key, self.compute, broadcast_length=True)


class Mlp(nnx.Module):
    """x + dropout(output(dropout(act(intermediate(norm(x)))))) with F inner columns; `gated`: times gate(norm(x))."""

    def __init__(
        self, config: T5Config, F: int, act: str, gated: bool, compute: ComputeOptions, rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):  # fmt: skip
        D, linear = config.d_model, attention.linear_layers(compute, rngs, peft)
        self.intermediate = linear((D, F), ("embed", "mlp"), D**-0.5, "mlp_intermediate")
        self.act = act
        if gated:
            self.gate = linear((D, F), ("embed", "mlp"), D**-0.5, "mlp_gate")
        self.output = linear((F, D), ("mlp", "embed"), F**-0.5, "mlp_output")
        self.norm = RmsNorm(D, config.layer_norm_epsilon)
        self.rate, self.compute = config.dropout_rate, compute

    def __call__(self, x_BSD: jax.Array, key: jax.Array | None) -> jax.Array:
        compute = self.compute
        k1, k2 = (None, None) if key is None else jax.random.split(key)
        y = all_gather_sequence(self.norm(x_BSD))
        h_BSF = with_logical_constraint(self.intermediate(y, k1), "batch", None, "mlp")
        if hasattr(self, "gate"):  # t5x: intermediate is wi_1, gate is wi_0
            h_BSF = h_BSF * activation(self.act, with_logical_constraint(self.gate(y, key), "batch", None, "mlp"))
        else:
            h_BSF = activation(self.act, h_BSF)
        h_BSF = dropout(h_BSF, self.rate, k1, compute, broadcast_length=True, names=("batch", None, "mlp"))
        y = dropout(self.output(h_BSF, k2), self.rate, k2, compute, broadcast_length=True)
        return with_logical_constraint(x_BSD + y, "batch", None, None)


class Layer(nnx.Module):
    """Self-attention, cross attention (of a decoder with an encoder), feed-forward and adapter (if any), each a
    residual; with a position bias of its own if configured."""

    def __init__(self, config: T5Config, decoder: bool, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions):
        if config.has_layer_bias:
            self.position = attention.RelativePositionBias(config, not decoder, rngs)
        self.attention = attention.Attention(config, compute, rngs, peft)
        if decoder and config.architecture == "encoder_decoder":
            self.cross_attention = attention.Attention(config, compute, rngs, peft)
        self.mlp = Mlp(config, config.d_ff, config.activation, config.gated, compute, rngs, peft)
        if peft.adapter_size:  # arXiv 1910.10683 section 3.5.1 and the reference's task_adapter.gin
            self.adapter = Mlp(config, peft.adapter_size, "relu", False, compute, rngs)

    def __call__(
        self, x_BTD: jax.Array, bias: jax.Array | None, visible: Visible, key: jax.Array | None, *,
        keys_values: KeysValues | CachedKeysValues | None = None,
        source: tuple[jax.Array | CachedKeysValues, Visible] | None = None,
    ) -> jax.Array:  # fmt: skip
        """x [B, T, D] -> [B, T, D].

        `bias`: of the stack, or of cached positions; None: the layer's own. `keys_values`: of a cache; None: of x.
        `source`: of cross attention, (the encoder's output or its keys and values, which of them each query sees).
        """
        k1, k2, k3, k4 = (None,) * 4 if key is None else jax.random.split(key, 4)
        bias = position_bias(self.position, visible) if bias is None else bias
        x_BTD = self.attention(x_BTD, keys_values, bias, visible, k1)
        if source is not None:
            hidden, across = source
            cross = hidden if isinstance(hidden, tuple) else self.cross_attention.keys_values(hidden, k2)
            x_BTD = self.cross_attention(x_BTD, cross, None, across, k2)
        x_BTD = self.mlp(x_BTD, k3)
        return self.adapter(x_BTD, k4) if hasattr(self, "adapter") else x_BTD


class Stack(nnx.Module):
    """Position bias (unless layers have their own), layers and final norm of the encoder or the decoder."""

    def __init__(self, config: T5Config, decoder: bool, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions):
        if not config.has_layer_bias:
            self.position = attention.RelativePositionBias(config, not decoder, rngs)
        depth = config.decoder_layers if decoder else config.encoder_layers
        self.layers = nnx.List([Layer(config, decoder, compute, rngs, peft) for _ in range(depth)])
        self.norm = RmsNorm(config.d_model, config.layer_norm_epsilon)

    def bias(self, visible: Visible) -> jax.Array | None:
        """The bias of all layers, as `position_bias`; None where each layer has its own."""
        return position_bias(self.position, visible) if hasattr(self, "position") else None


def position_bias(position: attention.RelativePositionBias, visible: Visible) -> jax.Array:
    """For bool [B, 1, S, S]: float32 [1, H, S, S]; for the ids of the fused kernel, once by distance: [H, 2 S - 1]."""
    if isinstance(visible, KeyMask):
        return position.by_distance(visible.key_ids.shape[1])
    return position(visible[:, 0, 0])


class T5(nnx.Module):
    """Both stacks and the output matrix; all methods are pure.

    `peft.adapter_size` d: a bottleneck of width d after each feed-forward sublayer. `compute.segments` applies to a
    stack of that depth; another one runs layer by layer. Raises ValueError for a kernel without position bias.
    """

    init_cache, prefill = cache.init_cache, cache.prefill
    decode_step, beam_step = cache.decode_step, cache.beam_step

    def __init__(
        self, config: T5Config, heads: tuple[str, ...], compute: ComputeOptions, rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):  # fmt: skip
        attention.check_kernel(compute)
        self.embeddings = Embeddings(config, compute, rngs)
        if config.architecture == "encoder_decoder":
            self.encoder = Stack(config, False, compute, rngs, peft)
        self.decoder = Stack(config, True, compute, rngs, peft)
        if "lm" in heads and not config.tie_word_embeddings:
            D, V = config.d_model, config.vocab_size
            self.heads = nnx.Dict(lm=Linear((D, V), ("embed", "vocab"), D**-0.5, compute, rngs))
        self.config, self.compute = config, compute

    def __call__(
        self, input_ids: jax.Array, decoder_input_ids: jax.Array | None = None, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """int [B, S], [B, T] -> logits, float32 [B, T, V], of the token after each decoder input.

        decoder_input_ids: default the start id alone (T is 1). attention_mask: 0 on padding of input_ids (default: 1).
        A decoder-only model reads input_ids alone: T is S.
        """
        real = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        if not hasattr(self, "encoder"):
            return self.logits(self.decode(input_ids, real, None, None))
        if decoder_input_ids is None:
            decoder_input_ids = jnp.full_like(input_ids[:, :1], self.config.decoder_start_token_id)
        hidden = self.encode(input_ids, real)
        return self.logits(self.decode(decoder_input_ids, jnp.ones_like(decoder_input_ids), hidden, real))

    def encode(self, input_ids: jax.Array, segment_ids: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """int [B, S] x 2 -> hidden [B, S, D]. `segment_ids` is 0 on padding; no dropout without a key."""
        visible = attention.segment_mask(segment_ids, segment_ids, self.config, self.compute)
        bias = self.encoder.bias(visible)
        call = lambda layer, x, key, bias, visible: layer(x, bias, visible, key)  # noqa: E731
        return self._run(self.encoder, input_ids, call, key, _with_axes(bias), (visible, ()))

    def hidden_states(self, input_ids: jax.Array, segment_ids: jax.Array) -> list[jax.Array]:
        """int [B, S] x 2 -> the embeddings and the output of each encoder layer, [B, S, D].

        The last one is normalized, as that of `encode` and as transformers lists it.
        """
        visible = attention.segment_mask(segment_ids, segment_ids, self.config, self.compute)
        bias = self.encoder.bias(visible)
        states = [self.embeddings(input_ids, None)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], bias, visible, None))
        return [*states[:-1], self.encoder.norm(states[-1])]

    def attention_probabilities(self, input_ids: jax.Array, segment_ids: jax.Array) -> list[jax.Array]:
        """int [B, S] x 2 -> the self-attention of each encoder layer, float32 [B, H, S, S]: a row for each query."""
        visible = attention.make_segment_mask(segment_ids, segment_ids)
        shared = self.encoder.bias(visible)
        states = self.hidden_states(input_ids, segment_ids)[:-1]
        found = []
        for layer, x in zip(self.encoder.layers, states, strict=True):
            bias = layer.position(input_ids) if shared is None else shared
            found.append(layer.attention.probabilities(x, bias, visible))
        return found

    def decode(
        self, decoder_input_ids: jax.Array, target_segment_ids: jax.Array, hidden: jax.Array | None,
        segment_ids: jax.Array | None, *, prefix_mask: jax.Array | None = None, key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """int [B, T] x 2, hidden [B, S, D], int [B, S] -> [B, T, D]; decoder-only: None for the latter two.

        `prefix_mask`, int [B, T], is 1 for decoder inputs that all of their segment sees.
        """
        visible = attention.decoder_mask(target_segment_ids, prefix_mask, self.config, self.compute)
        bias = self.decoder.bias(visible)
        source = None
        if hidden is not None and segment_ids is not None:
            source = hidden, attention.segment_mask(target_segment_ids, segment_ids, self.config, self.compute)

        def call(layer: Layer, x: jax.Array, key: jax.Array | None, bias: jax.Array | None, *sees: Any) -> jax.Array:
            own, source = sees
            return layer(x, bias, own, key, source=source)

        return self._run(self.decoder, decoder_input_ids, call, key, _with_axes(bias), (visible, ()), (source, ()))

    def logits(self, decoded: jax.Array) -> jax.Array:
        """[B, (T,) D] -> float32 [B, (T,) V], scaled by D^-0.5 if configured.

        Without T, XLA reads the tied table as it is stored; with T, it transposes the table first.
        """
        c, dtype, lead = self.config, self.compute.dtype, "bt"[: decoded.ndim - 1]
        if c.scales_outputs:
            decoded = (decoded.astype(jnp.float32) * c.d_model**-0.5).astype(dtype)
        # "cpu": `einsum_lowp` with a float32 result; bfloat16 logits would round the loss
        if c.tie_word_embeddings:
            table = all_gather_fsdp(self.embeddings.word.embedding[...].astype(dtype), "vocab", "embed")
            logits = einsum_lowp(f"{lead}d,vd->{lead}v", decoded, table, "cpu")
        else:
            kernel = all_gather_fsdp(self.heads["lm"].kernel[...].astype(dtype), "embed", "vocab")
            logits = einsum_lowp(f"{lead}d,dv->{lead}v", decoded, kernel, "cpu")
        return with_logical_constraint(logits, "batch", *(None,) * (logits.ndim - 2), "vocab")

    def _run(
        self, part: Stack, ids: jax.Array, call: layer_stack.LayerFn, key: jax.Array | None, *given: LogicalArray
    ) -> jax.Array:
        embed_key, stack_key, final_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = self.embeddings(ids, embed_key)
        segments = self.compute.segments if sum(self.compute.segments) == len(part.layers) else ()
        compute, heads = replace(self.compute, segments=segments), self.config.num_heads
        x = layer_stack.apply_layers(list(part.layers), x, call, stack_key, compute, *given, heads=heads)
        # t5x: the encoder's last mask differs per position, the decoder's is one for all
        shared = part is self.decoder
        x = map_shards(part.norm, x)
        return unshard_sequence(dropout(x, self.config.dropout_rate, final_key, self.compute, broadcast_length=shared))


def _with_axes(bias: jax.Array | None) -> LogicalArray:
    return bias, () if bias is None else BIAS_AXES[bias.ndim]


FAMILY = Family(
    build=lambda config, heads, _, compute, rngs, peft: T5(config, heads, compute, rngs, peft),
    find_heads=lambda params: ("lm",),
    row_flops=row_flops,
    encoder_inputs=lambda model: ("input_ids", "segment_ids") if model.encoder_layers else (),
    interop="bertjax.interop.t5:T5_FORMAT",
)
