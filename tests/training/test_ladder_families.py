"""word2vec, ELMo and GPT: the same numbers on a mesh, and runs from pre-training to a classifier and vectors."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from bertjax.cli.main import main
from bertjax.config.schema.ladder_models import ElmoConfig, Word2VecConfig
from bertjax.config.schema.ladder_objectives import (
    BidirectionalLmObjective,
    CausalLmObjective,
    CbowObjective,
    SkipGramObjective,
)
from bertjax.config.schema.model import BertConfig, GptConfig
from bertjax.models import families, registry
from bertjax.models.bert import flops
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.peft_options import PeftOptions
from bertjax.training import freezing
from bertjax.training.step import jit_train_step

GPT = GptConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                max_position_embeddings=32, initializer_range=0.1)  # fmt: skip
ELMO = ElmoConfig(vocab_size=64, hidden_size=32, projection_size=16, initializer_range=0.3)
WORD2VEC = Word2VecConfig(vocab_size=64, hidden_size=32)
CASES = {
    "cbow": (WORD2VEC, CbowObjective(window=3, sample=0.02)),
    "skip_gram": (WORD2VEC, SkipGramObjective(window=3, sample=0.02)),
    "bidirectional_lm": (ELMO, BidirectionalLmObjective()),
    "causal_lm": (GPT, CausalLmObjective()),
}
SLOW = pytest.mark.slow
MESHES = [({"data": 2, "fsdp": 2, "tensor": 2}, {}), ({"fsdp": 2, "tensor": 4}, {"sequence": "tensor"})]


def text_rows(make_rows, seed: int) -> dict[str, np.ndarray]:
    batch = make_rows("pairs", 8, groups=2, seed=seed)
    names = ("input_ids", "token_type_ids", "segment_ids", "positions", "cls_positions")
    text = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
    frequencies = np.where(text, (0.5 / (1 + np.arange(64)))[batch["input_ids"]], 0).astype(np.float32)
    return {name: batch[name] for name in names} | {"frequencies": frequencies}


@pytest.mark.parametrize("mesh", [0, pytest.param(1, marks=SLOW)])
@pytest.mark.parametrize("case", [pytest.param("cbow", marks=SLOW), "skip_gram", "bidirectional_lm", "causal_lm"])
def test_a_mesh_changes_nothing(make_program, make_rows, case, mesh):
    """Packed rows in two micro-batches over eight devices, with dropout and random draws, against one device."""
    (model, objective), (axes, rules) = CASES[case], MESHES[mesh]
    batches = [text_rows(make_rows, seed) for seed in range(3)]

    def run(**options: object) -> tuple[list[float], dict[str, np.ndarray]]:
        program = make_program(objective, model=model, grad_accum=2, **options)
        groups = freezing.param_groups(program.abstract_params())
        state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
        step, losses = jit_train_step(program, state), []
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get(state.params)

    (expected, params), (losses, found) = run(), run(rules=rules, **axes)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for path, x in params.items():
        if not path.endswith("qkv/bias"):  # the bias of keys has a gradient of rounding
            np.testing.assert_allclose(found[path], x, atol=5e-4, err_msg=path)


def test_features_of_word_vectors_leave_out_what_all_share(make_rows):
    """The projection on the mean of all vectors, by numpy; a mixture of one state is that state, normalized."""
    batch, peft = text_rows(make_rows, 0), PeftOptions(feature_layers="weighted")
    params = registry.init_params(WORD2VEC, ("classifier",), 2, jax.random.key(0), peft)
    table = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32) + 3  # with a common part
    model = registry.build_model(WORD2VEC, ("classifier",), params | {"embeddings/word/embedding": table}, peft=peft,
                                 compute=ComputeOptions(dtype=jax.numpy.float32))  # fmt: skip
    fields = [batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions")]
    shared = table.mean(0) / np.linalg.norm(table.mean(0))
    row, ids, segments = 0, batch["input_ids"], batch["segment_ids"]
    text = table[ids[row][segments[row] == 1]].mean(0)
    own = text - text @ shared * shared
    assert np.linalg.norm(own) < 0.2 * np.linalg.norm(text)
    first = int(batch["cls_positions"][row, 0])
    np.testing.assert_allclose(model.features(*fields, packed=True)[row, first], own, atol=1e-5)
    mixed = model.encode(*fields, packed=True)[row, first]
    np.testing.assert_allclose(mixed, (own - own.mean()) / own.std(), atol=1e-4)


def test_flops_by_hand():
    none, every = PeftOptions(), ("embeddings", "layers/0", "layers/1", "heads")
    row = lambda model, groups: families.record_of(model).row_flops(model, {"input_ids": 32}, ("lm",), groups, none)  # noqa: E731
    stack = 2 * 32 * 2 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 2 * 32 * (32 * 33 // 2)
    assert row(GPT, every) == 3 * (stack + 2 * 32 * 32 * 64)
    assert row(GPT, ("heads",)) == stack + 2 * (2 * 32 * 32 * 64)
    layer, logits = 2 * 2 * 32 * (8 * 16 * 32 + 32 * 16), 2 * 2 * 32 * 16 * 64
    assert row(ELMO, every) == 3 * (2 * layer + logits)
    assert row(ELMO, ("layers/1", "heads")) == layer + 3 * layer + 2 * logits
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    assert flops.encoder_flops(BertConfig(**sizes), 32) > flops.encoder_flops(GPT, 32)


CONFIG = """\
model: {model}
run: {{root: runs, name: {name}, tensorboard: false, compilation_cache_dir: null, prepare_workers: 1, log_every: 1}}
stages:
  - name: pretrain
    data:
      source: {{kind: text, files: [text.txt], layout: paragraphs}}
      preprocess: {{kind: text_rows, sequence_length: 32, pack: true, max_segments: 3}}
    objective: {{kind: {objective}}}
    steps: 2
    batch_size: 4
    optimizer: {{kind: adamw, warmup_steps: 0}}
    evaluate:
      - kind: loss
        data:
          source: {{kind: text, files: [text.txt], layout: paragraphs}}
          preprocess: {{kind: text_rows, sequence_length: 32}}
  - name: classify
    data:
      source: {{kind: jsonl, files: [rows.jsonl]}}
      preprocess: {{kind: classify, sequence_length: 16}}
    objective: {{kind: classification, num_labels: 2}}
    trainable: {trainable}
    steps: 2
    batch_size: 8
