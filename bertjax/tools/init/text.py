"""`bertjax init pretrain`, and `bertjax init t5` on running text: documents to learn a language from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.data.sources.records import read_located
from bertjax.errors import UserError
from bertjax.storage.files import OPENERS, expand_globs
from bertjax.tools.init import columns, heldout, recipe
from bertjax.tools.init.request import BASE, Request, Result, Sides, evaluations, given_sides, record_sides
from bertjax.tools.init.source import Data, sample_records
from bertjax.tools.init.write import Recipe

COMPRESSION = 3.0  # bytes of text per byte of a compressed file
ROWS = 32


def pretrain(request: Request) -> Result:
    """Masked language modelling, with next-sentence prediction where there are documents. Raises UserError."""
    machine = request.machine
    data, sides, size = running_text(request)
    length = min(128 if machine.is_small else 256, machine.longest)
    documents = data.keys.get("layout") != "documents" or len(expand_globs(data.keys["files"], BASE)) > 1
    name = (request.pretrained or "").lower()
    other = next((family for family in ("distil", "roberta", "camembert", "electra", "albert") if family in name), None)
    pairs = documents and request.model_fields().get("family", other or "bert") == "bert"  # others have no NSP head
    preprocess = {"kind": "bert_pairs", "sequence_length": length} | ({} if pairs else {"next_sentence": False})
    steps = 3000 if machine.is_small else 50_000
    rate = {"kind": "adamw", "learning_rate": 1e-3 if machine.is_small else 3e-4, "b2": 0.98}
    stage = {
        "name": "pretrain",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "mlm_nsp"} | ({} if pairs else {"nsp_weight": 0}),
        **recipe.pretraining_length(machine, size, steps, ROWS, length),
        "batch_size": ROWS if machine.is_small else 4 * ROWS,
        "optimizer": {"learning_rate": 5e-5} if request.pretrained else rate,
        **evaluations("mlm", sides, preprocess, batches=50),
    }
    nsp = "masked tokens and next sentences" if pairs else "masked tokens (there are no documents for next sentences)"
    words = "'Paris is the [MASK] of France.'"
    model = None if request.pretrained else recipe.bert_sizes(machine, size, length, pretraining=True)
    return Result(
        Recipe(
            title=f"Pre-training of a BERT on {data.described} (about {_amount(size)} of text): {nsp}.",
            commands=[f"bertjax predict fill-mask {request.run_dir} {words}"],
            notes=["Fine-tune it then: bertjax init classify DATA --pretrained " + str(request.run_dir)],
            name=request.name,
            pretrained=request.pretrained,
            model=model,
            stage=stage,
        ),
        sides,
        [f"{data.described}: about {_amount(size)} of text{_layout(data)}"],
    )


def span_corruption(request: Request) -> Result:
    """T5's pre-training. Raises UserError."""
    machine = request.machine
    data, sides, size = running_text(request)
    length = 128 if machine.is_small else 256
    preprocess = {"kind": "span_corruption", "sequence_length": length}
    scratch = {"kind": "adafactor", "warmup_steps": 1000}
    tuned = {"kind": "adafactor", "learning_rate": 1e-3, "schedule": "constant"}
    stage = {
        "name": "pretrain",
        "data": {"source": sides.train, "preprocess": preprocess},
        "objective": {"kind": "text_to_text"},
        **recipe.pretraining_length(machine, size, 3000 if machine.is_small else 50_000, ROWS, length),
        "batch_size": ROWS if machine.is_small else 4 * ROWS,
        "optimizer": tuned if request.pretrained else scratch,
        **evaluations("loss", sides, preprocess, batches=50),
    }
    return Result(
        Recipe(
            title=f"Pre-training of a T5 on {data.described} (about {_amount(size)} of text): span corruption.",
            commands=[f"bertjax predict generate {request.run_dir} 'Thank <extra_id_0> me.'"],
            name=request.name,
            pretrained=request.pretrained,
            model=None if request.pretrained else recipe.t5_sizes(machine, size),
            tokenizer=None if request.pretrained else {"kind": "sentencepiece"},
            stage=stage,
        ),
        sides,
        [f"{data.described}: about {_amount(size)} of text{_layout(data)}; the task is span corruption"],
    )


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{max(size // 1000, 1)} KB"


def _layout(data: Data) -> str:
    """How documents are told apart in text files."""
    said = {"sentences": "a sentence a line", "paragraphs": "blank lines between documents",
            "documents": "a document a file"}  # fmt: skip
    return f", {said[data.keys['layout']]}" if "layout" in data.keys else ""


def running_text(request: Request) -> tuple[Data, Sides, int]:
    """-> (the data, their sides, about how many bytes of text they hold). Raises UserError."""
    data = request.open()
    if data.holds == "questions":
        raise UserError(f"{data.described}: holds questions; name running text, or use `bertjax init qa`")
    if data.holds == "records":
        return _text_records(request, data)
    paths = expand_globs(data.keys["files"], BASE)
    size = sum(int(path.stat().st_size * _inflation(path)) for path in paths)
    if found := given_sides(request, data):
        return data, found, size
    if data.keys["layout"] == "documents" and (files := heldout.hold_out_files(paths)):
        return data, Sides(data.keys | {"files": files[0]}, data.keys | {"files": files[1]}), size
    if data.keys["layout"] == "documents" and len(paths) > 1:
        heldout.check_size(data)
        parts = request.part_names(".jsonl")
        train, evaluation = ({"kind": "jsonl", "files": [str(part)]} for part in parts)
        return data, Sides(train, evaluation, lambda: heldout.split_documents(paths, parts), "documents"), size
    parts = request.part_names(".txt")
    train, evaluation = (data.keys | {"files": [str(part)]} for part in parts)
    return data, Sides(train, evaluation, lambda: heldout.split_text(paths, parts), "blocks of text"), size


def _text_records(request: Request, data: Data) -> tuple[Data, Sides, int]:
    sample = sample_records(data, BASE, 200)
    text = columns.choose_text(sample, request.text)
    keys = {} if text == "text" else {"text_field": text}

    def read() -> Iterator[tuple[dict[str, Any], str, str]]:
        return ((record, str(record.get(text) or ""), "") for _, record in read_located(data.section, BASE))

    characters = sum(len(str(record.get(text) or "")) for record in sample) / len(sample)
    everything = sum(sum(len(str(value)) for value in record.values()) for record in sample) / len(sample)
    if data.size:
        stored = sum(path.stat().st_size * _inflation(path) for path in expand_globs(data.keys["files"], BASE))
        size = int(stored * characters / max(everything, 1))
    else:
        size = int(characters * sum(1 for _ in read()))
    return data, record_sides(request, data, read, **keys), size


def _inflation(path: Path) -> float:
    return COMPRESSION if path.suffix in {*OPENERS, ".zst", ".parquet"} else 1.0
