"""Folders of the peft library, adapter_config.json and adapter_model.safetensors, with LoRA and the heads trained."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config.schema.model import ModelConfig
from bertjax.config.schema.training import Trainable
from bertjax.errors import UserError
from bertjax.interop import bert_names, hf_folder, safetensors_folder
from bertjax.models.layers import lora

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# {the head that a stage trains: peft's name of the task}; the head of a T5 is frozen
_TASKS = {"qa": "QUESTION_ANS", "classifier": "SEQ_CLS", "lm": "SEQ_2_SEQ_LM"}


def save_adapter(
    out: Path, params: Mapping[str, np.ndarray], model: ModelConfig, heads: Sequence[str], trainable: Trainable,
    base: str | None,
) -> None:  # fmt: skip
    """Write a folder that `PeftModel.from_pretrained(model, out)` of peft loads onto the base; it appears atomically.

    params: {our path: float32 array} of the updates and heads. `base`: the name or folder of the weights below them.
    Raises UserError for heads or families without a place in such a folder, OSError when writing fails.
    """
    tasks = [_TASKS[head] for head in heads if head in _TASKS]
    if len(heads) != 1 or not tasks:
        raise UserError(f"{out}: peft has no task for the heads {', '.join(heads)}; export without --adapter")
    if (names := hf_folder.format_of(model).tensor_names) is None:
        raise UserError(f"{out}: adapter folders of a {model.family} model are not written; export without --adapter")
    table = names(model, heads)
    tensors: dict[str, np.ndarray] = {}
    targets: set[str] = set()
    saved: set[str] = set()
    for path, x in params.items():
        if lora.is_lora(path):
            kernel, number, matrix = lora.parse_path(path)
            name = table[kernel][number].removesuffix(".weight")
            targets.add(name)
            tensors[f"{name}.lora_{matrix.upper()}.weight"] = np.ascontiguousarray(x.T)
        elif path.startswith("heads/") and tasks != [_TASKS["lm"]]:
            pieces = bert_names.to_hf(path, np.asarray(x, np.float32), len(table[path]))
            tensors |= dict(zip(table[path], pieces, strict=True))
            saved |= {_saved_module(name.rpartition(".")[0]) for name in table[path]}
    config = _config(trainable, tasks[0], sorted(targets), sorted(saved), base)
    _write(out, {f"base_model.model.{name}": x for name, x in tensors.items()}, config)


def _saved_module(module: str) -> str:
    """The entry of a head's module in `modules_to_save`.

    peft saves the `classifier` of every sequence classification as a whole: with its layers as entries too, those of
    RoBERTa and ELECTRA would be wrapped twice, and loading fails.
    """
    return "classifier" if module.startswith("classifier.") else module


def _config(trainable: Trainable, task: str, targets: list[str], saved: list[str], base: str | None) -> dict[str, Any]:
    """peft's LoraConfig; targets are named in full, since `output.dense` is the end of two names."""
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": trainable.lora_rank,
        "lora_alpha": trainable.lora_alpha,
        "use_rslora": trainable.lora_rslora,
        "lora_dropout": trainable.lora_dropout,
        "target_modules": targets,
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _write(out: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    work = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        safetensors_folder.write_tensors(work / WEIGHTS, tensors)
        safetensors_folder.write_json(work / CONFIG, dict(config))
        shutil.copymode(work / CONFIG, work / WEIGHTS)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
