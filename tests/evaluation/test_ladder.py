"""`bertjax ladder`: its runs, scores of sentences against torch, minimal pairs, the table and the page."""

import json
import pickle
from contextlib import chdir
from pathlib import Path

import gcs_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from report_page import Page
from torch_t5 import flat_parameters

from bertjax.cli.main import main
from bertjax.config.loading.load import build
from bertjax.config.schema.data import TextToText
from bertjax.config.schema.ladder import MinimalPairs
from bertjax.config.schema.ladder_models import ElmoConfig
from bertjax.config.schema.model import T5Config
from bertjax.data.tokenizers import load as tokenizers
from bertjax.data.tokenizers.sentinels import SentinelTokenizer
from bertjax.errors import UserError
from bertjax.evaluation.predictors.sentence_scores import chain_of_tokens, mean_log_sigmoid, token_of_span
from bertjax.models import registry
from bertjax.models.compute_options import ComputeOptions
from bertjax.tools.ladder import table
from bertjax.tools.ladder.pairs import accuracies, read_pairs
from bertjax.tools.ladder.runs import build_runs

COMPUTE = ComputeOptions(platform="cpu", dtype=jnp.float32)
ENCODER_INPUTS = ("input_ids", "token_type_ids", "segment_ids", "positions")
CONFIG = """\
model: {vocab_size: 120, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
  max_position_embeddings: 32}
run: {name: tiny, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {save_every: 2}}
stages:
  - name: pretrain
    data: {source: {kind: text, files: [text.txt], layout: sentences},
      preprocess: {kind: bert_pairs, sequence_length: 32, next_sentence: false}}
    objective: {kind: mlm_nsp, nsp_weight: 0}
    steps: 2
    batch_size: 8
    optimizer: {kind: adamw}
    evaluate: [{kind: loss, name: heldout, every: end, batches: 1, data: {source: {kind: text, files: [text.txt],
      layout: sentences}, preprocess: {kind: bert_pairs, sequence_length: 32, next_sentence: false}}}]
  - name: mood
    data: &mood {source: {kind: jsonl, files: [mood.jsonl]}, preprocess: {kind: classify, sequence_length: 16,
      labels: [bad, good]}}
    objective: {kind: classification, num_labels: 2}
    steps: 2
    batch_size: 8
    evaluate: [{kind: classification, name: dev, every: end, data: *mood}]
ladder:
  seeds: [1]
  frozen: {trainable: {kind: features, feature_layers: weighted}}
  minimal_pairs: {files: [pairs.jsonl], limit: 2}
  words: [dog, cat]
  rungs:
    - name: cbow
      overrides: &cbow {model: {family: word2vec, vocab_size: 120, hidden_size: 16}, objective: {kind: cbow},
        data.preprocess: &rows {kind: text_rows, sequence_length: 32}, evaluate.heldout.data.preprocess: *rows}
    - name: t5
      text_to_text: true
      frozen: null
      tasks: {optimizer: {kind: adafactor, schedule: constant, learning_rate: 0.01, warmup_steps: 0}}
      overrides:
        model: {family: t5, vocab_size: 130, d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_heads: 2}
        tokenizer.extra_ids: 10
        data.preprocess: &spans {kind: span_corruption, sequence_length: 32}
        objective: {kind: text_to_text}
        evaluate.heldout.data.preprocess: *spans
"""


def config(**changes: object):
    return build(yaml.safe_load(CONFIG) | changes)


