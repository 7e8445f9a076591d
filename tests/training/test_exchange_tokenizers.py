"""Tokenizers of Hugging Face folders through import, training and export: transformers gives the same ids after it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bertjax.config.loading.load import build
from bertjax.config.schema.model import BertConfig, T5Config
from bertjax.config.schema.run import Config
from bertjax.data.tokenizers import load, sentencepiece, wordpiece
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.predictors import masks
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder
from bertjax.models import registry
from bertjax.tools import convert_hf
from bertjax.training import loop, run_context
from bertjax.training.checkpoint import warmstart

TEXTS = [
    "The Café [MASK] sat, naïve; ﬁne", "Cafe\u0301 日本語 हिन्दी", "x<ent>y <ent> [SEP] <mask> </s>", "a" * 150,
    "tabs\tand\nnew  lines", "the <extra_id_0> cat <extra_id_1>",
]  # fmt: skip
NAMES = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
LETTERS = sorted({c for text in TEXTS for form in (text, text.lower()) for c in form if not c.isspace()})
PIECES = [*NAMES, *LETTERS, *(f"##{x}" for x in LETTERS), "the", "cafe", "café"]
ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), NAMES, strict=True))
BERT = BertConfig(
    vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=160,
)  # fmt: skip
T5 = T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def unigram() -> str:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(
        TEXTS * 3, trainers.UnigramTrainer(vocab_size=300, special_tokens=NAMES, unk_token="<unk>")
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return backend.to_str()


FILES = {
    "accents, names, added": {
        "vocab.txt": "".join(f"{piece}\n" for piece in PIECES),
        "tokenizer_config.json": ROLES | {"strip_accents": False},
        "added_tokens.json": {"<ent>": len(PIECES)},
    },
    "unigram": {
        "tokenizer.json": unigram(),
        "tokenizer_config.json": ROLES | {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": {"additional_special_tokens": ["<ent>"]},
    },
}


def folder(files: dict, model=BERT, heads: tuple[str, ...] = ("mlm",)) -> Path:
    """A Hugging Face folder with random weights and these tokenizer files."""
    fresh = jax.jit(registry.init_params, static_argnums=(0, 1, 2))(model, heads, 2, jax.random.key(0))
    params = {path: np.asarray(x) for path, x in fresh.items()}
    if isinstance(model, T5Config):
        text = [["The cat sat on the mat and the dog sat beside the cat: " + TEXTS[0]]] * 20
        own = sentencepiece.train(lambda: iter(text), vocab_size=160, extra_ids=100, character_coverage=1.0)
        hf_folder.save_folder(Path("hf"), params, model, ("lm",), tokenizer=own)
        size = own.vocab_size
    else:
        backend = load.build_wordpiece({piece: i for i, piece in enumerate(wordpiece.SPECIAL_TOKENS)}, lowercase=True)
        hf_folder.save_folder(Path("hf"), params, model, heads, tokenizer=load.Tokenizer(backend, "test"))
        size = 0
        for path in Path("hf").iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                path.unlink()
    for name, content in files.items():
        content = content(size) if callable(content) else content
        (Path("hf") / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return Path("hf")


def ids(path: str) -> list[list[int]]:
    return transformers.AutoTokenizer.from_pretrained(path)(TEXTS)["input_ids"]


@pytest.mark.parametrize("name", [pytest.param("accents, names, added", marks=pytest.mark.slow), "unigram"])
def test_a_bert_folder_there_and_back(name):
    source = folder(FILES[name])
    convert_hf.import_folder(source, Path("runs/imported"))
    convert_hf.export_checkpoint(Path("runs/imported"), Path("back"))
    assert ids("back") == ids("hf")
    restored = restore("runs/imported")
    ours = restored.ctx.tokenizer
    rows = [[ours.cls_id, *row, ours.sep_id] for row in ours.encode_batch(TEXTS)]
    assert rows == ids("hf")
    assert json.loads(Path("back/config.json").read_text())["pad_token_id"] == 0
    assert run_context.load_tokenizer(restored.ctx.config, Path()).sha256 == ours.sha256  # the run's own folder
    (filled,) = masks.fill_mask(restored, ["the [MASK] a"], 2)
    assert len(filled["masks"]) == 1 and "[MASK]" not in filled["masks"][0][0]["text"]
    assert masks.to_tokenizer_mask(ours, "the [MASK]") == "the <mask>"
    assert masks.encode_with_masks(ours, ["the <mask>"])[0][-2:] == [ours.mask_id, ours.sep_id]


def test_a_t5_folder_there_and_back():
    """Added tokens beside spiece.model and tokenizer.json, as people add them to T5."""
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}

    def config(size: int) -> dict:
        tokens = {str(size + i): {"content": token, **plain} for i, token in enumerate(["<ent>", "\n", "<mask>"])}
        return {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "added_tokens_decoder": tokens}

    source = folder({"tokenizer_config.json": config}, T5, ("lm",))
    convert_hf.import_folder(source, Path("runs/imported"))
    convert_hf.export_checkpoint(Path("runs/imported"), Path("back"))
    assert ids("back") == ids("hf")
    ours = restore("runs/imported").ctx.tokenizer
    assert [[*row, ours.eos_id] for row in ours.encode_batch(TEXTS)] == ids("hf")
    assert ours.pieces.index("<ent>") in ours.encode_batch([TEXTS[2]])[0]


def test_added_tokens_that_have_no_weights():
    source = folder(FILES["accents, names, added"])
    (source / "added_tokens.json").write_text(json.dumps({f"<x{i}>": len(PIECES) + i for i in range(320)}))
    message = rf"{len(PIECES) + 320} pieces, vocab_size is 320: no weights for <x\d+>, <x\d+>, <x\d+> and"
    with pytest.raises(UserError, match=message):
        convert_hf.import_folder(source, Path("out"))


def fine_tuning(tokenizer: str, **options) -> Config:
    windows = {"kind": "span_qa", "sequence_length": 32, "doc_stride": 8, "max_query_length": 8}
    stage = {
        "name": "qa", "steps": 1, "batch_size": 8, "init_from": "hf", "objective": {"kind": "span_qa"},
        "data": {"source": {"kind": "stdlib_qa"}, "preprocess": windows},
    }  # fmt: skip
    model = BERT.model_dump(exclude={"family", "config_from"})
    run = {"name": "trained", "tensorboard": False, "compilation_cache_dir": None, "prepare_workers": 1}
    about = {"path": tokenizer} | options
    return build({"model": model, "tokenizer": about, "stages": [stage], "run": run})


def test_equal_pieces_with_another_normalizer_are_another_tokenizer():
    """On the same vocabulary: accents kept in one and stripped in the other."""
    names = FILES["accents, names, added"]["vocab.txt"]
    for name, token in zip(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), NAMES, strict=True):
        names = names.replace(f"{token}\n", f"{name}\n", 1)
    settings = {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": True}
    folder({"vocab.txt": names, "tokenizer_config.json": settings})
    Path("bare").mkdir()
    Path("bare/vocab.txt").write_text(names, encoding="utf-8")
    for options in ({}, {"lowercase": False}, {"strip_accents": False, "tokenize_chinese_chars": False}):
        ctx = run_context.open_run_context(fine_tuning("bare/vocab.txt", **options), Path.cwd())
        with pytest.raises(UserError, match="another tokenizer; set tokenizer.path to hf .*normalizer"):
            warmstart.check_tokenizer(Path("hf"), ctx)
    for config in (fine_tuning("bare/vocab.txt", strip_accents=False), fine_tuning("hf")):
        warmstart.check_tokenizer(Path("hf"), run_context.open_run_context(config, Path.cwd()))


@pytest.mark.slow
def test_a_trained_run_is_exported_with_the_folder_s_tokenizer():
    folder(FILES["accents, names, added"], heads=("pooler",))
    loop.train(fine_tuning("hf"), Path.cwd(), build_evaluators)
    convert_hf.export_checkpoint(Path("runs/trained"), Path("back"))
    assert ids("back") == ids("hf")
