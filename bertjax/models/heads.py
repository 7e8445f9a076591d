"""Task heads over an encoder's output: MLM, NSP, extractive spans and classification."""

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.config.model_schema import BertConfig
from bertjax.models.execution import Execution
from bertjax.models.layers import Dense, Initializer, LayerNorm, activation, add_bias, axes, contract
from bertjax.parallel.mesh import constrain, gathered


def at_positions(hidden_BSD: jax.Array, positions_BN: jax.Array) -> jax.Array:
    """hidden [B, S, D] at positions [B, N] -> [B, N, D]."""
    return jnp.take_along_axis(hidden_BSD, positions_BN[..., None], axis=1)


class MlmHead(nnx.Module):
    """dense, activation, layer norm, then the word embeddings as output matrix plus a bias (run_pretraining.py)."""

    def __init__(self, config: BertConfig, init: Initializer, rngs: nnx.Rngs):
        D = config.hidden_size
        self.transform = Dense((D, D), ("embed", None), init, rngs)
        self.norm = LayerNorm(D, config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32), **axes("vocab"))
        self.act = config.hidden_act

    def __call__(self, hidden_BKD: jax.Array, table_VD: jax.Array, execution: Execution) -> jax.Array:
        h = activation(self.act, self.transform(hidden_BKD, execution).astype(jnp.float32))
        h = self.norm(h).astype(execution.dtype)
        table = gathered(table_VD.astype(execution.dtype), "vocab", "embed")
        logits = contract("bkd,vd->bkv", h, table, execution.platform)
        return constrain(add_bias(logits, self.bias[...]), "batch", None, "vocab")


class Pooler(nnx.Module):
    """tanh(dense([CLS])); every example of a packed row has its own [CLS]."""

    def __init__(self, config: BertConfig, init: Initializer, rngs: nnx.Rngs):
        D = config.hidden_size
        self.kernel = nnx.Param(init(rngs.params(), (D, D), jnp.float32), **axes("embed", None))
        self.bias = nnx.Param(jnp.zeros((D,), jnp.float32), **axes(None))
        self.act = "relu" if config.family == "distilbert" else "tanh"

    def __call__(self, cls_BGD: jax.Array, execution: Execution) -> jax.Array:
        kernel = gathered(self.kernel[...].astype(execution.dtype), "embed", None)
        y = add_bias(contract("bgd,df->bgf", cls_BGD, kernel, execution.platform), self.bias[...])
        return (jax.nn.relu if self.act == "relu" else jnp.tanh)(y).astype(execution.dtype)


def linear_logits(head: Dense, x: jax.Array, execution: Execution) -> jax.Array:
    """A small output layer; its logits leave in float32."""
    kernel = gathered(head.kernel[...].astype(execution.dtype), *head.names)
    y = contract("bsd,df->bsf", x, kernel, execution.platform).astype(jnp.float32)
    return add_bias(y, head.bias[...])


class Heads(nnx.Module):
    """The heads a checkpoint has; `names` from mlm, nsp, qa, classifier, and pooler (without a head that reads it)."""

    def __init__(self, config: BertConfig, names: tuple[str, ...], num_labels: int, init: Initializer, rngs: nnx.Rngs):
        D, bert = config.hidden_size, config.family == "bert"
        output = lambda width: Dense((D, width), ("embed", None), init, rngs)  # noqa: E731
        if "mlm" in names:
            self.mlm = MlmHead(config, init, rngs)
        if bert and {"nsp", "classifier", "pooler"} & set(names):
            self.pooler = Pooler(config, init, rngs)
        if "nsp" in names:
            if not bert:
                raise ValueError("distilbert has no next sentence head: set nsp_weight to 0")
            self.nsp = output(2)
        if "qa" in names:
            self.qa = output(2)
        if "classifier" in names:
            if not bert:
                self.pre_classifier = Pooler(config, init, rngs)
            self.classifier = output(num_labels)
