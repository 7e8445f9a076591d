"""Optimizers as optax transformations without the learning rate, one state for each parameter group, and schedules."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from bertjax.config.schema.optimizers import Adafactor, AdamW, Muon, Optimizer

# optimization.py excludes LayerNorm, layer_norm and bias; the factor of a mixture of layers must not decay to zero
NO_DECAY = re.compile(r"(^|/)(norm|bias|layer_mix)(/|$)")
# weights of the layers' linear maps [inputs, ..., outputs]; those of adapters and LoRA have other names
MATRIX = re.compile(r"(^|/)layers/\d+/(?!.*\b(adapter|lora)).*kernel$")


class AdamState(NamedTuple):
    mu: optax.Updates
    nu: optax.Updates


def bert_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """AdamWeightDecayOptimizer of google-research/bert optimization.py: no bias correction, eps outside the root."""

    def init(params: optax.Params) -> AdamState:
        return AdamState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(grads: optax.Updates, state: AdamState, params: optax.Params | None = None) -> tuple:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), AdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def has_weight_decay(path: str) -> bool:
    """Whether weight decay applies: all parameters but norms, biases and layer mixtures."""
    return NO_DECAY.search(path) is None


def adafactor(config: Adafactor) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) as in t5x/adafactor.py, without momentum and learning rate.

    Float32 slots of each parameter: v_row and v_col, its shape without the largest and without the second largest axis,
    if both have at least `min_dim_size_to_factor` elements; otherwise v, its full shape. Unused slots have shape (1,).
    Second moments of g^2 + 1e-30 decay by 1 - (t + 1)^-decay_rate. The update is clipped to a root mean square (RMS) of
    `clipping_threshold` and multiplied by the parameter's RMS, at least 1e-3. RMS are taken per array, thus per layer,
    scanned or not. BERT's fused query, key and value [D, 3, D] are factored separately over D and D, but clipped and
    scaled together; T5's are separate arrays.
    """
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=config.decay_rate, min_dim_size_to_factor=config.min_dim_size_to_factor, epsilon=1e-30
        ),
        optax.clip_by_block_rms(config.clipping_threshold),
        *([optax.scale_by_param_block_rms(1e-3)] if config.multiply_by_parameter_scale else []),
    )


def is_matrix(path: str) -> bool:
    """Whether Muon orthogonalizes this parameter: the linear maps of the layers, but no embedding, head or adapter."""
    return MATRIX.search(path) is not None


class MuonState(NamedTuple):
    matrices: optax.OptState
    others: optax.OptState


def muon(config: Muon) -> optax.GradientTransformation:
    """Muon (github.com/KellerJordan/Muon) for matrices, Adam for the other parameters, without rate and weight decay.

    A matrix is [inputs, ..., outputs], float32; axes between them count matrices that are orthogonalized one by one:
    query, key and value of BERT's fused [D, 3, D], the four gates of an LSTM's [D, 4, H]. The update, U V^T of the
    momentum's singular value decomposition but for the error of the iteration, is scaled to a root mean square of
    `update_rms` (arXiv 2502.16982, equation 4), or by sqrt(max(1, outputs / inputs)) without it.
    """
    dims = lambda tree: {path: contrib.MuonDimensionNumbers(0, x.ndim - 1) for path, x in tree.items()}  # noqa: E731
    rule = contrib.scale_by_muon(
        ns_steps=config.ns_steps, beta=config.momentum, nesterov=config.nesterov, weight_dimension_numbers=dims
    )
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)

    def split(tree: optax.Params) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        matrices = {path: x for path, x in tree.items() if is_matrix(path)}
        return matrices, {path: x for path, x in tree.items() if path not in matrices}

    def scale(update: jax.Array) -> jax.Array:
        inputs, outputs = update.shape[0], update.shape[-1]
        if config.update_rms is None:
            return update * max(1, outputs / inputs) ** 0.5
        return update * (config.update_rms * max(inputs, outputs) ** 0.5)

    def init(params: optax.Params) -> MuonState:
        matrices, others = split(params)
        return MuonState(rule.init(matrices), adam.init(others))

    def update(grads: optax.Updates, state: MuonState, params: optax.Params | None = None) -> tuple:
        matrices, others = split(grads)
        matrices, first = rule.update(matrices, state.matrices)
        others, second = adam.update(others, state.others)
        return {path: scale(x) for path, x in matrices.items()} | others, MuonState(first, second)

    return optax.GradientTransformation(init, update)


def adamw(config: AdamW) -> optax.GradientTransformation:
    """Adam with or without bias correction; its updates scaled by the parameter's RMS if the configuration says so."""
    own = config.kind == "bert_adamw"
    rule = (bert_adam if own else optax.scale_by_adam)(config.b1, config.b2, config.eps)
    return optax.chain(rule, optax.scale_by_param_block_rms(1e-3)) if config.multiply_by_parameter_scale else rule


