"""`bertjax.Model` against transformers' torch models, in any batch; and what it refuses."""

import io
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_sections import model_section  # noqa: E402

import bertjax  # noqa: E402
from bertjax.config.loading.load import build  # noqa: E402
from bertjax.config.schema.data import Classify  # noqa: E402
from bertjax.data.tokenizers import load, sentencepiece  # noqa: E402
from bertjax.data.tokenizers.load import Tokenizer  # noqa: E402
from bertjax.errors import UserError  # noqa: E402
from bertjax.evaluation.inference.length_batches import padded_width  # noqa: E402
from bertjax.evaluation.predictors import labels  # noqa: E402
from bertjax.evaluation.restore import RestoredCheckpoint  # noqa: E402
from bertjax.interop import hf_folder  # noqa: E402
from bertjax.models import families  # noqa: E402
from bertjax.parallel.mesh import make_mesh  # noqa: E402
from bertjax.progress import reporter  # noqa: E402
from bertjax.training.program import stage_program  # noqa: E402
from bertjax.training.run_context import RunContext  # noqa: E402

WORDS = "dog cat owl fox barn tree sleeps runs sings under near the a green old".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
LABELS = ["calm", "loud", "odd"]
OBJECTIVES = {
    "classifier": {"kind": "classification", "num_labels": 3}, "mlm": {"nsp_weight": 0}, "lm": {"kind": "text_to_text"},
}  # fmt: skip
PREPROCESS = {
    "classifier": {"kind": "classify", "sequence_length": 48}, "mlm": {"sequence_length": 48, "next_sentence": False},
    "lm": {"kind": "text_to_text", "inputs": "{text}", "targets": "{text}"},
}  # fmt: skip


def texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(1, longest, count)]


def torch_model(kind: str):
    """A transformers model with random weights, biases and norms too."""
    sizes = {"vocab_size": 24, "num_labels": 3, "max_position_embeddings": 48}
    if kind.startswith("Distil"):
        config = transformers.DistilBertConfig(dim=24, n_layers=2, n_heads=3, hidden_dim=40, **sizes)
    elif kind.startswith("T5"):
        config = transformers.T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
    else:
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
        config = transformers.BertConfig(hidden_size=24, **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            norm = "norm" in path.lower() and path.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if norm else 0.0))
    return model


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """kind of transformers model -> (it, a Model with its weights)."""
    made = {}
    wordpiece = Tokenizer(load.build_wordpiece({piece: i for i, piece in enumerate(PIECES)}, lowercase=True), "test")
    unigram = sentencepiece.train(lambda: iter([texts(300)]), vocab_size=64, extra_ids=4, character_coverage=1.0)

    def make(kind: str, devices: int = 1):
        if (kind, devices) not in made:
            theirs, folder = torch_model(kind), tmp_path_factory.mktemp("hf")
            theirs.save_pretrained(folder)
            section = model_section(folder)
            params = hf_folder.load_params(folder, section)
            heads = families.record_of(section).find_heads(params)
            head = next((name for name in OBJECTIVES if name in heads), "mlm")
            task = {"source": {"kind": "jsonl", "files": ["none.jsonl"]}, "preprocess": PREPROCESS[head]}
            if head == "mlm":
                task["source"] = {"kind": "text", "files": ["none.txt"]}
            stage = {"name": "s", "data": task, "objective": OBJECTIVES[head], "steps": 1}
            config = build({
                "model": section.model_dump(), "tokenizer": {"kind": section.tokenizer},
                "run": {"compute_dtype": "float32"}, "stages": [stage],
            }, (), where="here")  # fmt: skip
            mesh = make_mesh(config.mesh, jax.devices()[:devices])
            ctx = RunContext(config, None, mesh, unigram if kind.startswith("T5") else wordpiece)
            program = stage_program(config, config.stages[0], mesh, 1, heads=heads)
            shardings = program.param_shardings()
            params = {path: jax.device_put(x, shardings[path]) for path, x in params.items()}
            names = LABELS if head == "classifier" else None
            model = bertjax.Model(RestoredCheckpoint(ctx, 0, 1, program, params, labels=names), batch_size=8)
            made[kind, devices] = theirs, model
        return made[kind, devices]

    return make


def torch_outputs(theirs, rows: list[list[int]], types: list[list[int]] | None = None):
    """Outputs for rows of token ids, one by one, so that nothing is padded."""
    for number, ids in enumerate(rows):
        inputs = {"input_ids": torch.tensor([ids])}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor([types[number]])
        with torch.no_grad():
            yield theirs(**inputs, output_hidden_states=True)


def framed(model: bertjax.Model, some: list[str]) -> list[list[int]]:
    bare = model.tokenizer.encode_batch(some)
    return [[*ids, 1] for ids in bare] if model.config.model.family == "t5" else [[2, *ids, 3] for ids in bare]


