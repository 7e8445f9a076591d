"""Everything on one GPU in one call: steps of BERT and T5, attention kernels, decoding, FP8; beside torch.

    python benchmarks/gpu.py                                             # all parts, at most nine minutes
    python benchmarks/gpu.py --parts kernels,steps --shapes base512,large512 --rounds 7
    python benchmarks/gpu.py --ablate-flags --parts flags                # each XLA flag changed
    python benchmarks/gpu.py --device cpu --shapes tiny512,t5_tiny --rounds 1 --steps 1   # the code, without a GPU

Parts: `steps` (BERT with and without attention dropout, packed and not; T5; XLA, the package's own kernel, cuDNN,
torch), `kernels` (attention alone, forward and backward, with errors), `fp8` (a step with dense layers in FP8, and the
losses of 500 steps beside those in bfloat16), `decode` (decode.py), `flags`. Parts that no longer fit into `--minutes`
are left out and named; a side that cannot run has its reason in one line.

Every side of a comparison is a process of its own that keeps its model; they take turns, `--steps` steps at a time, in
an order that is reversed every round, so that clocks and heat are the same for all. torch: bfloat16 autocast, SDPA
attention, fused AdamW (T5: Adafactor). MFU: the FLOPs of bertjax's formulas over the dense peak of the chip, the same
count for every side. Prints one JSON line a part and rewrites results/gpu.json after each. The parent process never
uses the GPU. Needs jax[cuda], flax, optax, pydantic and, for the other sides, torch and transformers.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from accelerator.run import main  # noqa: E402

if __name__ == "__main__":
    main("gpu", __doc__)
