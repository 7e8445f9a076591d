"""T5: mixing rates, gradual unfreezing and sizes of adapters."""

from bertjax.config.schema.data import Mixture
from bertjax.config.schema.model import T5Config
from bertjax.config.schema.training import Trainable
from bertjax.data.pipeline import mixing
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
    from bertjax.models import registry
    from bertjax.training import freezing

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
    from bertjax.models import registry
    from bertjax.training import freezing

    for size, count in ADAPTERS.items():
        sizes = freezing.group_sizes(registry.abstract_params(BASE, ("lm",), adapter_size=size))
        for norms, more in (("houlsby", 0), ("paper", 12 * 2 * 768 + 12 * 3 * 768 + 2 * 768)):
            trainable = Trainable(kind="adapters", adapter_size=size, adapter_norms=norms)  # type: ignore[arg-type]
            (episode,) = freezing.episodes(trainable, tuple(sizes), 1)
            yield f"d = {size}, {norms}", sum(sizes[group] for group in episode.groups), count + more