# ---- the module -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "DistilBertModel", "T5ForConditionalGeneration"])
def test_module_is_tabulated_and_called_as_that_of_transformers(opened, kind):
    theirs, model = opened(kind)
    rows = framed(model, ["the dog sleeps", "a cat"])
    width = max(map(len, rows))
    ids, mask = (np.array([[f(i) for i in row] + [0] * (width - len(row)) for row in rows]) for f in (int, lambda _: 1))
    tables: list[str] = []

    def tabulate(ids, mask):
        shown = {"width": 300, "force_terminal": False}
        tables.append(nnx.tabulate(model.module, ids, attention_mask=mask, console_kwargs=shown))

    if kind == "DistilBertModel":
        tabulate(ids, mask)
    else:  # traced without compiling it
        jax.eval_shape(tabulate, ids, mask)
    table = tables[0]
    size = sum(x.size for x in model.params.values())
    assert f"Total Parameters: {size:,} (" in table and f"{size:,} ({4 * size / 1e3:.1f} KB)" in table
    t5 = kind.startswith("T5")
    paths = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    stacks = ("encoder/layers", "decoder/layers") if t5 else ("layers",)
    assert {f"{layers}/{number}/mlp/output" for layers in stacks for number in range(2)} <= set(paths)
    assert f"float32[2,{width},24]" in table
    start = {"decoder_input_ids": np.zeros((2, 3), int)} if t5 else {}
    call = jax.jit(lambda module, inputs: module(**inputs))
    given = {"input_ids": ids, "attention_mask": mask, **start}
    found = call(model.module, given)
    with torch.no_grad():
        out = theirs(**{name: torch.tensor(x) for name, x in given.items()})
    if t5:
        np.testing.assert_allclose(found, out.logits, atol=1e-4)
        assert jax.eval_shape(call, model.module, {"input_ids": ids}).shape == (2, 1, model.config.model.vocab_size)
    else:
        name = "mlm" if "mlm" in model.heads else "hidden"
        expected = (out.logits if name == "mlm" else out.last_hidden_state).numpy()
        np.testing.assert_allclose(found[name][..., : expected.shape[-1]][mask == 1], expected[mask == 1], atol=1e-4)


def test_module_of_a_run_that_scans_its_layers_calls_each(opened):
    _, model = opened("DistilBertModel")
    program = model.restored.program
    scanned = replace(program, compute=replace(program.compute, segments=(2,)))
    assert bertjax.Model(replace(model.restored, program=scanned)).module.compute.segments == ()


# ---- as transformers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "devices"), [("BertForMaskedLM", 1), ("BertForMaskedLM", 8), ("DistilBertModel", 1), ("T5Model", 1)]
)
def test_vectors_are_those_of_transformers_in_any_batch(opened, kind, devices):
    theirs, model = opened(kind, devices)
    encoder = theirs.get_encoder() if kind.startswith("T5") else theirs
    some = texts(9, longest=26)
    states = [out.hidden_states for out in torch_outputs(encoder, framed(model, some))]
    means = np.stack([each[-1][0].mean(0).numpy() for each in states])
    found = model.embed(some, normalize=False)
    assert found.shape == (9, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found, means, atol=2e-5)
    unit = model.embed(some)
    np.testing.assert_allclose(unit, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(model.embed(some[7]), unit[7], atol=1e-5)
    np.testing.assert_allclose(model.embed(some[7:2:-1]), unit[7:2:-1], atol=1e-5)
    if kind.startswith("T5"):
        with pytest.raises(UserError, match="reads no .CLS."):
            model.embed(some, pooling="cls")
    else:
        first = np.stack([each[-1][0, 0].numpy() for each in states])
        np.testing.assert_allclose(model.embed(some, pooling="cls", normalize=False), first, atol=2e-5)
    layers = model.hidden_states(some[:5])
    assert len(layers.layers) == len(states[0]) and layers.layers[0].shape == (5, layers.input_ids.shape[1], 24)
    for number, each in enumerate(states[:5]):
        size = each[0].shape[1]
        assert layers.attention_mask[number].sum() == size == len(layers.tokens[number])
        for ours, torchs in zip(layers.layers, each, strict=True):
            np.testing.assert_allclose(ours[number, :size], torchs[0].numpy(), atol=3e-5)
            assert not ours[number, size:].any()


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "DistilBertForMaskedLM"])
def test_masks_are_filled_as_by_transformers_in_any_batch(opened, kind):
    theirs, model = opened(kind)
    some = [f"{text} [MASK] {text[:3]} [MASK]" for text in texts(8, longest=10)]
    found = model.fill_mask(some, top_k=4)
    ids = [[2, *(4 if word == "[MASK]" else model.tokenizer.encode_batch([word])[0][0] for word in text.split()), 3]
           for text in some]  # fmt: skip
    for one, row, out in zip(found, ids, torch_outputs(theirs, ids), strict=True):
        places = [i for i, token in enumerate(row) if token == 4]
        assert len(one["masks"]) == len(places) == 2
        for place, candidates in zip(places, one["masks"], strict=True):
            probabilities = out.logits[0, place].softmax(-1)[: len(PIECES)]
            best = probabilities.topk(4)
            assert [c["token"] for c in candidates] == [PIECES[i] for i in best.indices.tolist()]
            assert [c["probability"] for c in candidates] == pytest.approx(best.values.tolist(), abs=1e-5)
    alone = model.fill_mask(some[3], top_k=4)
    for ours, before in zip(alone["masks"], found[3]["masks"], strict=True):
        assert [c["probability"] for c in ours] == pytest.approx([c["probability"] for c in before], abs=1e-5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "DistilBertForSequenceClassification"])
