"""T5's sizes and relative position buckets."""

import math

from bertjax.config.schema.model import T5Config
from bertjax.verify.runner import Comparisons

BASE = {"d_model": 768, "num_layers": 12, "num_heads": 12}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def parameter_counts() -> Comparisons:
    from bertjax.models import registry

    for name, sizes, expected in (
        ("T5-small", {}, 60_506_624),
        ("T5-base", {**BASE, "d_ff": 3072}, 222_903_552),
        ("T5-large", {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16}, 737_668_096),
        ("T5 v1.1 base", {**BASE, **V1_1, "d_ff": 2048}, 247_577_856),
    ):
        state = registry.abstract_params(T5Config(**sizes), ("lm",))  # type: ignore[arg-type]
        yield name, sum(math.prod(x.shape) for x in state.values()), expected


def position_buckets() -> Comparisons:
    """First distances of buckets, in integers: bucket e + j of e exact ones begins at the first n^e >= e^e (m/e)^j."""
    from bertjax.models.t5.attention import bucket_table

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
