"""word2vec (arXiv 1301.3781, 1310.4546): a table of input vectors and, for training, one of output vectors.

B rows, S positions, D width, V vocabulary, G examples in a row.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.schema.ladder_models import Word2VecConfig
from bertjax.models import task_heads
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.families import Family
from bertjax.models.layers.modules import Embed
from bertjax.models.peft_options import PeftOptions
from bertjax.models.pooling import unit_length
from bertjax.models.task_heads import TASK_HEADS, TaskHeads, join_layers, put_mean_first
from bertjax.models.vocab_parallel import embedding_lookup
from bertjax.parallel.sharding import all_gather_fsdp


def input_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform in +-0.5 / D, as word2vec.c; output vectors begin at zero there."""
    return jax.random.uniform(key, shape, dtype, -0.5 / shape[1], 0.5 / shape[1])


class Word2Vec(nnx.Module):
    """Input vectors and heads; all methods are pure. The only hidden states are the input vectors.

    A classifier reads [CLS], whose vector is the same in all texts: `encode` puts the mean over the tokens of each
    example there. `token_states` has every token's own.
    """

    put_summary = staticmethod(put_mean_first)
    encode, hidden_states, mix_layers = task_heads.encode, task_heads.hidden_states, task_heads.mix_layers
    class_logits, token_logits = task_heads.class_logits, task_heads.token_logits
    qa_logits = task_heads.qa_logits

    def __init__(
        self, config: Word2VecConfig, heads: tuple[str, ...], num_labels: int, compute: ComputeOptions, rngs: nnx.Rngs,
        peft: PeftOptions = PeftOptions(),  # noqa: B008
    ):  # fmt: skip
        V, D = config.vocab_size, config.hidden_size
        self.embeddings = nnx.Dict(word=Embed(V, D, input_init, rngs))
        init, rate = nnx.initializers.normal(config.initializer_range), config.classifier_dropout
        mixed = int(peft.feature_layers == "weighted")
        self.heads = TaskHeads(D, heads, config.heads, num_labels, rate, init, compute, rngs, mixed)
        if "context" in heads:
            self.heads.context = Embed(V, D, nnx.initializers.zeros, rngs)
        self.config, self.compute, self.feature_layers = config, compute, peft.feature_layers

    def input_vectors(self, ids: jax.Array) -> jax.Array:
        """int [B, N] -> float32 [B, N, D]."""
        return embedding_lookup(self.embeddings["word"].embedding[...], ids)

    def output_vectors(self, ids: jax.Array) -> jax.Array:
        """int [B, N] -> float32 [B, N, D], with which input vectors are multiplied."""
        return embedding_lookup(self.heads.context.embedding[...], ids)

    def token_states(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
        packed: bool = False, key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """int [B, S] x 4 -> the input vectors [B, S, D]; only `input_ids` are read."""
        return self.input_vectors(input_ids).astype(self.compute.dtype)

    def all_states(self, *fields: jax.Array, packed: bool = False) -> list[jax.Array]:
        """int [B, S] x 4 -> [`token_states`]."""
        return [self.token_states(*fields)]

    def features(
        self, input_ids: jax.Array, token_type_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array, *,
        packed: bool = False,
    ) -> jax.Array:  # fmt: skip
        """int [B, S] x 4 -> what `mix_layers` reads, [B, S, D], or [B, S, N * D] of the N hidden states to mix.

        Without what all input vectors share, the projection on their mean (arXiv 1702.01417): it is many times what
        differs between texts, and a head on fixed features would have to cancel it first.
        """
        states = self.hidden_states(input_ids, token_type_ids, segment_ids, positions, packed=packed)
        shared = unit_length(all_gather_fsdp(self.embeddings["word"].embedding[...], "vocab", "embed").mean(0))
        states = [x.astype(jnp.float32) for x in states]
        own = [(x - (x * shared).sum(-1, keepdims=True) * shared).astype(self.compute.dtype) for x in states]
        return join_layers(own, self.feature_layers)


def find_heads(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that {path: parameter} holds."""
    inside = {path.split("/")[1] for path in params if path.startswith("heads/")}
    return tuple(name for name in ("context", *TASK_HEADS) if name in inside)


def row_flops(
    model: Word2VecConfig, widths: Mapping[str, int], heads: Collection[str], groups: Collection[str], peft: PeftOptions
) -> int:
    """FLOPs of a training step for one row of S tokens: 6 products of D numbers a token, a target and five negatives,
    forward and for both gradients. Look-ups, sums over windows and the outputs of tasks are not counted."""
    return 3 * 6 * 2 * widths["input_ids"] * model.hidden_size if "context" in heads else 0


WORD2VEC = Family(
    build=Word2Vec,
    find_heads=find_heads,
    row_flops=row_flops,
    encoder_inputs=lambda model: ("input_ids", "token_type_ids", "segment_ids", "positions"),
)
