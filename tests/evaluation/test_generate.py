"""Generating for many texts: order, batches, widths, cuts and meshes change no answer; and `predict generate`."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated_texts import generated

from bertjax.config.loading.load import build
from bertjax.config.schema.evaluation import Decoding
from bertjax.config.schema.model import FAMILIES
from bertjax.config.schema.run import MeshConfig
from bertjax.data.preprocess.text_to_text import row_dtype, text_to_text_blocks
from bertjax.data.tokenizers import sentencepiece
from bertjax.errors import UserError
from bertjax.evaluation.inference import generate
from bertjax.evaluation.inference.generate import Generator
from bertjax.evaluation.predictors import generation
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.models.decoding.beam import beam_search
from bertjax.models.decoding.sample import greedy, sample
from bertjax.parallel.mesh import make_mesh
from bertjax.tools import predict, prediction_files
from bertjax.training.program import stage_program
from bertjax.training.run_context import RunContext

WORDS = "dog cat owl fox barn tree sleeps runs sings under near the a green old".split()
DATA = {"kind": "text_to_text", "inputs": "{text}", "targets": "{text}", "sequence_length": 24, "target_length": 9}
HOW = {
    "greedy": Decoding(),
    "beam": Decoding(beam_size=3, length_penalty=1.0),
    "transformers": Decoding(beam_size=3, length_penalty=1.0, beam_rules="transformers"),
    "sample": Decoding(sample=True, temperature=0.8, top_k=12, top_p=0.95),
}


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(1, 14, count)]


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece.train(
        lambda: iter([texts(300)]), vocab_size=64, extra_ids=4, character_coverage=1.0
    )  # fmt: skip


@pytest.fixture(scope="module")
def opened(tokenizer):
    """(architecture, preprocess, devices, decoding of an evaluation) -> a T5 of wild random weights, as if restored."""

    def make(architecture="encoder_decoder", preprocess=DATA, devices=(1, 1, 1), decoding=None) -> RestoredCheckpoint:
        source = {"kind": "jsonl", "files": ["none.jsonl"]}
        task = {"source": source, "preprocess": preprocess}
        stage = {"name": "s", "data": task, "objective": {"kind": "text_to_text"}, "steps": 1, "batch_size": 8}
        if decoding is not None:
            stage["evaluate"] = [{"kind": "text_to_text", "data": task, "decoding": decoding}]
        sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        settings = {
            "model": {"family": "t5", "architecture": architecture, **sizes},
            "tokenizer": {"kind": "sentencepiece"},
            "run": {"compute_dtype": "float32"},
            "stages": [stage],
        }
        config = build(settings, (), where="here")
        data, fsdp, tensor = devices
        mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
        ctx = RunContext(config, None, mesh, tokenizer)
        program = stage_program(config, config.stages[0], ctx.mesh, 1)
        rng = np.random.default_rng(0)
        params = {}
        for path, x in program.abstract_params().items():
            drawn = rng.normal(size=x.shape) * (0.6 if "word" in path else 1.0) + path.endswith("scale")
            params[path] = jax.device_put(drawn.astype(np.float32), x.sharding)
        return RestoredCheckpoint(ctx, 0, 1, program, params)

    return make


def generator(restored: RestoredCheckpoint, how: str, batch_size: int = 4, **options) -> Generator:
    lengths = {"sequence_length": 24, "target_length": 9} | options
    return Generator(
        restored.program, restored.ctx.tokenizer, HOW[how], batch_size=batch_size, seed=5, **lengths
    )  # fmt: skip


def one_by_one(restored: RestoredCheckpoint, how: str, rows: list[list[int]], causal: bool = False) -> list[str]:
    """Each row of ids alone, as wide as it is, straight through the decoding functions."""
    tokenizer, found = restored.ctx.tokenizer, []

    @jax.jit
    def run(params, ids, number):
        inputs = (restored.program.build_model(params), ids, jnp.ones_like(ids), 9)
        if how == "sample":
            return sample(*inputs, jax.random.key(5), number, temperature=0.8, top_k=12, top_p=0.95, causal=causal)
        if how in ("beam", "transformers"):
            rules = "transformers" if how == "transformers" else "t5x"
            return beam_search(*inputs, beam_size=3, alpha=1.0, causal=causal, rules=rules)[0]
        return greedy(*inputs, causal=causal)

    for number, row in enumerate(rows):
        tokens = np.asarray(run(restored.params, jnp.asarray([row]), jnp.array([number])))[0].tolist()
        found.append(tokenizer.decode(tokens[: tokens.index(1)] if 1 in tokens else tokens))
    return found


@pytest.mark.parametrize(
    ("architecture", "how"),
    [
        ("encoder_decoder", "greedy"),
        ("encoder_decoder", "beam"),
        ("encoder_decoder", "transformers"),
        ("decoder_only", "sample"),
    ],
)
def test_every_text_gets_its_own_answer(opened, tokenizer, monkeypatch, architecture, how):
    monkeypatch.setattr(generate, "WIDTH_MULTIPLE", 8)
    restored = opened(architecture)
    ids = [list(np.random.default_rng(n).integers(3, 60, (5, 14, 20)[n % 3])) for n in range(9)]
    expected = one_by_one(restored, how, [[*row, 1] for row in ids])
    assert len(set(expected)) > 2
    many = generator(restored, how, batch_size=3)
    assert many.from_ids(restored.params, ids) == expected
    assert many._jitted.jitted._cache_size() == 3  # widths of 8, 16 and 24
    assert generator(restored, how, batch_size=16).from_ids(restored.params, ids) == expected


@pytest.mark.parametrize("how", ["beam", "sample"])
def test_a_mesh_of_eight_gives_the_same_answers(opened, how):
    """Batches of 5 are rounded up to the 4 shards of the rows; the last one is padded."""
    asked = texts(9, seed=2)
    one, eight = opened(), opened(devices=(2, 2, 2))
    assert generator(eight, how, 5)(eight.params, asked) == generator(one, how, 5)(one.params, asked)


def test_long_texts_are_cut_as_in_training(opened, tokenizer):
    restored, long = opened(), " ".join(WORDS * 4)
    ids = tokenizer.encode_batch([long])[0]
    assert len(ids) > 24
    assert generator(restored, "greedy")(restored.params, [long]) == one_by_one(restored, "greedy", [[*ids[:23], 1]])


def test_a_causal_model_goes_on_where_the_text_ends(opened, tokenizer):
    restored = opened("decoder_only")
    asked = [" ".join(WORDS * 4), "the dog"]
    ids = tokenizer.encode_batch(asked)
    found = generator(restored, "greedy", causal=True)(restored.params, asked)
    assert found == one_by_one(restored, "greedy", [ids[0][-24:], ids[1]], causal=True)


def test_no_texts_and_empty_texts(opened):
    restored = opened()
    run = generator(restored, "greedy")
    assert run(restored.params, []) == []
    assert run(restored.params, ["", "dog"]) == one_by_one(
        restored, "greedy", [[1], [*restored.ctx.tokenizer.encode_batch(["dog"])[0], 1]]
    )


def test_max_new_tokens_goes_before_the_tasks_length(opened):
    restored = opened()
    run = lambda n: Generator(  # noqa: E731
        restored.program, restored.ctx.tokenizer, Decoding(max_new_tokens=n), sequence_length=24, target_length=9,
        batch_size=4,
    ).max_new_tokens  # fmt: skip
    assert (run(None), run(3)) == (9, 3)


# ---- predict generate -----------------------------------------------------------------------------------------------


def test_the_probe_decodes_as_the_stage_does_unless_told(opened, monkeypatch):
    restored, asked = opened(decoding={"beam_size": 3, "length_penalty": 1.0}), texts(3)
    made = []
    monkeypatch.setattr(generation, "Generator", lambda *a, **k: made.append((a[2], k)) or Generator(*a, **k))
    found = generated(restored, asked)
    assert found == generator(restored, "beam")(restored.params, asked)
    by_rules = {"beam_rules": "transformers"}
    for choices in ({"sample": True, "top_k": 2}, {"beam_size": 5}, {"max_new_tokens": 2}, by_rules):
        generated(restored, asked, **choices)
    assert [decoding.model_dump(exclude_defaults=True) for decoding, _ in made] == [
        {"beam_size": 3, "length_penalty": 1.0},
        {"length_penalty": 1.0, "sample": True, "top_k": 2},
        {"beam_size": 5, "length_penalty": 1.0},
        {"beam_size": 3, "length_penalty": 1.0, "max_new_tokens": 2},
        {"beam_size": 3, "length_penalty": 1.0, "beam_rules": "transformers"},
    ]
    assert {k: made[0][1][k] for k in ("sequence_length", "target_length", "causal")} == {
        "sequence_length": None, "target_length": 9, "causal": False,
    }  # fmt: skip


def test_the_probe_of_a_language_model_goes_on(opened, tokenizer):
    restored = opened("decoder_only", {"kind": "causal_lm", "sequence_length": 24})
    found = generated(restored, ["the old"], max_new_tokens=9)
    ids = tokenizer.encode_batch(["the old"])
    assert found == one_by_one(restored, "greedy", ids, causal=True)
    json.dumps(found)


def test_sentinels_in_a_text_are_those_of_training(opened, tokenizer, capsys):
    """What `predict generate` reads is what a record of a text_to_text task is trained on."""
    restored = opened(preprocess={"kind": "span_corruption", "sequence_length": 24, "target_length": 9})
    asked = ["the <extra_id_0> sleeps near <extra_id_1>", "the <extra_id_0>s near"]
    (rows,) = text_to_text_blocks((tokenizer, row_dtype(24, 9)), [(text, "") for text in asked])
    ids = [row["input_ids"][row["segment_ids"] > 0].tolist() for row in rows]
    assert [tokenizer.sentinel_id(0) in row for row in ids] == [True, True]
    found = generated(restored, asked)
    assert found == one_by_one(restored, "greedy", ids)
    assert "read as characters" not in capsys.readouterr().err
    generated(restored, ["<extra_id_7>", "dog", "dog<extra_id_0>"])
    assert "note: 2 of 3 texts contain an <extra_id_N> that is read as characters" in capsys.readouterr().err


def test_the_probe_reads_texts_whole_or_says_what_it_cuts(opened, tokenizer, capsys, monkeypatch):
    """The stage's rows have 24 tokens; relative positions have no end."""
    restored, asked = opened(), ["the dog", " ".join(WORDS * 3)]
    ids = tokenizer.encode_batch(asked)
    assert len(ids[1]) > 40
    found = generated(restored, asked, max_new_tokens=9)
    assert found[1] == one_by_one(restored, "greedy", [[*ids[1], 1]])[0]
    assert "inputs cut" not in capsys.readouterr().err
    generated(restored, asked, max_input_tokens=10, max_new_tokens=9)
    lost = (len(ids[1]) - 9) / (len(ids[0]) + len(ids[1]))
    assert capsys.readouterr().err.splitlines()[0] == (
        f"note: 1 of 2 inputs cut ({lost:.1%} of their tokens lost); raise --max-input-tokens (now 10) to keep them"
    )
    monkeypatch.setattr(generate, "MAX_INPUT_TOKENS", 40)
    with pytest.raises(UserError, match=r"^text 2: has \d\d tokens, .* --max-input-tokens$"):
        generated(restored, asked)


