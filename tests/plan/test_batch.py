"""What a plan takes for a batch is what the loader yields, for every kind of rows; no data is read for it."""

import json
from pathlib import Path

import pytest

from bertjax.config.loading.load import build, load
from bertjax.config.schema.run import Config
from bertjax.data.pipeline.loader import open_batches
from bertjax.data.pipeline.row_fields import stage_fields, task_fields, tokens_per_row
from bertjax.errors import UserError
from bertjax.training.run_context import load_tokenizer

TEXT = {"kind": "text", "files": ["text.txt"], "layout": "sentences"}
SQUAD = {"kind": "squad", "files": ["train.json"]}
LABELS = {"kind": "jsonl", "files": ["labels.jsonl"]}
SCORES = {"kind": "jsonl", "files": ["scores.jsonl"]}
PAIRS = {"kind": "bert_pairs", "sequence_length": 32, "max_predictions_per_seq": 5}
SPANS = {"kind": "span_qa", "sequence_length": 48, "doc_stride": 16, "max_query_length": 12}
CLASSIFY = {"kind": "classify", "sequence_length": 16}
SQUAD_TEXT = {"kind": "text_to_text", "prompt": "squad", "sequence_length": 32, "target_length": 16}
MLM, QA, TEXT_TO_TEXT = "mlm_nsp", "span_qa", "text_to_text"

BERT = [
    (MLM, TEXT, PAIRS),
    (MLM, TEXT, PAIRS | {"pack": True, "max_segments": 3}),
    (MLM, TEXT, PAIRS | {"masking": "static"}),
    (MLM, TEXT, PAIRS | {"masking": "static", "pack": True}),
    (QA, SQUAD, SPANS),
    (QA, SQUAD, SPANS | {"pack": True, "max_segments": 2}),
    ({"kind": "classification", "num_labels": 2}, LABELS, CLASSIFY),
    ({"kind": "classification", "num_labels": 1}, SCORES, CLASSIFY | {"text_b": "text"}),
]
DENOISING = [
    {"kind": "span_corruption"},
    {"kind": "span_corruption", "random_roll": True, "noise_density": 0.3},
    *({"kind": "iid_denoising", "style": style} for style in ("bert", "mass", "replace_spans", "drop")),
    {"kind": "deshuffling"},
    {"kind": "prefix_lm"},
]
T5 = [(TEXT_TO_TEXT, TEXT, options | {"sequence_length": 32}) for options in DENOISING]
T5 += [(TEXT_TO_TEXT, SQUAD, SQUAD_TEXT), (TEXT_TO_TEXT, SQUAD, SQUAD_TEXT | {"pack": True})]
DECODER = [T5[0], T5[7], T5[8], (TEXT_TO_TEXT, TEXT, {"kind": "causal_lm", "sequence_length": 32})]


@pytest.fixture(scope="module")
def home(tiny_project, tmp_path_factory) -> Path:
    """The data of the tiny projects, and some labels."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("text.txt", "train.json"):
        (folder / name).write_bytes((tiny_project / name).read_bytes())
    for name, kind in (("labels", int), ("scores", float)):
        records = [{"text": f"The dog runs {n}.", "label": kind(n % 2)} for n in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tiny_project, tiny_t5_project) -> dict[str, object]:
    homes = {"bert": tiny_project, "t5": tiny_t5_project}
    return {family: load_tokenizer(load(folder / "tiny.yaml"), folder) for family, folder in homes.items()}


def config_of(family: str, objective, data, **model) -> Config:
    sizes = {"vocab_size": 256} | model
    sizes |= {"family": "t5"} if family == "t5" else {"max_position_embeddings": 48}
    kind = {"kind": objective} if isinstance(objective, str) else objective
    stage = {"name": "s", "data": data, "objective": kind, "steps": 4, "batch_size": 6}
    tokenizer = {"kind": "sentencepiece"} if family == "t5" else {}
    return build({"model": sizes, "tokenizer": tokenizer, "run": {"prepare_workers": 1}, "stages": [stage]})


def agrees(config: Config, tokenizer, home: Path) -> bool:
    """The loader's arrays and the plan's, by name, shape and type."""
    (stage,) = config.stages
    batch = open_batches(config, stage, tokenizer, base=home, cache=home / "prepared").batch(0)
    planned = {
        name: ((stage.batch_size, *shape), dtype) for name, (shape, dtype) in stage_fields(config, stage).items()
    }
    return planned == {name: (array.shape, array.dtype) for name, array in batch.items()}


@pytest.mark.parametrize("objective, source, preprocess", BERT)
def test_rows_of_bert(objective, source, preprocess, home, tokenizers):
    config = config_of("bert", objective, {"source": source, "preprocess": preprocess})
    assert agrees(config, tokenizers["bert"], home)


@pytest.mark.parametrize("objective, source, preprocess", T5)
def test_rows_of_t5(objective, source, preprocess, home, tokenizers):
    config = config_of("t5", objective, {"source": source, "preprocess": preprocess})
    assert agrees(config, tokenizers["t5"], home)


@pytest.mark.parametrize("objective, source, preprocess", DECODER)
def test_rows_of_a_decoder_alone(objective, source, preprocess, home, tokenizers):
    data = {"source": source, "preprocess": preprocess}
    assert agrees(config_of("t5", objective, data, architecture="decoder_only"), tokenizers["t5"], home)


def test_a_mixture_numbers_its_tasks(tiny_t5_project, tokenizers):
    config = load(tiny_t5_project / "tiny.yaml")
    stage = config.stages[0]
    batches = open_batches(config, stage, tokenizers["t5"], base=tiny_t5_project, cache=tiny_t5_project / "prepared")
    assert stage_fields(config, stage) == batches.fields and "task_ids" in batches.fields


def test_mixed_tasks_need_the_same_rows(tiny_t5_project):
    config = load(tiny_t5_project / "tiny.yaml", ["tasks.questions.preprocess.target_length=24"])
    with pytest.raises(UserError, match="cannot be mixed"):
        stage_fields(config, config.stages[0])


def test_positions_are_those_of_inputs_and_targets():
    config = config_of("t5", TEXT_TO_TEXT, {"source": SQUAD, "preprocess": SQUAD_TEXT})
    assert tokens_per_row(stage_fields(config, config.stages[0])) == 32 + 16
    assert tokens_per_row(task_fields(config, config.stages[0].data)) == 32 + 16
    config = config_of("bert", MLM, {"source": TEXT, "preprocess": PAIRS})
    assert tokens_per_row(stage_fields(config, config.stages[0])) == 32
