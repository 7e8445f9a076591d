"""Weights as 8-bit integers with a scale per row: the folder that `bertjax quantize` writes."""

import shutil
from pathlib import Path

import numpy as np

from bertjax.interop.safetensors_folder import INDEX, INT8_WEIGHTS, SCALE, WEIGHTS, open_folder, write_tensors

MIN_ELEMENTS = 16_384  # smaller tensors stay float32


def quantize_rows(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, columns] -> (int8 [rows, columns], float32 scales [rows]); weights are about integers x scale.

    Symmetric absmax quantization, a scale per row (Dettmers et al. 2022, arXiv 2208.07339, section 2.1): the error of
    a weight is at most half of its row's scale, which is the row's largest magnitude / 127.
    """
    scales = (np.abs(weights).max(1) / np.float32(127)).astype(np.float32)
    scales[scales == 0] = 1
    return np.clip(np.rint(weights / scales[:, None]), -127, 127).astype(np.int8), scales


def quantize_folder(source: Path, out: Path) -> dict[str, int]:
    """Write a Hugging Face folder again with its matrices in int8 -> {"matrices", "others"}: numbers of tensors.

    A matrix is a `*.weight` with two axes and at least MIN_ELEMENTS elements, embeddings included; in PyTorch's layout
    its rows are outputs, or tokens. Other tensors stay float32. `out` is a new folder.
    """
    tensors: dict[str, np.ndarray] = {}
    counts = {"matrices": 0, "others": 0}
    for name, stored in open_folder(source).items():
        array = stored.read()
        is_matrix = name.endswith("weight") and array.ndim == 2 and array.size >= MIN_ELEMENTS
        if is_matrix:
            tensors[name], tensors[name + SCALE] = quantize_rows(array)
        else:
            tensors[name] = array
        counts["matrices" if is_matrix else "others"] += 1
    shutil.copytree(source, out, ignore=lambda folder, names: {WEIGHTS, INDEX, INT8_WEIGHTS} & set(names))
    write_tensors(out / INT8_WEIGHTS, tensors)
    shutil.copymode(out / "config.json", out / INT8_WEIGHTS)
    return counts
