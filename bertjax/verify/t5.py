"""T5: mixing rates, gradual unfreezing, sizes, position buckets, learning rate, Adafactor, losses and decoding."""

import math
from typing import Any

import numpy as np

from bertjax.config.schema.data import Mixture
from bertjax.config.schema.model import T5Config
from bertjax.config.schema.optimizers import Adafactor
from bertjax.config.schema.training import TextToTextObjective, Trainable
from bertjax.data.pipeline import mixing
from bertjax.models import registry
from bertjax.models.decoding.beam import length_penalty
from bertjax.models.decoding.sample import filter_logits
from bertjax.models.peft_options import PeftOptions
from bertjax.models.t5.attention import bucket_table
from bertjax.objectives import registry as objective_registry
from bertjax.objectives.losses import target_losses
from bertjax.training import freezing, optimizers
from bertjax.verify.runner import Comparisons

GLUE = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363849, "stsb": 5749, "mnli": 392702, "qnli": 104743, "rte": 2490,
}  # fmt: skip
GLUE_RATES: dict[str, tuple[dict[str, float], list[float]]] = {
    "T=1": ({}, [0.00901, 0.07096, 0.00386, 0.38336, 0.00606, 0.41376, 0.11036, 0.00262]),
    "K=2^16": ({"limit": 65536}, [0.03026, 0.2319, 0.01298, 0.2319, 0.02034, 0.2319, 0.2319, 0.00881]),
    "T=2": ({"temperature": 2.0}, [0.04421, 0.12407, 0.02895, 0.28837, 0.03625, 0.29958, 0.15472, 0.02386]),
}
# t5/data/glue_utils.py SUPER_GLUE_WEIGHT_MAPPING and each weight over their sum, 185,673.
SUPER_GLUE = {
    "dpr": 1322, "wsc": 259, "boolq": 9427, "cb": 250, "copa": 400, "multirc": 27243, "record": 138854,
    "super_glue_rte": 2490, "wic": 5428,
}  # fmt: skip
SUPER_GLUE_RATES = [0.00712, 0.00139, 0.05077, 0.00135, 0.00215, 0.14673, 0.74784, 0.01341, 0.02923]
BASE = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
ADAPTERS = {32: 1_198_080, 128: 4_737_024, 512: 18_892_800, 2048: 75_515_904}
PROBABILITIES = (0.4, 0.3, 0.2, 0.1)
# (top_k, top_p): the tokens that stay. 0.4 + 0.3 is the first sum of at least 0.5, and 0.4 / 0.7 alone reaches it.
KEPT_TOKENS: dict[tuple[int | None, float | None], list[int]] = {
    (None, None): [0, 1, 2, 3], (1, None): [0], (3, None): [0, 1, 2], (9, None): [0, 1, 2, 3], (None, 0.3): [0],
    (None, 0.5): [0, 1], (None, 0.8): [0, 1, 2], (None, 0.95): [0, 1, 2, 3], (2, 0.5): [0], (2, 0.6): [0, 1],
}  # fmt: skip


def glue_rates() -> Comparisons:
    for rule, (options, expected) in GLUE_RATES.items():
        found = mixing.rates(GLUE, Mixture(mixture=list(GLUE), **options))  # type: ignore[arg-type]
        for (task, rate), share in zip(found.items(), expected, strict=True):
            yield f"{rule} {task}", round(rate, 5), share


def nested_rates() -> Comparisons:
    """SuperGLUE, and with GLUE in one mixture; mixtures of mixtures as in seqio's dataset_providers_test.py."""
    mixtures = {
        "glue": Mixture(mixture=list(GLUE)),
        "super_glue": Mixture(mixture={name: float(n) for name, n in SUPER_GLUE.items()}, rate="explicit"),
        "both": Mixture(mixture={"glue": 949_101, "super_glue": 185_673}, rate="explicit"),
    }
    found = mixing.rates(GLUE | SUPER_GLUE, mixtures["super_glue"])
    for (task, rate), share in zip(found.items(), SUPER_GLUE_RATES, strict=True):
        yield f"SuperGLUE {task}", round(rate, 5), share
    found = mixing.rates(GLUE | SUPER_GLUE, mixtures["both"], mixtures)
    for task, count in (GLUE | SUPER_GLUE).items():
        yield f"with GLUE, {task}", found[task], count / 1_134_774
    counts = dict.fromkeys("abc", 1)
    inner = {"inner": Mixture(mixture={"a": 1, "b": 1}, rate="explicit")}
    cases = [({"inner": 1.0, "c": 1.0}, [0.5, 0.5, 1.0]), ({"inner": 1.0, "a": 1.0, "c": 1.0}, [1.5, 0.5, 1.0])]
    for outer, rates in cases:
        found = mixing.rates(counts, Mixture(mixture=outer, rate="explicit"), inner)
        yield f"a mixture of {', '.join(outer)}", [found[task] * sum(rates) for task in "abc"], rates


