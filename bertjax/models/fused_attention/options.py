"""The static options of one fused attention."""

from dataclasses import dataclass
from math import gcd

MASK_VALUE = -1e30  # as in models/attention.py: a query without a visible key averages all values
LANES = 128  # of a TPU's vector registers: blocks are multiples of it
_MOST_SCORES = 512 * 512  # in VMEM at a time


@dataclass(frozen=True)
class FusedOptions:
    """Everything that a kernel is compiled for besides shapes and dtypes.

    Attributes:
        scale: of the scores.
        rate: of dropout on probabilities.
        counts: (rows, heads, queries) of the array of probabilities over all devices, which dropout numbers.
        keys: how many there are; those after them are padding.
        causal: a query sees no key after it, except those of a prefix.
        prefix: key codes hold a bit for keys of a prefix.
        window: a query sees only keys at most this far from it.
        block_q, block_k, block_h: queries, keys and heads of one invocation.
        gpu: the kernels of gpu.py, else those for TPUs.
        interpret: run by Pallas's interpreter.
    """

    scale: float
    rate: float
    counts: tuple[int, int, int]
    keys: int
    causal: bool
    prefix: bool
    window: int | None
    block_q: int
    block_k: int
    block_h: int
    gpu: bool
    interpret: bool

    @property
    def step(self) -> int:
        """Distances between key and query block are multiples of this."""
        return gcd(self.block_q, self.block_k)

    @property
    def skips(self) -> bool:
        """Whether some pairs of blocks have no visible key."""
        return self.window is not None or (self.causal and not self.prefix)


def choose_block(length: int) -> int:
    """The largest block of a sequence that is a multiple of 128 and divides its length, at most 512."""
    return next((size for size in (512, 384, 256) if length % size == 0), LANES)


def choose_heads(heads: int, block_q: int, block_k: int) -> int:
    """Heads of one invocation, a divisor of `heads`: short sequences share the cost of starting one."""
    fit = max(1, _MOST_SCORES // (block_q * block_k))
    return max(n for n in range(1, fit + 1) if heads % n == 0)


def choose_gpu_blocks(head_dim: int) -> tuple[int, int, int]:
    """(queries, keys, heads) of one invocation, which fit its registers; the keys divide the queries."""
    return (128, 64, 1) if head_dim <= 64 else (64, 64, 1)
