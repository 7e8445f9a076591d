"""Writes data set folders as TFDS prepares them (array_record), by hand: without TFDS and TensorFlow.

A schema maps fields to "text", "int", "float", a list of class names, ["sequence", type] or a nested schema.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FEATURES = "tensorflow_datasets.core.features"
NUMBERS = {"int": "int64", "float": "float32"}


def write_tfds(folder: Path, name: str, schema: Mapping[str, Any], splits: Mapping[str, Sequence[dict]]) -> Path:
    """The folder of version 1.0.0 under `folder`, with one shard for each split."""
    from array_record.python.array_record_module import ArrayRecordWriter

    home = folder / name / "1.0.0"
    home.mkdir(parents=True)
    infos = []
    for split, records in splits.items():
        encoded = [example(schema, record) for record in records]
        writer = ArrayRecordWriter(str(home / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for one in encoded:
            writer.write(one)
        writer.close()
        size = {"numBytes": str(sum(map(len, encoded))), "shardLengths": [str(len(encoded))]}
        infos.append({"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "name": split, **size})
    info = {"fileFormat": "array_record", "moduleName": "x", "name": name, "splits": infos, "version": "1.0.0"}
    (home / "dataset_info.json").write_text(json.dumps(info))
    (home / "features.json").write_text(json.dumps(_feature(schema)))
    for field, kind in schema.items():
        if _is_classes(kind):
            (home / f"{field}.labels.txt").write_text("\n".join(kind) + "\n")
    return home


def _is_classes(kind: Any) -> bool:
    return isinstance(kind, list) and kind[0] != "sequence"


def _feature(kind: Any) -> dict[str, Any]:
    if isinstance(kind, Mapping):
        inside = {field: _feature(one) for field, one in kind.items()}
        return {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": inside}}
    if kind == "text":
        return {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}}
    if isinstance(kind, str):
        tensor = {"dtype": NUMBERS[kind], "encoding": "none", "shape": {}}
        return {"pythonClassName": f"{FEATURES}.tensor_feature.Tensor", "tensor": tensor}
    if _is_classes(kind):
        count = {"numClasses": str(len(kind))}
        return {"pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel", "classLabel": count}
    sequence = {"feature": _feature(kind[1]), "length": "-1"}
    return {"pythonClassName": f"{FEATURES}.sequence_feature.Sequence", "sequence": sequence}


def example(schema: Mapping[str, Any], record: Mapping[str, Any]) -> bytes:
    """A serialized tf.train.Example; nested fields are joined by '/'."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, value)) for name, value in _flat(schema, record, "")
    )
    return _field(1, entries)


def _flat(schema: Mapping[str, Any], record: Mapping[str, Any], before: str) -> Iterator[tuple[str, bytes]]:
    for field, kind in schema.items():
        if isinstance(kind, Mapping):
            yield from _flat(kind, record[field], f"{before}{field}/")
        else:
            several = isinstance(kind, list) and kind[0] == "sequence"
            values = record[field] if several else [record[field]]
            yield f"{before}{field}", _values(kind[1] if several else kind, values)


def _values(kind: Any, values: Sequence[Any]) -> bytes:
    if kind == "text":
        return _field(1, b"".join(_field(1, value.encode()) for value in values))
    if kind == "float":
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    return _field(3, _field(1, b"".join(_varint(value % (1 << 64)) for value in values)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
