"""What of T5 is here: mixing rates and gradual unfreezing."""

from bertjax.config.data_schema import Mixture
from bertjax.config.training_schema import Trainable
from bertjax.data import mixing
from bertjax.verify.table import Triples

GLUE = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363849, "stsb": 5749, "mnli": 392702, "qnli": 104743, "rte": 2490,
}  # fmt: skip
GLUE_RATES: dict[str, tuple[dict[str, float], list[float]]] = {
    "T=1": ({}, [0.00901, 0.07096, 0.00386, 0.38336, 0.00606, 0.41376, 0.11036, 0.00262]),
    "K=2^16": ({"limit": 65536}, [0.03026, 0.2319, 0.01298, 0.2319, 0.02034, 0.2319, 0.2319, 0.00881]),
    "T=2": ({"temperature": 2.0}, [0.04421, 0.12407, 0.02895, 0.28837, 0.03625, 0.29958, 0.15472, 0.02386]),
}


def glue_rates() -> Triples:
    for rule, (options, expected) in GLUE_RATES.items():
        found = mixing.rates(GLUE, Mixture(mixture=list(GLUE), **options))  # type: ignore[arg-type]
        for (task, rate), share in zip(found.items(), expected, strict=True):
            yield f"{rule} {task}", round(rate, 5), share


def unfreezing() -> Triples:
    from bertjax.training import freezing

    starts = [0, 21845, 43690, 65536, 87381, 109226, 131072, 152917, 174762, 196608, 218453, 240298]
    groups = ("embeddings", *(f"layers/{n}" for n in range(12)), "heads")
    plan = freezing.episodes(Trainable(kind="gradual", embeddings="always"), groups, 2**18)
    for number, (episode, start) in enumerate(zip(plan, starts, strict=True)):
        yield f"episode {number} begins", episode.start, start
        top = [f"layers/{n}" for n in range(11 - number, 12)]
        yield f"episode {number} trains", list(episode.groups), ["embeddings", *top, "heads"]
    yield "the end", plan[-1].stop, 2**18