def test_labels_are_those_of_transformers_in_any_batch(opened, kind, capsys):
    theirs, model = opened(kind)
    capsys.readouterr()
    firsts, seconds = texts(8, longest=14), texts(8, seed=1, longest=14)
    a, b = (model.tokenizer.encode_batch(some) for some in (firsts, seconds))
    ids = [[2, *one, 3, *two, 3] for one, two in zip(a, b, strict=True)]
    types = [[0] * (len(one) + 2) + [1] * (len(two) + 1) for one, two in zip(a, b, strict=True)]
    found = model.classify(firsts, seconds)
    for number, out in enumerate(torch_outputs(theirs, ids, types if kind.startswith("Bert") else None)):
        expected = dict(zip(LABELS, out.logits[0].softmax(-1).tolist(), strict=True))
        one = found[number]
        assert one["text"] == firsts[number] and one["pair"] == seconds[number]
        assert one["label"] == max(expected, key=expected.get) == one["labels"][0]["label"]
        assert {x["label"]: x["probability"] for x in one["labels"]} == pytest.approx(expected, abs=1e-5)
    alone = model.classify(firsts[2], seconds[2], top_k=2)
    assert len(alone["labels"]) == 2 and alone["probability"] == pytest.approx(found[2]["probability"], abs=1e-5)
    assert capsys.readouterr().err == ""
    model.classify(["dog " * 60, "dog"], ["cat", "cat"])
    said = capsys.readouterr().err
    assert said == "note: 1 of 2 texts cut to 45 tokens, as in training (25.4% of all tokens lost)\n"
    model.classify(["dog " * 43, *["dog " * 40] * 60], ["cat " * 3, *["cat"] * 60])  # one token of 2,506
    said = capsys.readouterr().err
    assert said == "note: 1 of 61 texts cut to 45 tokens, as in training (less than 0.1% of all tokens lost)\n"


def test_a_model_of_pairs_is_given_pairs(opened, monkeypatch):
    _, model = opened("BertForSequenceClassification")
    monkeypatch.setattr(labels, "stage_options", lambda _: Classify(text_a="premise", text_b="hypothesis"))
    with pytest.raises(UserError, match="labels pairs of texts .'premise', 'hypothesis'.; give both"):
        bertjax.Model(model.restored).classify("dog")
    with pytest.raises(UserError, match="pairs: there are 1 for 2 texts"):
        model.classify(["dog", "cat"], ["cat"])


def test_a_t5_generates_one_text_for_each(opened):
    _, model = opened("T5ForConditionalGeneration")
    some = texts(5)
    found = model.generate(some, max_new_tokens=6)
    assert len(found) == 5 and model.generate(some[3], max_new_tokens=6) == found[3]
    beams = model.generate(some, max_new_tokens=6, beam_size=3)
    drawn = model.generate(some, max_new_tokens=6, sample=True, temperature=2.0, seed=2)
    assert beams != found and drawn == model.generate(some, max_new_tokens=6, sample=True, temperature=2.0, seed=2)
    assert model.heads == ("lm",)
    with pytest.raises(UserError, match="length_penalty needs beam search; give beam_size N above 1"):
        model.generate("dog", length_penalty=1.0)
    several = model.generate_answers(some, 2, max_new_tokens=6, beam_size=3)
    assert [answers[0]["generated"] for answers in several] == beams and len(several[0]) == 2
    assert model.generate_answers(some[0], 2, max_new_tokens=6, beam_size=3) == several[0]
    with pytest.raises(TypeError, match="beams"):
        model.generate("dog", beams=3)


# ---- what it says of itself, and refuses ----------------------------------------------------------------------------


