"""Everything on the TPU of one VM in one call: steps of BERT and T5, attention kernels, decoding and FP8.

    python benchmarks/tpu.py                                             # all parts, at most 45 minutes
    python benchmarks/tpu.py --shapes base512,t5_base --parts steps --rounds 7
    python benchmarks/tpu.py --ablate-flags --parts flags                # each XLA flag changed
    python benchmarks/tpu.py --device cpu --shapes tiny512,t5_tiny --rounds 1 --steps 1   # the code, without a TPU

The same parts, options and results (results/tpu.json) as gpu.py, with splash attention in cuDNN's place and without
torch, except in decoding, where it runs on the CPU. All chips of the VM compute, with data parallelism: rows are those
of each chip, and MFU is over all chips. A TPU belongs to one process at a time, so sides run one after another.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from accelerator.run import main  # noqa: E402

if __name__ == "__main__":
    main("tpu", __doc__)