def make_transform(config: Optimizer) -> optax.GradientTransformation:
    """The transformation that gives the update, weight decay included, to be multiplied by -learning_rate."""
    if config.kind == "adafactor":
        rule = adafactor(config)
    elif config.kind == "muon":
        rule = muon(config)
    elif config.kind in ("bert_adamw", "adamw"):
        rule = adamw(config)
    else:
        raise TypeError(f"optimizer kind '{config.kind}' has no case in training/optimizers.py: make_transform")
    if not config.weight_decay:
        return rule
    mask = lambda params: {path: has_weight_decay(path) for path in params}  # noqa: E731
    return optax.chain(rule, optax.add_decayed_weights(config.weight_decay, mask))


def warmup_steps(config: Optimizer, steps: int) -> int:
    return int(steps * config.warmup_ratio) if config.warmup_steps is None else config.warmup_steps


def decay_steps(config: Optimizer, steps: int) -> int:
    """Steps of the decay of `wsd`, at most those after the warm-up."""
    wanted = max(int(steps * config.decay_ratio), 1) if config.decay_steps is None else config.decay_steps
    return min(wanted, max(steps - warmup_steps(config, steps), 1))


def restarting_schedule(
    config: Optimizer, steps: int, episodes: Sequence[tuple[int, int]]
) -> Callable[[jax.Array], jax.Array]:
    """`schedule`, or with `restart` one for each of the `episodes`, [start, stop) of steps within the stage."""
    if not config.restart or len(episodes) < 2:
        return schedule(config, steps)
    starts = [start for start, _ in episodes]
    parts = [schedule(config, stop - start) for start, stop in episodes]

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step)
        rates = jnp.stack([part(step - start) for part, start in zip(parts, starts, strict=True)])
        return rates[jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1]

    return rate


def slanted_triangular(
    base: float, ratio: float, warmup: int, fraction: float | None, steps: int
) -> Callable[[jax.Array], jax.Array]:
    """Slanted triangular rates, equation 3 of arXiv 1801.06146 (ULMFiT).

    With cut = `warmup` = floor(steps * cut_frac): p = s / cut up to there, then 1 - (s - cut) / (cut * (1 / cut_frac -
    1)), and the rate is base * (1 + p * (ratio - 1)) / ratio. `fraction` is cut_frac; None: cut / steps. Where
    steps * cut_frac is not an integer the equation's p falls below 0 in the last steps, even to negative rates; it is 0
    there. Without warm-up p falls from 1 to 0.
    """
    down = max(warmup * (1 / fraction - 1) if warmup and fraction else steps - warmup, 1)

    def rate(step: jax.Array) -> jax.Array:
        s = jnp.asarray(step, jnp.float32)
        part = jnp.where(s < warmup, s / max(warmup, 1), 1 - (s - warmup) / down)
        return base * (1 + jnp.maximum(part, 0) * (ratio - 1)) / ratio

    return rate


def schedule(config: Optimizer, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate as a function of the step s within the stage, from 0.

    `linear` as in optimization.py: lr * s / W during warm-up, then lr * (1 - s / N), so the rate drops at s = W.
    `cosine`, `polynomial` and `wsd` as transformers' schedules with minimum: they fall from lr at s = W (`wsd`: at
    s = N - decay_steps) to lr * min_lr_ratio at s = N, so that `polynomial` of power 1 is transformers' `linear`.
    `inverse_sqrt` is t5x's 'constant * rsqrt_decay': lr / sqrt(max(s, W, 1)), constant until W.
    """
    base, warmup = config.learning_rate, warmup_steps(config, steps)
    if config.schedule == "slanted_triangular":
        share = config.warmup_ratio if config.warmup_steps is None else None
        return slanted_triangular(base, config.ratio, warmup, share, steps)

    def fraction(s: jax.Array) -> jax.Array:
        """The part of the learning rate, 1 to 0, that is left after warm-up."""
        name = config.schedule
        length = decay_steps(config, steps) if name == "wsd" else max(steps - warmup, 1)
        done = jnp.clip((s - (steps - length)) / length, 0, 1)
        shape = config.decay_shape if name == "wsd" else name
        if shape == "cosine":
            return 0.5 * (1 + jnp.cos(jnp.pi * done))
        if shape == "1-sqrt":
            return 1 - jnp.sqrt(done)
        return (1 - done) ** (config.power if name == "polynomial" else 1.0)

    def rate(step: jax.Array) -> jax.Array:
        s = jnp.asarray(step, jnp.float32)
        if config.schedule == "inverse_sqrt":
            return base / jnp.sqrt(jnp.maximum(s, max(warmup, 1)))
        if config.schedule == "linear":
            after = base * ((steps - s) / steps)
        elif config.schedule == "constant":
            after = jnp.float32(base)
        else:
            low = config.min_lr_ratio
            after = base * (low + (1 - low) * fraction(s))
        return jnp.where(s < warmup, base * s / max(warmup, 1), jnp.maximum(after, 0))

    return rate


def clip_by_global_norm(grads: dict[str, jax.Array], limit: float | None) -> tuple[dict[str, jax.Array], jax.Array]:
    """tf.clip_by_global_norm over the trained parameters -> (clipped, norm before clipping)."""
    norm = optax.tree.norm(grads)
    if limit is None:
        return grads, norm
    scale = limit / jnp.maximum(norm, limit)
    return {path: g * scale for path, g in grads.items()}, norm