def test_long_texts_go_in_few_widths_and_small_batches(opened):
    run = generator(opened(), "greedy", batch_size=8, sequence_length=None)
    lengths = np.arange(1, 5001)
    widths = {run._batch(lengths[n : n + 1])[1] for n in range(5000)}
    assert len(widths) <= 8 + 4 * 4 and all(run._batch(lengths[n : n + 1])[1] >= n + 1 for n in range(5000))
    for longest in (10, 2000, 5000):
        size, width = run._batch(np.full(8, longest))
        assert longest <= width <= max(64, 1.25 * longest) and size * longest**2 <= generate.MAX_TOKEN_PAIRS
    assert run._batch(np.full(8, 5000))[0] == 1 and run._batch(np.full(8, 2048))[0] == 8


def test_a_last_batch_takes_a_program_that_is_there(opened):
    """Up to twice its rows; a smaller one compiles its own, and no batch takes a program with fewer rows."""
    restored = opened()
    run = generator(restored, "greedy", batch_size=4)
    rows = [[5 + n % 7, 9] for n in range(6)]
    found = run.from_ids(restored.params, rows)  # 4 and 2
    assert run._shapes == {(4, 24)} and run._jitted.jitted._cache_size() == 1
    assert found == one_by_one(restored, "greedy", [[*row, 1] for row in rows])
    assert found[4:] == run.from_ids(restored.params, rows[4:]) and run._shapes == {(4, 24)}
    assert run.from_ids(restored.params, rows[:1]) == found[:1] and run._shapes == {(4, 24), (1, 24)}
    assert run.from_ids(restored.params, rows[:3]) == found[:3] and run._jitted.jitted._cache_size() == 2


