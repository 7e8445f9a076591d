"""From a model section of any family to abstract parameters, initial parameters and a module."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
from flax import nnx

from bertjax.config.schema.model import ModelConfig
from bertjax.models import families, param_paths
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.peft_options import PeftOptions

Module: TypeAlias = Any  # of any family: its objective and its evaluations know which methods it has
Shapes: TypeAlias = dict[str, jax.ShapeDtypeStruct]  # {parameter path: shape and dtype}


def _make_module(
    config: ModelConfig,
    heads: tuple[str, ...],
    num_labels: int,
    peft: PeftOptions,
    compute: ComputeOptions,
    key: jax.Array,
) -> Module:
    rngs = nnx.Rngs(params=key, peft=jax.random.fold_in(key, 2**31 + 1))  # other parameters do not depend on `peft`
    return families.record_of(config).build(config, heads, num_labels, compute, rngs, peft)


def abstract_model(
    config: ModelConfig,
    heads: tuple[str, ...],
    num_labels: int = 2,
    compute: ComputeOptions = ComputeOptions(),  # noqa: B008
    peft: PeftOptions = PeftOptions(),  # noqa: B008
) -> tuple[nnx.GraphDef, nnx.State]:
    """-> (graphdef, abstract nnx.State with shapes, dtypes and logical axes); allocates nothing."""
    section = _Section(type(config), config.model_dump_json(), config)
    return _trace_module(section, heads, num_labels, compute, peft)


@dataclass(frozen=True)
class _Section:
    """A model section as the key of a cache."""

    kind: type
    values: str
    config: ModelConfig = field(compare=False)


@functools.lru_cache(maxsize=16)  # the checks of a run, its stages and their evaluations ask for the same ones
def _trace_module(
    section: _Section, heads: tuple[str, ...], num_labels: int, compute: ComputeOptions, peft: PeftOptions
) -> tuple[nnx.GraphDef, nnx.State]:
    make = lambda key: nnx.split(  # noqa: E731
        _make_module(section.config, heads, num_labels, peft, compute, key), nnx.Param
    )
    return nnx.eval_shape(make, jax.random.key(0))


def abstract_params(
    config: ModelConfig,
    heads: tuple[str, ...],
    num_labels: int = 2,
    peft: PeftOptions = PeftOptions(),  # noqa: B008
) -> Shapes:
    """{path: shape and dtype} of the parameters."""
    abstract = abstract_model(config, heads, num_labels, peft=peft)[1]
    return param_paths.flatten(nnx.as_pure(abstract))


def init_params(
    config: ModelConfig,
    heads: tuple[str, ...],
    num_labels: int,
    key: jax.Array,
    peft: PeftOptions = PeftOptions(),  # noqa: B008
) -> dict[str, jax.Array]:
    """Initial parameters {path: float32 array}; jit it with out_shardings to create each in its shards."""
    model = _make_module(config, heads, num_labels, peft, ComputeOptions(), key)
    return param_paths.flatten(nnx.as_pure(nnx.split(model, nnx.Param)[1]))


def init_adapters_near_identity(params: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """`params` with adapters near the identity function (arXiv 1902.00751 section 2.1).

    Truncated normal with the standard deviation of feedforward_adapter in google-research/adapter-bert, 0.001.
    """
    key = jax.random.fold_in(key, 2**31)  # far above the counts that nnx.Rngs folds in
    found = [path for path in params if "/adapter/" in path and path.endswith("/kernel")]

    def init(number: int, path: str) -> jax.Array:
        return 1e-3 * jax.random.truncated_normal(jax.random.fold_in(key, number), -2.0, 2.0, params[path].shape)

    return params | {path: init(number, path) for number, path in enumerate(found)}


def logical_axes(abstract: nnx.State) -> dict[str, tuple[str | None, ...]]:
    """{path: logical axis names} as declared by the modules."""
    flat = param_paths.flatten(abstract, is_leaf=lambda v: isinstance(v, nnx.Variable))
    return {path: tuple(v.get_metadata("out_sharding")) for path, v in flat.items()}


def merge(graphdef: nnx.GraphDef, abstract: nnx.State, params: Mapping[str, jax.Array]) -> Module:
    """The module with these parameters. Raises KeyError for a missing path."""
    template = nnx.as_pure(abstract)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(lambda p, _: params[param_paths.keystr(p)], template))


def build_model(
    config: ModelConfig,
    heads: tuple[str, ...],
    params: Mapping[str, jax.Array],
    *,
    num_labels: int = 2,
    compute: ComputeOptions = ComputeOptions(),  # noqa: B008
    peft: PeftOptions = PeftOptions(),  # noqa: B008
) -> Module:
    """The module of a section with flat parameters."""
    graphdef, abstract = abstract_model(config, heads, num_labels, compute, peft)
    return merge(graphdef, abstract, params)


def num_labels(params: Mapping[str, Any]) -> int:
    """Outputs of the classifier of texts or of tokens in {path: parameter}; 2 where there is none."""
    bias = params.get("heads/classifier/bias", params.get("heads/token_classifier/bias"))
    return 2 if bias is None else int(bias.shape[0])
