"""BERT (arXiv 1810.04805, google-research/bert modeling.py) and the encoders that share its layers.

DistilBERT (arXiv 1910.01108), RoBERTa (1907.11692), ELECTRA (2003.10555) and ALBERT (1909.11942).

B rows, S positions, D hidden, H heads, K head size, F feed-forward, V vocabulary, G examples in a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bertjax.config.schema.model import BertConfig, ElectraConfig
from bertjax.models import layer_stack
from bertjax.models.attention import attention_probabilities, dot_product_attention
from bertjax.models.bert.embeddings import Embeddings, initializer
from bertjax.models.bert.flops import row_flops
from bertjax.models.bert.generator import Generator
from bertjax.models.bert.heads import Heads, find_heads, gather_positions
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.families import Family
from bertjax.models.layers.adapter import Adapter, adapt
from bertjax.models.layers.dropout import dropout
from bertjax.models.layers.lora import make_lora
from bertjax.models.layers.modules import Dense, Initializer, LayerNorm
from bertjax.models.layers.numerics import REMAT_NAME, activation
from bertjax.models.peft_options import PeftOptions
from bertjax.models.sequence_parallel import all_gather_sequence
from bertjax.parallel.sharding import with_logical_constraint


def dense_layers(
    init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions
) -> Callable[[tuple[int, ...], tuple[str | None, ...], str | None], Dense]:
    """(shape, logical axes, LoRA target or None for query, key and value fused) -> a dense layer."""

    def make(shape: tuple[int, ...], names: tuple[str | None, ...], target: str | None) -> Dense:
        lora = make_lora(target, shape, names, peft, compute, rngs)
        return Dense(shape, names, init, compute, rngs, lora, layer=True)

    return make


class Attention(nnx.Module):
    def __init__(
        self, config: BertConfig, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions
    ):
        D, dense = config.hidden_size, dense_layers(init, compute, rngs, peft)
        self.qkv = dense((D, 3, D), ("embed", None, "heads"), None)
        self.output = dense((D, D), ("heads", "embed"), "attention_output")
        if peft.adapter_size and peft.adapter_placement == "houlsby":
            self.adapter = Adapter(D, peft.adapter_size, compute, rngs)
        self.norm = LayerNorm(D, config.layer_norm_eps)


class Mlp(nnx.Module):
    def __init__(
        self, config: BertConfig, init: Initializer, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions
    ):
        D, F, dense = config.hidden_size, config.intermediate_size, dense_layers(init, compute, rngs, peft)
        self.intermediate = dense((D, F), ("embed", "mlp"), "mlp_intermediate")
        self.output = dense((F, D), ("mlp", "embed"), "mlp_output")
        if peft.adapter_size:
            self.adapter = Adapter(D, peft.adapter_size, compute, rngs)
        self.norm = LayerNorm(D, config.layer_norm_eps)


class Layer(nnx.Module):
    """Self-attention and feed-forward, each: dropout, adapter (if any), add, then norm (post-LN)."""

    def __init__(
        self,
        config: BertConfig,
        compute: ComputeOptions,
        rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):
        self.attention = Attention(config, initializer(config), compute, rngs, peft)
        self.mlp = Mlp(config, initializer(config), compute, rngs, peft)
        self.config, self.compute = config, compute

    def __call__(
        self, x_BSD: jax.Array, segment_ids: jax.Array, examples: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """`segment_ids` is 0 on padding. A packed row has `examples`, the same ids: a token sees those of its own."""
        c, compute = self.config, self.compute
        k1, k2, k3 = (None, None, None) if key is None else jax.random.split(key, 3)
        # the gradient of split is a concatenation, that of indexing a sum of three padded arrays
        qkv = self._heads(self.attention.qkv(all_gather_sequence(x_BSD), k1))
        q, k, v = (x[:, :, 0] for x in jnp.split(qkv, 3, axis=2))
        context = dot_product_attention(
            q,
            k,
            v,
            segment_ids if examples is None else examples,
            packed=examples is not None,
            rate=c.attention_probs_dropout_prob,
            key=k1,
            compute=compute,
            causal=c.causal,
        )
        context = checkpoint_name(context.reshape(*context.shape[:2], -1), REMAT_NAME)
        y = adapt(self.attention, dropout(self.attention.output(context, k2), c.hidden_dropout_prob, k2, compute))
        x_BSD = self.attention.norm(x_BSD + y)
        x_BSD = with_logical_constraint(x_BSD, "batch", None, None)
        h_BSF = self.mlp.intermediate(all_gather_sequence(x_BSD), key)
        h_BSF = activation(c.hidden_act, with_logical_constraint(h_BSF, "batch", None, "mlp"))
        y = adapt(self.mlp, dropout(self.mlp.output(h_BSF, k3), c.hidden_dropout_prob, k3, compute))
        x_BSD = self.mlp.norm(x_BSD + y)
        return with_logical_constraint(x_BSD, "batch", None, None)

    def attention_probabilities(self, x_BSD: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """The weights of the heads on an input of the layer, float32 [B, H, S, S]: a row for each query."""
        qkv = self._heads(self.attention.qkv(x_BSD))
        q, k, causal = qkv[:, :, 0], qkv[:, :, 1], self.config.causal
        return attention_probabilities(q, k, segment_ids, packed=False, compute=self.compute, causal=causal)

    def _heads(self, qkv: jax.Array) -> jax.Array:
        qkv = qkv.reshape(*qkv.shape[:-1], -1, self.config.hidden_size // self.config.num_attention_heads)
        return with_logical_constraint(qkv, "batch", None, None, "heads", None)


class LayerGroup(nnx.Module):
    """The `inner_group_num` layers of a group of ALBERT, one after the other."""

    def __init__(self, config: BertConfig, count: int, compute: ComputeOptions, rngs: nnx.Rngs, peft: PeftOptions):
        self.inner = nnx.List([Layer(config, compute, rngs, peft) for _ in range(count)])

    def __call__(
        self, x_BSD: jax.Array, segment_ids: jax.Array, examples: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        for number, layer in enumerate(self.inner):
            own = None if key is None else jax.random.fold_in(key, number)
            x_BSD = layer(x_BSD, segment_ids, examples, own)
        return x_BSD


def apply_layers(
    layers: Sequence[nnx.Module], x: jax.Array, segment_ids: jax.Array, packed: bool, key: jax.Array | None,
    config: BertConfig, compute: ComputeOptions, first: int = 0, stop: int | None = None,
) -> jax.Array:  # fmt: skip
    """x [B, S, D] through the layers of a stack that `config` describes, or those from `first` to below `stop`."""
    call = lambda layer, x, key, ids: layer(x, ids, ids if packed else None, key)  # noqa: E731
    return layer_stack.apply_layers(
        layers, x, call, key, compute, (segment_ids, ()), heads=config.num_attention_heads, order=config.layer_order,
        first=first, stop=stop,
    )  # fmt: skip


class Bert(nnx.Module):
    """Encoder and heads; all methods are pure."""

    def __init__(
        self, config: BertConfig, heads: tuple[str, ...], num_labels: int, compute: ComputeOptions, rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):  # fmt: skip
        self.embeddings = Embeddings(config, compute, rngs)
        inner = getattr(config, "inner_group_num", 1)
        count = max(config.layer_order) + 1
        if inner == 1:
            self.layers = nnx.List([Layer(config, compute, rngs, peft) for _ in range(count)])
        else:
            self.layers = nnx.List([LayerGroup(config, inner, compute, rngs, peft) for _ in range(count)])
        states = 1 + inner * len(config.layer_order) if peft.feature_layers == "weighted" else 0
        self.heads = Heads(config, heads, num_labels, initializer(config), compute, rngs, states)
        if "generator" in heads and isinstance(config, ElectraConfig):
            own = config.generator
            own_layers = [Layer(own, compute, rngs) for _ in range(own.num_hidden_layers)]
            self.heads.generator = Generator(own, own_layers, compute, rngs)
        self.config, self.compute, self.feature_layers = config, compute, peft.feature_layers
        self.frozen_layers = 0  # at the bottom, with the embeddings; without dropout

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, token_type_ids: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """int [B, S] -> {"hidden": [B, S, D]}, with the output of each head that it has, except `generator`.

        pooled [B, D], mlm [B, S, V], nsp and sop float32 [B, 2], start, end and discriminator float32 [B, S],
        classifier float32 [B, C], token_classifier float32 [B, S, C]. A row is an example that begins with [CLS].
        `attention_mask` is 0 on padding (default: 1), `token_type_ids` default to 0.
        """
        places = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        real = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        hidden = self.encode(input_ids, types, real, places)
        found, first = {"hidden": hidden}, places[:, :1]
        if hasattr(self.heads, "pooler"):
            found["pooled"] = self.heads.pooler(gather_positions(hidden, first))[:, 0]
        if hasattr(self.heads, "mlm"):
            found["mlm"] = self.mlm_logits(hidden, places)
        if hasattr(self.heads, "nsp"):
            found["nsp"] = self.nsp_logits(hidden, first)[:, 0]
        if hasattr(self.heads, "sop"):
            found["sop"] = self.heads.sop(self.heads.pooler(gather_positions(hidden, first)))[:, 0]
        if hasattr(self.heads, "discriminator"):
            found["discriminator"] = self.heads.discriminator(hidden)
        if hasattr(self.heads, "qa"):
            found["start"], found["end"] = self.qa_logits(hidden)
        if hasattr(self.heads, "classifier"):
            found["classifier"] = self.class_logits(hidden, first)[:, 0]
        if hasattr(self.heads, "token_classifier"):
            found["token_classifier"] = self.token_logits(hidden)
        return found

    def encode(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        packed: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """int [B, S] x 4 -> hidden [B, S, D] for the heads. `segment_ids` is 0 on padding; no dropout without a key."""
        if self.feature_layers:
            found = self.features(input_ids, token_type_ids, segment_ids, positions, packed=packed)
            return self.mix_layers(found)
        return self._last_layer(input_ids, token_type_ids, segment_ids, positions, packed, key)

    def _last_layer(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array,
        packed: bool, key: jax.Array | None,
    ) -> jax.Array:  # fmt: skip
        if self.frozen_layers:
            x = self.frozen_states(input_ids, token_type_ids, segment_ids, positions, packed=packed)
            return self.encode_above(x, segment_ids, packed=packed, key=key)
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = self.embeddings(input_ids, token_type_ids, positions, embed_key)
        return apply_layers(list(self.layers), x, segment_ids, packed, stack_key, self.config, self.compute)

    def frozen_states(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
        packed: bool = False,
    ) -> jax.Array:  # fmt: skip
        """int [B, S] x 4 -> the output [B, S, D] of the lowest `frozen_layers` layers, without dropout."""
        x = self.embeddings(input_ids, token_type_ids, positions, None)
        layers, count = list(self.layers), self.frozen_layers
        x = apply_layers(layers, x, segment_ids, packed, None, self.config, self.compute, stop=count)
        return jax.lax.optimization_barrier(x)  # it is rounded in a step as it is where it is kept

    def encode_above(
        self, states: jax.Array, segment_ids: jax.Array, *, packed: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """`frozen_states` [B, S, D], int [B, S] -> what `encode` returns; a layer has the dropout that it has there."""
        key = None if key is None else jax.random.split(key)[1]
        layers, count = list(self.layers), self.frozen_layers
        return apply_layers(layers, states, segment_ids, packed, key, self.config, self.compute, first=count)

    def features(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        packed: bool = False,
    ) -> jax.Array:
        """int [B, S] x 4 -> what `mix_layers` reads, [B, S, D], or [B, S, N * D] of the N hidden states to mix."""
        if self.feature_layers in ("", "last"):
            return self._last_layer(input_ids, token_type_ids, segment_ids, positions, packed, None)
        states = self.hidden_states(input_ids, token_type_ids, segment_ids, positions, packed=packed)
        if self.feature_layers == "weighted":
            return jnp.concatenate(states, axis=-1)
        return sum((x.astype(jnp.float32) for x in states[-4:]), jnp.float32(0)).astype(self.compute.dtype)

    def mix_layers(self, features: jax.Array) -> jax.Array:
        """`features` of any number of positions -> what heads read, [B, S, D]."""
        if self.feature_layers != "weighted":
            return features
        return self.heads.layer_mix(features.reshape(*features.shape[:-1], -1, self.config.hidden_size))

    def hidden_states(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        packed: bool = False,
    ) -> list[jax.Array]:
        """int [B, S] x 4 -> the embeddings [B, S, D] and the output of each layer, which `encode` may mix."""
        call = lambda layer, x, key, ids: layer(x, ids, ids if packed else None, key)  # noqa: E731
        compute, heads = replace(self.compute, segments=()), self.config.num_attention_heads
        states = [self.embeddings(input_ids, token_type_ids, positions, None)]
        for layer in self._layers_in_order():
            given = (segment_ids, ())
            states.append(layer_stack.apply_layers([layer], states[-1], call, None, compute, given, heads=heads))
        return states

    def attention_probabilities(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array
    ) -> list[jax.Array]:
        """int [B, S] x 4 -> the attention of each layer, float32 [B, H, S, S]: how much a query reads of each key."""
        states = self.hidden_states(input_ids, token_type_ids, segment_ids, positions)
        layers = self._layers_in_order()
        return [layer.attention_probabilities(x, segment_ids) for layer, x in zip(layers, states[:-1], strict=True)]

    def _layers_in_order(self) -> list[Layer]:
        """Every layer from the bottom up, also those that share parameters."""
        groups = [self.layers[number] for number in self.config.layer_order]
        return [layer for group in groups for layer in getattr(group, "inner", [group])]

    def mlm_logits(self, hidden: jax.Array, masked_positions: jax.Array) -> jax.Array:
        """hidden [B, S, D], positions [B, N] -> logits [B, N, V] at these positions."""
        hidden = gather_positions(hidden, masked_positions)
        return self.heads.mlm(hidden, self.embeddings.word.embedding[...])

    def generator_logits(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array,
        masked_positions: jax.Array, *, packed: bool = False, key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """int [B, S] x 4, masked positions [B, N] -> logits [B, N, V] of the generator at these positions."""
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        own = self.heads.generator
        x = own.inputs(self.embeddings.sum(input_ids, token_type_ids, positions, embed_key))
        hidden = apply_layers(list(own.layers), x, segment_ids, packed, stack_key, own.config, own.compute)
        return own.mlm(gather_positions(hidden, masked_positions), self.embeddings.word.embedding[...])

    def nsp_logits(self, hidden: jax.Array, cls_positions: jax.Array) -> jax.Array:
        """-> float32 [B, G, 2]: next, random."""
        pooled = self.heads.pooler(gather_positions(hidden, cls_positions))
        return self.heads.nsp(pooled)

    def qa_logits(self, hidden: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """-> start and end logits, float32 [B, S]."""
        hidden = dropout(hidden, self.config.qa_dropout, key, self.compute)
        logits = self.heads.qa(hidden)
        return logits[..., 0], logits[..., 1]

    def class_logits(self, hidden: jax.Array, cls_positions: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """-> float32 [B, G, C]; dropout before the output layer as in run_classifier.py.

        RoBERTa and ELECTRA also have it before their dense layer (RobertaClassificationHead).
        """
        own, c = self.config.classifier_dropout, self.config
        rate = c.hidden_dropout_prob if own is None else own
        pooled = gather_positions(hidden, cls_positions)
        if c.classifier_dense is None:
            pooled = self.heads.pooler(pooled)
        else:
            if c.classifier_dense != "relu":
                first, key = (None, None) if key is None else jax.random.split(key)
                pooled = dropout(pooled, rate, first, self.compute)
            pooled = self.heads.pre_classifier(pooled)
        return self.heads.classifier(dropout(pooled, rate, key, self.compute))

    def token_logits(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """hidden [B, S, D] -> float32 [B, S, C]; dropout and a linear layer, as ForTokenClassification has.

        DistilBERT's `classifier_dropout` is for sequences (seq_classif_dropout): its tokens have `hidden_dropout_prob`.
        """
        own = None if self.config.classifier_dense == "relu" else self.config.classifier_dropout
        rate = self.config.hidden_dropout_prob if own is None else own
        return self.heads.token_classifier(dropout(hidden, rate, key, self.compute))


BERT = Family(
    build=Bert,
    find_heads=find_heads,
    row_flops=row_flops,
    fused_attention=lambda c: (c.hidden_size // c.num_attention_heads, c.attention_probs_dropout_prob),
    encoder_inputs=lambda model: ("input_ids", "token_type_ids", "segment_ids", "positions"),
    interop="bertjax.interop.bert:BERT",
)
DISTILBERT = replace(BERT, interop="bertjax.interop.bert:DISTILBERT")
ROBERTA = replace(BERT, interop="bertjax.interop.bert:ROBERTA")
ELECTRA = replace(BERT, interop="bertjax.interop.bert:ELECTRA")
ALBERT = replace(BERT, interop="bertjax.interop.bert:ALBERT", layer_order=lambda model: model.layer_order)