def unfreezing() -> Comparisons:
    """Episode n trains layers 11-n to 11 of both stacks; the embeddings, which are the output matrix, always train."""
    starts = [0, 21845, 43690, 65536, 87381, 109226, 131072, 152917, 174762, 196608, 218453, 240298]
    groups = freezing.param_groups(registry.abstract_params(BASE, ("lm",)))
    plan = freezing.episodes(Trainable(kind="gradual"), groups, 2**18)
    for number, (episode, start) in enumerate(zip(plan, starts, strict=True)):
        yield f"episode {number} begins", episode.start, start
        top = list(range(11 - number, 12))
        for stack in ("encoder", "decoder"):
            trained = [n for n in range(12) if f"{stack}/layers/{n}" in episode.groups]
            yield f"episode {number} trains {stack} layers", trained, top
        yield f"episode {number} trains the embeddings", "embeddings" in episode.groups, True
    yield "the end", plan[-1].stop, 2**18


def adapter_parameters() -> Comparisons:
    """24 adapters of 768 x d + d x 768 without biases, each with its norm of 768; `paper` adds all other norms."""
    for size, count in ADAPTERS.items():
        sizes = freezing.group_sizes(registry.abstract_params(BASE, ("lm",), peft=PeftOptions(adapter_size=size)))
        for norms, more in (("houlsby", 0), ("paper", 12 * 2 * 768 + 12 * 3 * 768 + 2 * 768)):
            trainable = Trainable(kind="adapters", adapter_size=size, adapter_norms=norms)  # type: ignore[arg-type]
            (episode,) = freezing.episodes(trainable, tuple(sizes), 1)
            yield f"d = {size}, {norms}", sum(sizes[group] for group in episode.groups), count + more


def parameter_counts() -> Comparisons:
    base = {"d_model": 768, "num_layers": 12, "num_heads": 12}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    for name, sizes, expected in (
        ("T5-small", {}, 60_506_624),
        ("T5-base", base | {"d_ff": 3072}, 222_903_552),
        ("T5-large", {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16}, 737_668_096),
        ("T5 v1.1 base", base | gated | {"d_ff": 2048}, 247_577_856),
    ):
        state = registry.abstract_params(T5Config(**sizes), ("lm",))  # type: ignore[arg-type]
        yield name, sum(math.prod(x.shape) for x in state.values()), expected


def position_buckets() -> Comparisons:
    """First distances of buckets, in integers: bucket e + j of e exact ones begins at the first n^e >= e^e (m/e)^j."""
    for furthest in (128, 1000):
        for bidirectional, count in ((True, 16), (False, 32)):
            found, exact = bucket_table(bidirectional, 32, furthest), count // 2
            starts = [
                next(n for n in range(exact, furthest + 1) if n**exact * exact**j >= exact**exact * furthest**j)
                for j in range(count - exact)
            ]
            behind = [n if n < exact else exact - 1 + sum(n >= s for s in starts) for n in range(furthest + 1)]
            what = f"distances up to {furthest}, {'both ways' if bidirectional else 'backwards'}"
            yield f"{what}: behind", found[furthest::-1].tolist(), behind
            ahead = [count + bucket for bucket in behind[1:]] if bidirectional else [0] * furthest
            yield f"{what}: ahead", found[furthest + 1 :].tolist(), ahead


def learning_rates() -> Comparisons:
    schedule = optimizers.schedule(Adafactor(), 2**19)
    for step, expected in {0: 0.01, 9_999: 0.01, 10_000: 0.01, 2**19: 1 / math.sqrt(2**19), 1_000_000: 0.001}.items():
        yield f"step {step:,}", float(schedule(step)), expected  # type: ignore[arg-type]


