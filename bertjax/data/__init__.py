"""From text to batches: everything between a file on disk and the arrays a training step receives.

Here belong reading sources, sentence splitting, tokenizers, making examples, packing, the prepared store, mixing and
loading. It is numpy, `tokenizers` and ArrayRecord; no module of this folder imports jax, knows the device mesh or keeps
state between batches: batch k is a pure function of the data, the seed and k.
"""
