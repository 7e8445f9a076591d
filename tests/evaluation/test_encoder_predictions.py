"""Predictions with the tokenizers of RoBERTa, XLM-R, ALBERT and ELECTRA are those of transformers."""

import json
from pathlib import Path

import pytest
from encoder_folders import is_double, tokenizer_folder

import bertjax
from bertjax.data.tokenizers import load
from bertjax.evaluation.predictors import masks

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
MODEL_TYPES = {"roberta, json": "roberta", "xlm-roberta": "xlm-roberta", "albert": "albert", "electra": "electra"}


def folder(kind: str, where: Path, task: str = "MaskedLM") -> Path:
    """A tiny model with random weights."""
    tokenizer_folder(kind, where, model_type=MODEL_TYPES[kind])
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    config = transformers.AutoConfig.for_model(
        MODEL_TYPES[kind], vocab_size=len(tokenizer), max_position_embeddings=80, initializer_range=0.5, **sizes,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    getattr(transformers, f"AutoModelFor{task}").from_config(config).save_pretrained(where)
    return where


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_fill_mask_gives_what_the_pipeline_gives(kind, tmp_path):
    where = folder(kind, tmp_path / "hf")
    pipeline = transformers.pipeline("fill-mask", model=str(where), device="cpu")
    mask = pipeline.tokenizer.mask_token
    texts = [f"Paris is the {mask} of France.", f"{mask} cat", f"the cat,{mask}!", f"日本{mask}東京  {mask} end"]
    model = bertjax.open(where)
    found = model.fill_mask(texts, top_k=4)
    for text, filled in zip(texts, found, strict=True):
        expected = pipeline(text, top_k=4)
        expected = expected if isinstance(expected[0], list) else [expected]
        for ours, theirs in zip(filled["masks"], expected, strict=True):
            assert [one["token"] for one in ours] == pipeline.tokenizer.convert_ids_to_tokens(
                [one["token"] for one in theirs]
            )
            assert [one["probability"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-5)
    spelled = model.fill_mask([text.replace(mask, "[MASK]") for text in texts], top_k=4)
    assert [one["masks"] for one in spelled] == [one["masks"] for one in found]
    assert is_double(kind) == (model.tokenizer.layout.separators == 2)


def test_filled_text_joins_pieces_as_the_tokenizer_does(tmp_path):
    """<mask> takes the space before it: a piece without Ġ continues the word."""
    tokenizer = load.from_file(tokenizer_folder("roberta, json", tmp_path / "hf"))
    pieces = tokenizer.pieces
    marked, bare = pieces.index("Ġcat"), pieces.index("s")
    for text, piece, expected in (
        ("the <mask> sat", marked, "the cat sat"), ("the<mask> sat", marked, "the cat sat"),
        ("the <mask> sat", bare, "thes sat"), ("<mask> sat", marked, "cat sat"),
    ):  # fmt: skip
        assert masks.fill_result(tokenizer, text, 0, piece, 0.5)["text"] == expected
        before, after = text.split("<mask>")
        ids = tokenizer.encode_batch([before.rstrip()])[0] + [piece] + tokenizer.encode_batch([after])[0]
        assert tokenizer.decode(ids).strip() == expected


def test_a_trained_bpe_reads_its_mask_as_its_export_does(tmp_path):
    """Text never gives a special token there; fill-mask places the mask itself."""
    ours = load.train_bpe(lambda: iter([["the cat sat on the mat", "a cat and a dog"]] * 3), vocab_size=300)
    ours.save(tmp_path / "own")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
    texts = ["the <mask> sat", "<mask> cat", "the <mask>  <mask> dog <mask>", "cat<mask>s"]
    assert masks.encode_with_masks(ours, texts) == theirs(texts)["input_ids"]
    assert json.loads((tmp_path / "own" / "tokenizer_config.json").read_text())["mask_token"] == "<mask>"


@pytest.mark.parametrize("kind", ["roberta, json", "albert"])
def test_pairs_are_classified_as_by_transformers(kind, tmp_path):
    """`<s> a </s></s> b </s>` without types, `[CLS] a [SEP] b [SEP]` with them."""
    where = folder(kind, tmp_path / "hf", "SequenceClassification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(where).eval()
    firsts, seconds = ["the cat sat", "Paris", "日本語 😀"], ["a dog?", "The capital of France", "cat"]
    model = bertjax.open(where)
    for pairs in (seconds, None):
        found = model.classify(firsts, pairs=pairs)
        for n, one in enumerate(found):
            options = {"return_tensors": "pt", "return_token_type_ids": kind == "albert"}  # not by default in version 5
            given = tokenizer(firsts[n], *([] if pairs is None else [pairs[n]]), **options)
            with torch.no_grad():
                expected = reference(**given).logits.softmax(-1)[0].tolist()
            ours = {label["label"]: label["probability"] for label in one["labels"]}
            assert [ours[number] for number in range(2)] == pytest.approx(expected, abs=1e-5)