def adafactor_steps() -> Comparisons:
    """test_apply_gradient of t5x/adafactor_test.py: the second step of ones on a 3 x 2 matrix of ones at rate 0.1."""
    for least, slots in ((1, ((0.9, 0.9574349), (0.1, 0.6169143))), (32, ((0.5, 0.787174),))):
        rule = optimizers.make_transform(Adafactor(min_dim_size_to_factor=least))
        params = {"x": np.ones((3, 2), np.float32)}
        first, *others = rule.init(params)  # type: ignore[misc]
        names = ("v_row", "v_col") if least == 1 else ("v",)
        given = {name: {"x": 0 * getattr(first, name)["x"] + slot[0]} for name, slot in zip(names, slots, strict=True)}
        first = first._replace(count=np.int32(1), **given)
        update, after = rule.update({"x": np.ones((3, 2), np.float32)}, (first, *others), params)  # type: ignore[arg-type]
        step = float(update["x"][0, 0])  # type: ignore[index,call-overload]
        yield f"parameter with {' and '.join(names)}", round(1 - 0.1 * step, 6), 0.9
        for name, (_, expected) in zip(names, slots, strict=True):
            found = float(getattr(after[0], name)["x"].ravel()[0])  # type: ignore[index]
            yield name, bool(math.isclose(found, expected, rel_tol=1e-6)), True  # the tolerance of that test


def loss_weights() -> Comparisons:
    """SpecialLossNormalizingFactorTest of t5x/losses_test.py: packed rows, and rows of one example."""
    packed: dict[str, Any] = {
        "target_weights": np.array([[0.5, 1.0, 0.25, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0, 5.0]], np.float32),
        "target_segment_ids": np.array([[1, 1, 1, 2, 3], [1, 2, 2, 3, 0]]),
    }
    real = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    single: dict[str, Any] = {"target_weights": real.astype(np.float32), "target_segment_ids": real}
    for what, batch, factor, expected in (
        ("packed", packed, "average_per_sequence", 6.0),
        ("single", single, "average_per_sequence", 2.0),
        ("single", single, "num_real_target_tokens", 6.0),
        ("single", single, "num_total_target_tokens", 10.0),
        ("single", single, 233_472.0, 233_472.0),
    ):
        objective = objective_registry.build(TextToTextObjective(loss_normalizing_factor=factor))  # type: ignore[arg-type]
        yield f"{what}, {factor}", float(objective.normalizers(batch)["target"]), expected


def losses() -> Comparisons:
    """compute_weighted_cross_entropy of t5x/losses.py for three logits, of which the second is the target."""
    logits = (1.0, 3.0, -2.0)
    log_z = math.log(sum(math.exp(x) for x in logits))
    for z_loss, smoothing in ((0.0, 0.0), (1e-4, 0.0), (0.1, 0.1)):
        soft = (smoothing / 2, 1 - smoothing, smoothing / 2)
        entropy = -sum(p * math.log(p) for p in soft if p)
        expected = -sum(p * (x - log_z) for p, x in zip(soft, logits, strict=True)) - entropy + z_loss * log_z**2
        found, plain, right = target_losses(np.array([logits], np.float32), np.array([1]), z_loss, smoothing)
        name = f"z-loss {z_loss:g}, smoothing {smoothing:g}"
        yield f"{name}: loss", bool(abs(float(found[0]) - expected) < 1e-6), True
        yield f"{name}: cross-entropy", bool(abs(float(plain[0]) - (log_z - 3.0)) < 1e-6), True
        yield f"{name}: right", float(right[0]), 1.0


def length_penalties() -> Comparisons:
    for alpha, length, expected in ((0.6, 1, 1.0), (0.6, 7, 2**0.6), (0.6, 43, 8**0.6), (1.0, 13, 3.0), (0.0, 50, 1.0)):
        yield f"alpha {alpha}, length {length}", round(float(length_penalty(alpha, length)), 5), round(expected, 5)


def sampling_sets() -> Comparisons:
    logits = np.log(np.array([PROBABILITIES], np.float32))
    for (top_k, top_p), expected in KEPT_TOKENS.items():
        found = np.asarray(filter_logits(logits, top_k, top_p))[0]  # type: ignore[arg-type]
        yield f"top_k {top_k}, top_p {top_p}", np.flatnonzero(found > -1e29).tolist(), expected