def test_answers_without_an_end_are_counted(opened, capsys):
    restored = opened(preprocess=DATA | {"target_length": 2})
    generated(restored, texts(3))
    assert "of 3 answers reach 2 tokens and are truncated" in capsys.readouterr().err
    generated(restored, texts(3), max_new_tokens=2)
    assert "are truncated" not in capsys.readouterr().err


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"t5"}))
def test_another_family_is_refused(family):
    """Also those with a language model's head."""
    ctx = SimpleNamespace(config=SimpleNamespace(model=FAMILIES[family]()), tokenizer=None)
    with pytest.raises(UserError, match=f"an? {family} model generates no text; name a run of family t5"):
        generated(RestoredCheckpoint(ctx, 0, 1, None, {}), ["x"])


def test_several_answers_of_files_in_batches(opened, tmp_path, monkeypatch, capsys):
    """What is written of a file in chunks is what one call gives: also its samples, and its notes are counted once."""
    restored, asked = opened(), texts(7)
    choices = {"sample": True, "top_k": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2}
    expected = generation.TextGenerator(restored, 4).scored_answers(asked, choices, 3, seed=5)
    assert [len(answers) for answers in expected] == [3] * 7
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"id": i, "q": q}) + "\n" for i, q in enumerate(asked)))
    monkeypatch.setattr(predict, "restore_for_prediction", lambda *_, **__: restored)
    monkeypatch.setattr(prediction_files, "CHUNK", 3)
    request = predict.Request(".", file=tmp_path / "asked.jsonl", output=tmp_path / "out.jsonl", batch_size=4)
    assert predict.generate(request, choices, 3, seed=5, column="q") is None
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for one, answers in zip(written, expected, strict=True):
        assert [answer["generated"] for answer in one["answers"]] == [answer["generated"] for answer in answers]
        scores = [answer["score"] for answer in answers]
        np.testing.assert_allclose([answer["score"] for answer in one["answers"]], scores, rtol=1e-4)
    assert [(one["id"], one["text"]) for one in written] == list(enumerate(asked))
    assert all(one["generated"] == one["answers"][0]["generated"] for one in written)
    assert sum("of 21 answers reach 9 tokens" in line for line in capsys.readouterr().err.splitlines()) <= 1
    plain = predict.generate(predict.Request(".", asked, batch_size=4), choices, scored=False, seed=5)
    assert plain == [{"text": one["text"], "generated": one["generated"]} for one in written]


