"""GPT (Improving Language Understanding by Generative Pre-Training, OpenAI 2018): BERT's layers with causal attention.

Differences to BERT: a token sees itself and those before it, no norm after the embeddings, no segment embeddings, and
the output matrix is the word embeddings, without transform and bias (OpenAIGPTLMHeadModel of transformers).

B rows, S positions, D hidden, V vocabulary, G examples in a row.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from bertjax.config.schema.model import GptConfig
from bertjax.models import layer_stack, task_heads
from bertjax.models.bert import flops
from bertjax.models.bert.embeddings import Embeddings, initializer
from bertjax.models.bert.model import Layer
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.families import Family
from bertjax.models.layers.numerics import einsum_lowp
from bertjax.models.peft_options import PeftOptions
from bertjax.models.task_heads import TASK_HEADS, TaskHeads, put_last_first
from bertjax.parallel.sharding import all_gather_fsdp, with_logical_constraint


class Gpt(nnx.Module):
    """Causal encoder and heads; all methods are pure.

    A classifier reads [CLS], which sees no other token: `encode` puts the hidden state of the last token of each
    example there. `token_states` has every token's own.
    """

    put_summary = staticmethod(put_last_first)
    encode, features, hidden_states = task_heads.encode, task_heads.features, task_heads.hidden_states
    mix_layers, class_logits = task_heads.mix_layers, task_heads.class_logits
    token_logits, qa_logits = task_heads.token_logits, task_heads.qa_logits

    def __init__(
        self, config: GptConfig, heads: tuple[str, ...], num_labels: int, compute: ComputeOptions, rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):  # fmt: skip
        self.embeddings = Embeddings(config, compute, rngs)
        self.layers = nnx.List([Layer(config, compute, rngs, peft) for _ in range(config.num_hidden_layers)])
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        init = initializer(config)
        mixed = 1 + config.num_hidden_layers if peft.feature_layers == "weighted" else 0
        self.heads = TaskHeads(config.hidden_size, heads, config.heads, num_labels, rate, init, compute, rngs, mixed)
        self.config, self.compute, self.feature_layers = config, compute, peft.feature_layers

    def token_states(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
        packed: bool = False, key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """int [B, S] x 4 -> hidden [B, S, D] of each token. `segment_ids` is 0 on padding; no dropout without a key."""
        embed_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = self.embeddings(input_ids, token_type_ids, positions, embed_key)
        call = lambda layer, x, key, ids: layer(x, ids, ids if packed else None, key)  # noqa: E731
        layers, heads = list(self.layers), self.config.num_attention_heads
        return layer_stack.apply_layers(layers, x, call, stack_key, self.compute, (segment_ids, ()), heads=heads)

    def all_states(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
        packed: bool = False,
    ) -> list[jax.Array]:  # fmt: skip
        """int [B, S] x 4 -> the embeddings [B, S, D] and the output of each layer, of each token."""
        call = lambda layer, x, key, ids: layer(x, ids, ids if packed else None, key)  # noqa: E731
        compute, heads = replace(self.compute, segments=()), self.config.num_attention_heads
        states = [self.embeddings(input_ids, token_type_ids, positions, None)]
        for layer in self.layers:
            given = (segment_ids, ())
            states.append(layer_stack.apply_layers([layer], states[-1], call, None, compute, given, heads=heads))
        return states

    def attention_probabilities(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array
    ) -> list[jax.Array]:
        """int [B, S] x 4 -> the attention of each layer, float32 [B, H, S, S], 0 for keys after the query."""
        states = self.all_states(input_ids, token_type_ids, segment_ids, positions)[:-1]
        return [layer.attention_probabilities(x, segment_ids) for layer, x in zip(self.layers, states, strict=True)]

    def lm_logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [B, S, D] -> logits of the next token [B, S, V]; the word embeddings are the output matrix."""
        compute = self.compute
        table = self.embeddings.word.embedding[...].astype(compute.dtype)
        logits = einsum_lowp("bsd,vd->bsv", hidden, all_gather_fsdp(table, "vocab", "embed"), compute.platform)
        return with_logical_constraint(logits, "batch", None, "vocab")


def find_heads(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that {path: parameter} holds; the language model's has no parameters of its own."""
    inside = {path.split("/")[1] for path in params if path.startswith("heads/")}
    return ("lm", *(name for name in TASK_HEADS if name in inside))


def row_flops(
    model: GptConfig, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], peft: PeftOptions
) -> int:
    """FLOPs of a training step for one row of S tokens: those of BERT's layers, and the logits of all positions.

    The output matrix, which is the embeddings, costs a third product where these train.
    """
    logits = 2 * widths["input_ids"] * model.hidden_size * model.vocab_size * (3 if "embeddings" in groups else 2)
    return flops.row_flops(model, widths, (), groups, peft) + (logits if "lm" in heads else 0)


GPT = Family(
    build=Gpt,
    find_heads=find_heads,
    row_flops=row_flops,
    fused_attention=lambda c: (c.hidden_size // c.num_attention_heads, c.attention_probs_dropout_prob),
    encoder_inputs=lambda model: ("input_ids", "token_type_ids", "segment_ids", "positions"),
)