def test_its_parts_can_be_used_alone(opened):
    _, model = opened("BertForMaskedLM")
    ids = np.array([[2, 5, 6, 3]], np.int32)
    hidden = model.module.encode(ids, ids * 0, np.ones_like(ids), np.arange(4, dtype=np.int32)[None])
    np.testing.assert_allclose(np.asarray(hidden).mean(1)[0], model.embed("dog cat", normalize=False), atol=1e-5)
    assert model.params["embeddings/word/embedding"].shape == (24, 24) and model.stage == "s" and model.step == 1
    assert model.tokenizer.decode(model.tokenizer.encode_batch(["dog cat"])[0]) == "dog cat"
    assert "bert" in repr(model) and model.config.run.compute_dtype == "float32"
    assert model.embed([]).shape == (0, 24) and model.fill_mask([]) == [] and model.hidden_states([]).layers == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fill_mask("dog"), r"text 'dog': contains no \[MASK\]"),
        (lambda m: m.fill_mask("[MASK]" + " dog" * 99), "102 tokens exceed the 48 positions of the model; shorten it"),
        (lambda m: m.fill_mask("[MASK]", top_k=0), "top_k: must be an integer above 0"),
        (lambda m: m.fill_mask(["[MASK]", None]), "texts: item 1 is of type NoneType, not a text"),
        (lambda m: m.embed(b"dog"), r"a text or a list of texts \(got bytes\)"),
        (lambda m: m.embed(3), r"a text or a list of texts \(got int\)"),
        (lambda m: m.embed({"text": ["dog"]}), r"\(got dict with the fields text; take one of them\)"),
        (lambda m: m.embed(np.array("dog")), r"\(got ndarray\)"),
        (lambda m: m.embed([["dog"]]), "texts: item 0 is of type list"),
        (lambda m: m.embed("a \ud800"), "half of a surrogate pair"),
        (lambda m: m.embed("a", pooling="max"), "pooling: must be one of mean, cls"),
        (lambda m: m.embed("a", max_tokens=49), "max_tokens: must be at most 48"),
        (lambda m: m.embed("a", max_tokens=2), "max_tokens: must be above 2"),
        (lambda m: m.classify("a"), "has no 'classifier' head"),
        (lambda m: m.answer("a", "b"), "has no 'qa' head"),
        (lambda m: m.generate("a"), "a bert model generates no text"),
        (lambda m: bertjax.Model(m.restored, batch_size=0), "batch_size: must be an integer above 0"),
        (lambda m: m.batches(start="1"), "start: must be an integer of 0 or more"),
        (lambda m: bertjax.open(3), r"path: must be a text or a path \(got 3\)"),
        (lambda m: bertjax.open("runs/x", step="3"), r"step: must be an integer of 0 or more \(got '3'\)"),
        (lambda m: m.batches("t"), "there is no stage 't'; there are: s"),
        (lambda m: m.batches(evaluation="t"), r"no evaluation 't' \(it has: none\)"),
    ],
)
def test_what_is_refused(opened, call, message):
    _, model = opened("BertForMaskedLM")
    with pytest.raises(UserError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_numbers_and_texts_of_numpy_are_taken(opened):
    _, model = opened("BertForMaskedLM")
    found = model.fill_mask(np.array(["dog [MASK]", "cat [MASK]"]), top_k=np.int64(2))
    assert [type(one["text"]) for one in found] == [str, str] and len(found[0]["masks"][0]) == 2
    assert model.embed("dog " * 9, max_tokens=np.int32(5)).shape == (24,)


def test_many_texts_are_counted_while_they_are_computed(opened, monkeypatch):
    _, model = opened("BertForMaskedLM")
    for name, value in (("FIRST_SECONDS", 0.0), ("TICK_SECONDS", 0.001)):
        monkeypatch.setattr(reporter, name, value)
    out = io.StringIO()
    with reporter.use(reporter.Reporter(lines=out, display=lambda: None)):
        model.embed(["dog " * (1 + n % 40) for n in range(400)])
    assert re.search(r"^predicting: [\d,]+ of 400 texts", out.getvalue(), re.M), out.getvalue()


def test_a_text_too_long_to_embed_is_cut_and_said(opened, capsys):
    _, model = opened("BertForMaskedLM")
    both = model.embed(["dog " * 60, "dog " * 46])
    assert capsys.readouterr().err == (
        "note: 1 of 2 texts cut to 46 tokens, the most that the model reads (13.2% of all tokens lost)\n"
    )
    np.testing.assert_allclose(*both, atol=1e-5)
    np.testing.assert_allclose(model.embed("dog cat", max_tokens=3), model.embed("dog"), atol=1e-5)


def test_widths_are_few_and_wide_enough():
    widths = {padded_width(n, 512) for n in range(1, 513)}
    assert sorted(widths) == [16, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(padded_width(n) >= n and padded_width(n) <= max(16, 1.5 * n + 16) for n in range(1, 9000))
    assert padded_width(40, 44) == 44