def test_constraints_hold_in_all_answers_on_a_mesh(opened):
    """Eight devices with a sharded vocabulary give what one gives: beams, minimum length, no pair twice, bad words."""
    asked, banned = texts(6, seed=2), [[5], [7, 8]]
    how = Decoding(
        beam_size=4, min_new_tokens=4, no_repeat_ngram_size=2, repetition_penalty=1.3, bad_words_ids=banned
    )  # fmt: skip
    found = []
    for restored in (opened(), opened(devices=(2, 2, 2))):
        run = Generator(
            restored.program, restored.ctx.tokenizer, how, sequence_length=24, target_length=9, batch_size=4,
            num_return_sequences=3,
        )  # fmt: skip
        found.append(run.scored_answers(restored.params, restored.ctx.tokenizer.encode_batch(asked)))
    one, eight = ([[answer["generated"] for answer in answers] for answers in answers_of] for answers_of in found)
    assert one == eight
    for ours, theirs in zip(*found, strict=True):
        scores = [answer["score"] for answer in ours]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, [answer["score"] for answer in theirs], rtol=1e-4)


def test_options_that_contradict_each_other(opened):
    restored = opened()
    asks = generation.TextGenerator(restored, spell=generation.as_flag)
    for choices, count, line in (
        ({}, 2, "--num-return-sequences 2: more than the beams (1); give --beam 2 or --sample"),
        ({"beam_size": 3}, 4, "--num-return-sequences 4: more than the beams (3); give --beam 4 or --sample"),
        (
            {"min_new_tokens": 10},
            1,
            "generate: min_new_tokens 10 is above the 9 tokens of an answer; lower it or raise",
        ),
        ({"min_new_tokens": 4, "max_new_tokens": 3}, 1, "generate: --min-new-tokens 4 is above --max-new-tokens 3"),
        ({"bad_words_ids": [[3, 64]]}, 1, "generate: bad_words_ids has 64; the ids of the model end at 63"),
        ({"bad_words_ids": [[]]}, 1, "generate: bad_words_ids has an empty list; remove it"),
        ({"beam_size": 2, "early_stopping": True}, 1, "generate: --early-stopping needs --beam-rules transformers"),
        ({"early_stopping": True, "beam_rules": "transformers"}, 1, "generate: --beam-rules needs beam search"),
    ):
        with pytest.raises(UserError) as error:
            asks.scored_answers(["a"], choices, count)
        assert str(error.value).startswith(line)