"""
RUNS = {
    "word2vec": ("{family: word2vec, vocab_size: 128, hidden_size: 8}", "cbow", "head"),
    "elmo": ("{family: elmo, vocab_size: 128, hidden_size: 8}", "bidirectional_lm", "gradual"),
    "gpt": ("{family: gpt, vocab_size: 128, hidden_size: 8, num_hidden_layers: 2, num_attention_heads: 2, "
            "intermediate_size: 16, max_position_embeddings: 40}", "causal_lm", "{kind: lora, lora_rank: 2}"),
}  # fmt: skip


@pytest.mark.parametrize("family", ["word2vec", *(pytest.param(name, marks=SLOW) for name in ("elmo", "gpt"))])
def test_from_text_to_a_classifier_and_vectors(family, once, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["the", "old", "dog", "sees", "a", "small", "cat", "and", "runs"]
    texts = [" ".join(words[(n * k + k) % 9] for k in range(4 + n % 9)) + "." for n in range(60)]
    Path("text.txt").write_text("\n\n".join(" ".join(texts[n : n + 3]) for n in range(0, 60, 3)))
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(texts[:24])]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model, objective, trainable = RUNS[family]
    Path("c.yaml").write_text(CONFIG.format(model=model, name=family, objective=objective, trainable=trainable))
    with once():
        assert main(["train", "c.yaml"]) == 0
        said = "".join(capsys.readouterr())
        for term in {"bidirectional_lm": ("forward", "backward"), "causal_lm": ("lm",)}.get(objective, ()):
            assert f"{term}_perplexity" in said
        assert main(["inspect", f"runs/{family}"]) == 0
        assert "classifier" in capsys.readouterr().out
        assert main(["predict", "classify", f"runs/{family}", "the old dog", "--json"]) == 0
        assert main(["predict", "embed", f"runs/{family}", "the old dog", "a cat"]) == 0
        capsys.readouterr()
        assert main(["explore", f"runs/{family}", "--sentence", "the old dog", "--picture", "pca", "--json"]) == 0
        attention = json.loads(capsys.readouterr().out)["attention"]
        if family == "gpt":
            maps = np.array(attention[0]["maps"])
            assert maps.shape == (2, 2, *2 * [len(attention[0]["tokens"])]) and not np.triu(maps, 1).any()
        else:
            assert attention is None
        for command in ("export", "quantize"):
            capsys.readouterr()
            assert main([command, f"runs/{family}", "out"]) == 2
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert line.startswith(f"runs/{family}/") and f"models of family {family} are neither read" in line
        assert not Path("out").exists() and not Path(".out.unfinished").exists()
        assert main(["predict", "generate", f"runs/{family}", "the"]) == 2
        assert f"{family} model generates no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, problem",
    [
        ("model={family: bert, vocab_size: 128}", "objective 'cbow' is not for a bert model"),
        ("stages.classify.trainable=gradual", "trainable: gradual: a word2vec model has no layers"),
        ("stages.classify.trainable=adapters", "trainable: adapters: a word2vec model has none"),
        ("stages.pretrain.objective={kind: text_to_text}", "objective 'text_to_text' is not for a word2vec model"),
        (
            f"model={RUNS['gpt'][0]} stages.pretrain.objective={{kind: causal_lm}} stages.pretrain.trainable=features",
            "trainable: features: the output of 'causal_lm' is made of the embeddings",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(override, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG.format(model=RUNS["word2vec"][0], name="x", objective="cbow", trainable="all"))
    assert main(["inspect", "c.yaml", *re.split(" (?=stages)", override)]) == 2
    assert problem in capsys.readouterr().err.strip().splitlines()[-1]