def project(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    animals, verbs = "dog cat fox hen cow owl".split(), "sleeps sings runs eats hides waits".split()
    say = lambda: f"The {rng.choice(animals)} {rng.choice(verbs)} near the {rng.choice(animals)}."  # noqa: E731
    (folder / "text.txt").write_text("\n\n".join("\n".join(say() for _ in range(8)) for _ in range(20)))
    records = [{"text": say(), "label": n % 2} for n in range(16)]
    pairs = [
        {"sentence_good": f"The {a} sleeps.", "sentence_bad": f"The {a} sleep.", "UID": u, "linguistics_term": "verbs"}
        for u in ("one", "two")
        for a in animals
    ]
    for name, lines in (("mood", records), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "ladder.yaml").write_text(CONFIG)
    return folder


# ---- one vocabulary -------------------------------------------------------------------------------------------------


def wordpiece():
    return tokenizers.train(
        lambda: iter([["the cat sat", "dogs walked and walk"]] * 20), vocab_size=110, lowercase=True
    )


def test_sentinels_are_above_the_pieces(tmp_path):
    inner = wordpiece()
    ours = SentinelTokenizer(inner, 3, "x")
    size = inner.vocab_size
    assert [ours.sentinel_id(n) for n in range(3)] == [size + 2, size + 1, size] and ours.vocab_size == size + 3
    assert (ours.pad_id, ours.eos_id) == (0, inner.sep_id) and ours.pieces[-1] == "<extra_id_0>"
    ids = ours.encode_batch(["the dogs walked <extra_id_0>"])[0]
    assert max(ids) < size, "text gives no sentinel"
    assert ours.decode([*ids[:3], size + 2, *ids[:2], ours.eos_id, 0]).count("<extra_id_0>") == 1
    assert ours.decode([size + 2, *inner.encode_batch(["dogs"])[0], ours.eos_id]) == "<extra_id_0> dogs"
    ours.save(tmp_path)
    again = (tokenizers.from_json(ours.json, "x"), tokenizers.from_file(tmp_path), pickle.loads(pickle.dumps(ours)))
    assert {type(one) for one in again} == {SentinelTokenizer} and {one.sha256 for one in again} == {ours.sha256}
    assert tokenizers.from_file(tmp_path / "tokenizer.json").sha256 == ours.sha256
    with pytest.raises(UserError, match="there are 3 sentinels"):
        ours.sentinel_id(3)


def test_only_a_t5_reads_sentinels():
    t5 = {"family": "t5", "vocab_size": 130, "d_model": 16, "num_layers": 1}
    with pytest.raises(
        UserError, match="needs tokenizer.kind: sentencepiece or bytes; for wordpiece give tokenizer.extra_ids"
    ):
        config(model=t5)
    with pytest.raises(UserError, match="tokenizer.extra_ids: a bert model reads no sentinels"):
        config(tokenizer={"extra_ids": 10})


# ---- the runs -------------------------------------------------------------------------------------------------------


def test_a_rung_is_a_pretraining_and_two_runs_of_each_task():
    cbow, t5 = build_runs(config())
    assert [run.run.name for run in cbow.all()] == [
        "tiny-cbow-s1",
        "tiny-cbow-s1-mood-frozen",
        "tiny-cbow-s1-mood-tuned",
    ]
    assert (cbow.pretraining.model.family, cbow.pretraining.run.seed) == ("word2vec", 1)
    assert {one.pretraining.tokenizer.path for one in (cbow, t5)} == {"runs/tiny-tokenizer"}
    frozen, tuned = cbow.frozen["mood"], cbow.tuned["mood"]
    assert {run.stages[0].init_from for run in (frozen, tuned)} == {"runs/tiny-cbow-s1"}
    assert (frozen.stages[0].trainable.feature_layers, tuned.stages[0].trainable.kind) == ("weighted", "all")
    assert not t5.frozen and t5.tuned["mood"].tokenizer.path == "runs/tiny-t5-s1/tokenizer"


def test_the_tasks_of_t5_are_text():
    (stage,) = build_runs(config())[1].tuned["mood"].stages
    assert stage.data.preprocess == TextToText(
        sequence_length=16, target_length=16, inputs="mood: {text}", targets="{label}", labels=["bad", "good"]
    )
    assert stage.objective.kind == "text_to_text" and stage.optimizer.kind == "adafactor"
    assert (stage.evaluate[0].kind, stage.evaluate[0].metrics) == ("text_to_text", ["accuracy"])


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        ({"overrides": {"run.seed": 3}}, "ladder.bert.overrides: run.seed: seeds are those of ladder.seeds"),
        ({"overrides": {"stages.mood.steps": 3}}, "ladder.bert.overrides: stages.mood.steps: a rung overrides keys of"),
        ({"overrides": {"stepz": 3}}, "ladder.bert.overrides: stages.pretrain.stepz: unknown key"),
        ({"tasks": {"init_from": "x"}}, "ladder.bert.tasks: init_from: a rung is pre-trained"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(rung, message):
    with pytest.raises(UserError, match=message):
        build_runs(config(ladder={"rungs": [{"name": "bert", **rung}]}))


def test_a_ladder_has_rungs_of_different_names():
    with pytest.raises(UserError, match="ladder: names no rungs"):
        build_runs(config(ladder=None))
    with pytest.raises(UserError, match="rungs need different names"):
        config(ladder={"rungs": [{"name": "a"}, {"name": "a"}]})
    with pytest.raises(UserError, match="rung 'a-s1-mood': '-s' and a number"):
        config(ladder={"rungs": [{"name": "a"}, {"name": "a-s1-mood"}]})


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_the_score_of_t5_is_that_of_torch():
    """ln p of the hidden token after <extra_id_0>, for each token of a sentence."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    ours = T5Config(**sizes)
    model = registry.build_model(
        ours, ("lm",), {k: jnp.asarray(x) for k, x in flat_parameters(theirs, ours).items()}, compute=COMPUTE
    )
    text = [5, 9, 12, 7, 3]
    expected = []
    for place, token in enumerate(text[:-1]):
        hidden = torch.tensor([[39 if i == place else x for i, x in enumerate(text)]])
        with torch.no_grad():
            logits = theirs(input_ids=hidden, decoder_input_ids=torch.tensor([[0, 39]])).logits[0, 1]
        expected.append(torch.log_softmax(logits, -1)[token].item())
    batch = {
        "input_ids": jnp.tile(jnp.array([*text, 0]), (4, 1)), "segment_ids": jnp.tile(jnp.array([1] * 5 + [0]), (4, 1)),
        "masks": jnp.arange(4)[:, None], "gold": jnp.array(text[:4])[:, None],
    }  # fmt: skip
    np.testing.assert_allclose(token_of_span(39, 0)(model, batch), expected, atol=1e-4)


def test_a_chain_of_tokens_goes_both_ways():
    """Against explicit sums over the rows of the logits; padding does not count."""
    elmo = ElmoConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2)
    params = registry.init_params(elmo, ("lm",), 2, jax.random.key(0))
    model = registry.build_model(elmo, ("lm",), params, compute=COMPUTE)
    ids, segments = jnp.array([[2, 5, 6, 3, 0, 0]]), jnp.array([[1, 1, 1, 1, 0, 0]])
    batch = {"input_ids": ids, "token_type_ids": 0 * ids, "segment_ids": segments, "positions": jnp.arange(6)[None]}
    ahead, back = jnp.split(model.token_states(*(batch[name] for name in ENCODER_INPUTS)), 2, axis=-1)
    logs = [np.asarray(model.lm_logits(h), np.float64)[0] for h in (ahead, back)]
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logs]
    expected = sum(logs[0][i, ids[0, i + 1]] + logs[1][i + 1, ids[0, i]] for i in range(3))
    np.testing.assert_allclose(chain_of_tokens(ENCODER_INPUTS, (1, -1))(model, batch)[0], expected, rtol=1e-5)


def test_word_vectors_score_neighbours_in_the_window():
    rng = np.random.default_rng(0)
    inner, outer, ids = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), np.array([3, 1, 4, 1])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    near = [[j for j in range(4) if 0 < abs(i - j) <= 2] for i in range(4)]
    cbow = np.mean([np.log(sigmoid(outer[ids[i]] @ inner[ids[n]].mean(0))) for i, n in enumerate(near)])
    pairs = np.mean([np.log(sigmoid(outer[ids[i]] @ inner[ids[j]])) for i, n in enumerate(near) for j in n])
    assert mean_log_sigmoid(inner, outer, ids, 2, True) == pytest.approx(cbow)
    assert mean_log_sigmoid(inner, outer, ids, 2, False) == pytest.approx(pairs)
    assert mean_log_sigmoid(inner, outer, ids[:1], 2, True) == 0


def test_minimal_pairs_are_counted_by_paradigm(tmp_path):
    pairs = read_pairs(MinimalPairs(files=["pairs.jsonl"], limit=4), project(tmp_path))
    assert [sum(pair.paradigm == name for pair in pairs) for name in ("one", "two")] == [4, 4]
    wins = iter([1, 1, 0, 1, 1, 0, 0, 0])  # of `one` 3 of 4, of `two` 1 of 4
    found = accuracies(pairs, lambda texts: [[1]] * len(texts), lambda texts: [next(wins, 0.5) for _ in texts], 8)
    assert found["paradigms"] == {"one": 75, "two": 25} and found["mean"] == 50 and found["phenomena"] == {"verbs": 50}
    tied = accuracies(pairs, lambda texts: [[1]] * len(texts), lambda texts: [0.0] * len(texts), None)
    assert tied["mean"] == 50 and tied["pairs"] == 8
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b", "UID": "x"}\n')
    with pytest.raises(UserError, match=r"line 1.*: no text in the field 'linguistics_term'"):
        read_pairs(MinimalPairs(files=["pairs.jsonl"]), tmp_path)


# ---- the table and the command --------------------------------------------------------------------------------------


def test_the_table_has_means_over_seeds():
    seeds = [
        {"parameters": 1000, "tokens": 2_000_000, "heldout": {"kind": "causal", "value": x},
         "minimal_pairs": {"mean": x}, "analogies": {"accuracy": None}}
        for x in (60.0, 64.0)
    ]  # fmt: skip
    rung = {
        "name": "gpt",
        "seeds": seeds,
        "frozen": {"mood": [50.0, None]},
        "tuned": {"mood": [70.0, 80.0]},
        "diverged": 1,
    }
    text = table.format_markdown({"rungs": [rung], "notes": []}).splitlines()
    assert text[0] == (
        "| rung | parameters | tokens read | held-out perplexity | minimal pairs | frozen mood | tuned mood |"
    )
    assert text[2] == "| gpt | 1k | 2M | 62.0 ± 2.8 (causal) | 62.0 ± 2.8 | 50.0 | 75.0 ± 7.1 |"


@pytest.mark.slow
def test_a_ladder_trains_scores_and_continues(tmp_path, capsys):
    with chdir(project(tmp_path)):
        assert main(["ladder", "ladder.yaml", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("metrics.jsonl")}
        assert len(before) == 5 and main(["ladder", "ladder.yaml"]) == 0
        assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished run is not repeated"
    cbow, t5 = found["rungs"]
    assert [len(cbow[way]["mood"]) for way in ("frozen", "tuned")] == [1, 1] and list(t5["frozen"]) == []
    assert all(0 <= x <= 100 for x in (*cbow["frozen"]["mood"], *t5["tuned"]["mood"]))
    assert t5["seeds"][0]["heldout"]["kind"] == "denoising" and cbow["seeds"][0]["minimal_pairs"]["pairs"] == 4
    assert set(t5["seeds"][0]["neighbors"]) == {"dog", "cat"} == set(cbow["seeds"][0]["neighbors"])
    assert (tmp_path / "runs/tiny-ladder.md").read_text().startswith("| rung | parameters |")
    page = (tmp_path / "runs/tiny-ladder.html").read_text()
    Page(page)
    assert "Minimal pairs by phenomenon" in page and "Nearest words" in page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of gcsfs
def test_a_ladder_in_a_bucket_continues_on_another_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project(tmp_path))
    root = "gs://bucket/runs"
    with gcs_server.serve() as store:
        store.objects = {"bucket": {}}
        gcs_server.install(store, tmp_path / "first", monkeypatch)
        assert main(["ladder", "ladder.yaml", "--json", f"run.root={root}"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["rungs"][0]["seeds"][0]["run"] == f"{root}/tiny-cbow-s1" and not Path("runs").exists()
        assert {f"runs/tiny-ladder.{ending}" for ending in ("md", "json", "html")} < set(store.names("runs/"))
        assert {"runs/tiny-tokenizer/tokenizer.json", "runs/tiny-cbow-s1/ladder.json"} < set(store.names("runs/"))
        before = {name: store.text(name) for name in store.names("runs/") if name.endswith("metrics.jsonl")}
        gcs_server.install(store, tmp_path / "second", monkeypatch)
        assert len(before) == 5 and main(["ladder", "ladder.yaml", "--json", f"run.root={root}"]) == 0
        assert {name: store.text(name) for name in before} == before, "a finished run is not repeated"
        assert json.loads(capsys.readouterr().out) == found


def test_tasks_of_a_pretraining_that_is_gone_are_refused(tmp_path, capsys):
    with chdir(project(tmp_path)):
        step = Path("runs/tiny-cbow-s1-mood-tuned/checkpoints/00-mood/5")
        (step / "meta").mkdir(parents=True)
        assert main(["ladder", "ladder.yaml"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            "runs/tiny-cbow-s1: has no checkpoint, but tasks have begun from one; put it back, or delete "
            "runs/tiny-cbow-s1-mood-tuned"
        )
        assert not Path("runs/tiny-tokenizer").exists()


@pytest.mark.parametrize(
    ("rung", "run", "key"),
    [
        ({"overrides": {"data.source.files": ["no.txt"]}}, "tiny-last-s1", "stages.pretrain.data.source.0.files: "),
        ({"tasks": {"data.source.files": ["no.txt"]}}, "tiny-last-s1-mood-frozen", "stages.mood.data.source.0.files: "),
        (
            {"frozen": {"evaluate.dev.data.source.files": ["no.txt"]}},
            "tiny-last-s1-mood-frozen",
            "stages.mood.evaluate.dev.data.source.0.files: ",
        ),
    ],
)
def test_data_that_only_the_last_rung_reads_are_checked_before_the_first_is_trained(rung, run, key, tmp_path, capsys):
    given = yaml.safe_load(CONFIG)
    given["ladder"]["rungs"] += [{"name": "bert"}, {"name": "last", **rung}]
    with chdir(project(tmp_path)):
        Path("ladder.yaml").write_text(yaml.safe_dump(given))
        assert main(["ladder", "ladder.yaml"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"run {run}: {key}") and "no.txt: no such file" in line
        assert not Path("runs").exists()
