"""The generator of ELECTRA (arXiv 2003.10555): a small encoder that fills masks, trained beside the discriminator.

B rows, S positions, E width of the embeddings, D width of the generator, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
from flax import nnx

from bertjax.config.schema.model import ElectraConfig
from bertjax.models.bert.embeddings import initializer
from bertjax.models.bert.heads import MlmHead
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.layers.modules import Dense
from bertjax.parallel.sharding import with_logical_constraint

_PREFIX = "heads/generator/"


class Generator(nnx.Module):
    """Layers, their input projection and an MLM head; `config` is `ElectraConfig.generator`.

    It has no embeddings: it reads those of the discriminator ("electra/embeddings" of google-research/electra), and the
    word embeddings are its output matrix.
    """

    def __init__(
        self, config: ElectraConfig, layers: Sequence[nnx.Module], compute: ComputeOptions, rngs: nnx.Rngs
    ):  # fmt: skip
        init = initializer(config)
        if config.projects_embeddings:
            shape = (config.embedding_width, config.hidden_size)
            self.project = Dense(shape, ("embed", None), init, compute, rngs)
        self.layers = nnx.List(layers)
        self.mlm = MlmHead(config, init, compute, rngs)
        self.config = config
        # segments of the discriminator's depth do not fit this one's
        scans = any(length > 1 for length in compute.segments)
        self.compute = replace(compute, segments=(len(layers),) if scans else ())

    def inputs(self, embeddings_BSE: jax.Array) -> jax.Array:
        """Embeddings [B, S, E] -> the inputs of the lowest layer, [B, S, D]."""
        if not hasattr(self, "project"):
            return embeddings_BSE
        return with_logical_constraint(self.project(embeddings_BSE), "batch", "sequence", None)


def standalone_paths(paths: Iterable[str]) -> dict[str, str]:
    """{path in a model that is the generator alone, with an `mlm` head: path here}, from all paths of a model here."""
    found: dict[str, str] = {}
    for path in paths:
        if path.startswith("embeddings/") and not path.startswith("embeddings/project/"):
            found[path] = path
        elif path.startswith(_PREFIX):
            inside = path.removeprefix(_PREFIX)
            parent = {"mlm": "heads/", "project": "embeddings/"}.get(inside.split("/")[0], "")
            found[parent + inside] = path
    return found