def test_constraints_stay_when_another_method_is_chosen():
    given = Decoding(beam_size=3, min_new_tokens=2, no_repeat_ngram_size=3, repetition_penalty=1.2, bad_words_ids=[[4]])
    made = generation.override_decoding(given, {"sample": True})
    assert made.model_dump(exclude_defaults=True) == {
        "sample": True, "min_new_tokens": 2, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2,
        "bad_words_ids": [[4]],
    }  # fmt: skip
    assert not {"min_new_tokens", "early_stopping", "bad_words_ids"} & Decoding().model_dump().keys()


@pytest.mark.parametrize(
    ("choices", "field", "flag"),
    [
        ({"beam_size": 2, "length_penalty": -1.0}, "a length_penalty below 0 needs beam_rules: transformers",
         "a --length-penalty below 0 needs --beam-rules transformers"),
        ({"beam_size": 2, "early_stopping": True}, "early_stopping needs beam_rules: transformers",
         "--early-stopping needs --beam-rules transformers"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens 3 is above max_new_tokens 2",
         "--min-new-tokens 3 is above --max-new-tokens 2"),
    ],
)  # fmt: skip
def test_messages_have_options_as_the_user_writes_them(choices, field, flag):
    for spell, said in ((str, field), (generation.as_flag, flag)):
        with pytest.raises(UserError, match=f"^generate: {said}$"):
            generation.override_decoding(Decoding(), choices, spell)


def test_sampling_can_be_turned_off():
    assert generation.override_decoding(Decoding(sample=True, top_k=3), {"sample": False}) == Decoding()
    assert generation.override_decoding(Decoding(beam_size=3), {"sample": False}).beam_size == 3


@pytest.mark.parametrize("choice", [{"length_penalty": 2.0}, {"beam_rules": "transformers"}])
def test_what_is_for_beams_is_refused_without_them(choice):
    with pytest.raises(UserError, match="needs beam search; give --beam N above 1"):
        generation.override_decoding(Decoding(), choice)
    with pytest.raises(UserError, match=f"^generate: {next(iter(choice))} needs beam search; give beam_size N above 1"):
        generation.override_decoding(Decoding(), choice, str)
    assert generation.override_decoding(Decoding(beam_size=2), choice).beam_size == 2


def test_options_of_numpy_and_numbers_that_no_device_holds(opened, monkeypatch):
    restored = opened()
    asks = generation.TextGenerator(restored, spell=generation.as_flag)
    plain = asks(["dog owl"], {"bad_words_ids": [[5], [6, 7]], "beam_size": 2, "max_new_tokens": 4})
    arrays = {"bad_words_ids": [np.array([5]), np.array([6, 7])], "beam_size": np.int64(2), "max_new_tokens": 4}
    assert asks(["dog owl"], arrays) == plain
    assert generation._plain({"bad_words_ids": np.array([[5], [6]])}) == {"bad_words_ids": [[5], [6]]}
    for choices, seed, line in (
        ({"max_new_tokens": 10**10}, 0, "generate: max_new_tokens: Input should be less than or equal to 1048576"),
        ({"beam_size": 10**6}, 0, "generate: 1,000,000 beams or answers of 9 tokens are above the limit of 1,048,576"),
        ({"sample": True}, 2**63, "--seed: must be at most 9223372036854775807"),
        ({"early_stopping": "always"}, 0, "generate: early_stopping: Input should be a valid boolean, unable to "),
        ({"bad_words_ids": [[3, "a"]]}, 0, "generate: bad_words_ids: 0: 1: Input should be a valid integer"),
    ):
        with pytest.raises(UserError) as error:
            asks(["a"], choices, seed)
        assert str(error.value).startswith(line)

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    made = generator(restored, "greedy")
    monkeypatch.setattr(made, "_jitted", full)
    with pytest.raises(UserError, match="more memory than the device has; lower the batch size"):
        made(restored.params, ["dog"])
