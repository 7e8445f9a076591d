"""Whether every field of transformers' configurations has its rule, and whether the rules hold."""

import json
from pathlib import Path

import numpy as np
import pytest

from bertjax.config.huggingface import generation
from bertjax.config.huggingface.fields import ACTIVATIONS, unknown_fields
from bertjax.config.loading.load import build
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.evaluation import Decoding
from bertjax.config.schema.model import (
    FAMILIES,
    AlbertConfig,
    BertConfig,
    ElectraConfig,
    RobertaConfig,
    T5Config,
)
from bertjax.errors import UserError

# configuration_utils.py of transformers 4.57, PretrainedConfig.__init__, and the files of bert-base-multilingual-cased,
# bert-base-uncased, distilbert-base-uncased, t5-small, google/flan-t5-small, roberta-base, xlm-roberta-base,
# google/electra-small-discriminator and albert-base-v2.
VERSION_4 = """return_dict output_hidden_states torchscript torch_dtype use_bfloat16 tf_legacy_loss pruned_heads
tie_word_embeddings chunk_size_feed_forward is_encoder_decoder is_decoder cross_attention_hidden_size
add_cross_attention tie_encoder_decoder architectures finetuning_task id2label label2id tokenizer_class prefix
bos_token_id pad_token_id eos_token_id sep_token_id decoder_start_token_id task_specific_params problem_type
_name_or_path transformers_version gradient_checkpointing model_type _commit_hash _attn_implementation_autoset
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty suppress_tokens
begin_suppress_tokens output_past use_cache""".split()
OWN = {
    "bert": "position_embedding_type directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type",
    "distilbert": "sinusoidal_pos_embds tie_weights_",
    "t5": "n_positions",
    "roberta": "position_embedding_type classifier_dropout",
    "xlm-roberta": "position_embedding_type classifier_dropout",
    "camembert": "position_embedding_type classifier_dropout",
    "electra": "position_embedding_type embedding_size summary_type summary_use_proj summary_activation "
    "summary_last_dropout classifier_dropout",
    "albert": "position_embedding_type down_scale_factor gap_size net_structure_type num_memory_blocks "
    "classifier_dropout_prob inner_group_num num_hidden_groups embedding_size",
}
NAMES = [("bert", "Bert"), ("distilbert", "DistilBert"), ("t5", "T5"), ("roberta", "Roberta"),
         ("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert"), ("electra", "Electra"),
         ("albert", "Albert")]  # fmt: skip
# config.json of models on the Hub, and our section.
PUBLISHED = {
    "roberta-base": (
        {"model_type": "roberta", "vocab_size": 50265, "type_vocab_size": 1, "max_position_embeddings": 514,
         "layer_norm_eps": 1e-05, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        RobertaConfig(), 512,
    ),
    "xlm-roberta-base": (
        {"model_type": "xlm-roberta", "vocab_size": 250002, "type_vocab_size": 1, "max_position_embeddings": 514,
         "layer_norm_eps": 1e-05, "output_past": True, "pad_token_id": 1, "position_embedding_type": "absolute"},
        RobertaConfig(model_type="xlm-roberta", vocab_size=250002), 512,
    ),
    "electra-base-discriminator": (
        {"model_type": "electra", "embedding_size": 768, "hidden_size": 768, "intermediate_size": 3072,
         "num_attention_heads": 12, "summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu",
         "summary_last_dropout": 0.1},
        ElectraConfig(embedding_size=768, hidden_size=768, intermediate_size=3072, num_attention_heads=12), 512,
    ),
    "albert-base-v2": (
        {"model_type": "albert", "attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "embedding_size": 128,
         "classifier_dropout_prob": 0.1, "hidden_act": "gelu_new", "hidden_size": 768, "intermediate_size": 3072,
         "num_attention_heads": 12, "num_hidden_groups": 1, "inner_group_num": 1, "down_scale_factor": 1,
         "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0, "vocab_size": 30000},
        AlbertConfig(), 512,
    ),
}  # fmt: skip


def described(folder: Path, **fields) -> dict:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return read_model_fields(folder)


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_every_field_of_transformers_has_a_rule(family, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    fields = getattr(transformers, f"{name}Config")().to_dict()
    assert unknown_fields(fields) == []
    assert unknown_fields(dict.fromkeys([*VERSION_4, *OWN[family].split()]) | {"model_type": family}) == []
    assert unknown_fields(fields | {"attention_temperature": 2}) == ["attention_temperature"]
    plain = json.loads(json.dumps(fields, default=str))
    sizes = described(tmp_path, **plain)  # defaults are what we compute
    config = build({"model": sizes, "tokenizer": {"kind": "sentencepiece" if family == "t5" else "wordpiece"},
                    "stages": [STAGES[family == "t5"]]}).model  # fmt: skip
    assert getattr(config, "model_type", config.family) == family
    for ours in ("hidden_dropout_prob", "max_position_embeddings", "vocab_size", "layer_norm_eps", "type_vocab_size"):
        if hasattr(config, ours) and ours in plain:
            assert getattr(config, ours) == plain[ours], ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name, tmp_path):
    fields, expected, length = PUBLISHED[name]
    assert unknown_fields(fields) == []
    found = FAMILIES[expected.family](**described(tmp_path, **fields))
    assert found == expected and found.max_length == length


def test_fields_that_a_file_leaves_out_have_the_defaults_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    for family, name in NAMES[3:]:
        sizes = described(tmp_path, model_type=family)
        theirs = getattr(transformers, f"{name}Config")()
        section = FAMILIES[sizes["family"]](**sizes)
        for field in section.model_dump(exclude={"family", "position_init", "config_from", "classifier_dropout"}):
            assert getattr(section, field) == getattr(theirs, field), (family, field)
    assert FAMILIES["albert"](**described(tmp_path, model_type="albert")).classifier_dropout == 0.1
    same = described(tmp_path, model_type="albert", classifier_dropout_prob=0.0)
    assert FAMILIES["albert"](**same).classifier_dropout == 0.0


STAGES = [
    {"name": "s", "steps": 1, "objective": {"nsp_weight": 0}, "data": {"source": {"kind": "stdlib_docs"}}},
    {"name": "s", "steps": 1, "objective": {"kind": "text_to_text"},
     "data": {"source": {"kind": "stdlib_docs"}, "preprocess": {"kind": "span_corruption"}}},
]  # fmt: skip


def test_every_setting_of_generation_has_a_rule():
    transformers = pytest.importorskip("transformers")
    known = {*generation.SUPPORTED, *generation.UNSUPPORTED, *generation.IGNORED}
    assert sorted(transformers.GenerationConfig().to_dict().keys() - known) == []
    assert generation.unsupported_settings(transformers.GenerationConfig().to_dict()) == []
    assert generation.to_decoding_fields(transformers.GenerationConfig().to_dict()) == {}


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("t5", "is_encoder_decoder", False), ("t5", "is_decoder", True), ("t5", "pruned_heads", {"0": [1]}),
        ("t5", "quantization_config", {"bits": 4}), ("bert", "is_decoder", True), ("bert", "add_cross_attention", True),
        ("bert", "position_embedding_type", "relative_key"), ("bert", "pruned_heads", {"0": [1]}),
        ("bert", "problem_type", "ranking"), ("bert", "tie_encoder_decoder", True),
        ("distilbert", "is_encoder_decoder", True), ("distilbert", "auto_map", {"AutoModel": "x.Y"}),
        ("roberta", "position_embedding_type", "relative_key_query"), ("xlm-roberta", "is_decoder", True),
        ("roberta", "pad_token_id", None), ("electra", "is_decoder", True), ("albert", "pruned_heads", {"0": [1]}),
        ("camembert", "quantization_config", {"bits": 4}), ("albert", "is_encoder_decoder", True),
    ],
)  # fmt: skip
def test_another_function_is_refused_in_one_line(tmp_path, family, field, value):
    described(tmp_path / "fine", model_type=family)
    with pytest.raises(UserError) as error:
        described(tmp_path / "other", **{"model_type": family, field: value})
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/other/config.json: {field}: ") and "\n" not in message


def test_activations_are_those_of_transformers_or_refused(tmp_path):
    """Values of ACT2FN itself; no hint to a similar name."""
    torch, activations = pytest.importorskip("torch"), pytest.importorskip("transformers.activations")
    from bertjax.models.layers.numerics import activation

    x = np.linspace(-6, 6, 101, dtype=np.float32)
    read = 0
    for name in [*activations.ACT2FN, "gated-gelu", "gelo", None]:
        fields = {"model_type": "bert", "hidden_act": name}
        if name is None:
            assert "hidden_act" not in described(tmp_path, **fields)
        elif name in ACTIVATIONS:
            ours = described(tmp_path, **fields)["hidden_act"]
            theirs = activations.ACT2FN[name](torch.tensor(x)).numpy()
            np.testing.assert_allclose(np.asarray(activation(ours, x)), theirs, atol=2e-6, err_msg=name)
            assert BertConfig(hidden_act=ours) and described(tmp_path, model_type="distilbert", activation=name)
            read += 1
        else:
            with pytest.raises(UserError, match="hidden_act: '.*' is not supported; use one of") as error:
                described(tmp_path, **fields)
            assert "did you mean" not in str(error.value)
    assert read == len(ACTIVATIONS)


@pytest.mark.parametrize("said", ["relu", "silu", "gelu", "gelu_new", "gated-relu", "gated-gelu", "gated-silu",
                                  "gated-gelu_new", "gated-swish", "swish", "gelu_pytorch_tanh"])  # fmt: skip
def test_feed_forward_layers_are_those_of_transformers(tmp_path, said):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Config(feed_forward_proj=said)
    sizes = described(tmp_path, **json.loads(theirs.to_json_string(use_diff=False)))
    ours = T5Config(feed_forward_proj=sizes["feed_forward_proj"])
    assert ours.gated == theirs.is_gated_act
    assert ACTIVATIONS[theirs.dense_act_fn] == ours.activation


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj: 'mish' is not supported"),
        ({"feed_forward_proj": "gated-gelu_python"}, "'gated-gelu_python' is not supported"),
        ({"feed_forward_proj": "double-relu"}, "feed_forward_proj: 'double-relu' is not supported"),
        ({"feed_forward_proj": 3}, "feed_forward_proj: 3 is not supported"),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act is True and feed_forward_proj 'relu'"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'"),
    ],
)
def test_feed_forward_layers_that_are_not_supported(tmp_path, fields, says):
    with pytest.raises(UserError) as error:
        described(tmp_path, model_type="t5", **fields)
    assert says in str(error.value) and "did you mean" not in str(error.value)


def test_a_configuration_of_ours_gets_no_hint_to_another_activation():
    for family, key, value in (("bert", "hidden_act", "gelu_tanh"), ("t5", "feed_forward_proj", "gated-gel")):
        with pytest.raises(UserError, match=f"model.{key}: must be ") as error:
            build({"model": {"family": family, key: value}, "stages": [STAGES[0]]})
        assert "did you mean" not in str(error.value).split("\n")[0]


def test_dropouts_that_other_heads_have(tmp_path):
    """BertForSequenceClassification takes hidden_dropout_prob where classifier_dropout is None."""
    assert "classifier_dropout" not in described(tmp_path, model_type="bert", classifier_dropout=None)
    assert described(tmp_path, model_type="bert", classifier_dropout=0.3)["classifier_dropout"] == 0.3
    sizes = described(tmp_path, model_type="distilbert")  # DistilBertConfig's defaults
    assert (sizes["classifier_dropout"], sizes["qa_dropout"]) == (0.2, 0.1)


def test_where_decoding_starts(tmp_path):
    start = lambda **fields: described(tmp_path, model_type="t5", **fields)["decoder_start_token_id"]  # noqa: E731
    assert (start(), start(pad_token_id=4), start(pad_token_id=4, decoder_start_token_id=5)) == (0, 4, 5)
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 7}')
    assert (start(), start(decoder_start_token_id=5)) == (7, 5)


def test_new_fields_do_not_change_the_identity_of_older_runs():
    """A saved model has no field that earlier versions did not have, so that their runs are resumed."""
    assert not {"classifier_dropout", "qa_dropout"} & BertConfig().model_dump().keys()
    assert "decoder_start_token_id" not in T5Config().model_dump()
    assert T5Config(decoder_start_token_id=5).model_dump()["decoder_start_token_id"] == 5


@pytest.mark.parametrize(
    ("settings", "expected", "left"),
    [
        ({"num_beams": 4, "max_new_tokens": 9}, {"beam_size": 4, "beam_rules": "transformers", "length_penalty": 1.0,
                                                 "max_new_tokens": 9}, []),
        ({"num_beams": 4, "length_penalty": -1, "early_stopping": True},
         {"beam_size": 4, "beam_rules": "transformers", "length_penalty": -1.0, "early_stopping": True}, []),
        ({"do_sample": True}, {"sample": True, "temperature": 1.0, "top_k": 50, "top_p": None}, []),
        ({"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.7},
         {"sample": True, "temperature": 0.7, "top_k": None, "top_p": 0.9}, []),
        ({"temperature": 0.7, "early_stopping": True, "length_penalty": 2.0}, {}, []),  # of no effect in greedy search
        ({"max_length": 33}, {"max_new_tokens": 32}, []),
        ({"max_length": 20}, {}, []),
        ({"no_repeat_ngram_size": 3, "min_length": 0, "repetition_penalty": 1.0, "suppress_tokens": [5]},
         {"no_repeat_ngram_size": 3}, ["suppress_tokens [5]"]),
        ({"min_length": 30, "repetition_penalty": 1.2, "bad_words_ids": [[4], [5, 6]]},  # min_length counts the start
         {"min_new_tokens": 29, "repetition_penalty": 1.2, "bad_words_ids": [[4], [5, 6]]}, []),
        ({"min_length": 30, "min_new_tokens": 1}, {"min_new_tokens": 1}, []),
        ({"num_return_sequences": 3}, {}, ["num_return_sequences 3"]),  # transformers refuses it in greedy search
        ({"num_beams": 2, "do_sample": True, "top_k": 5},
         {"sample": True, "temperature": 1.0, "top_k": 5, "top_p": None}, ["num_beams 2"]),
        ({"max_length": 2, "use_cache": False}, {"max_new_tokens": 1}, []),
        ({"num_beams": 1, "newer_than_this": 3, "newer_and_off": None}, {}, ["newer_than_this 3"]),
    ],
)  # fmt: skip
def test_settings_of_generation(settings, expected, left):
    assert generation.to_decoding_fields(settings) == expected
    assert generation.unsupported_settings(settings) == left
    Decoding(**expected)


@pytest.mark.parametrize(("name", "wrong", "right"), [("max_length", 1, 2), ("num_beams", 0, 1), ("min_length", -1, 0)])
def test_numbers_that_generate_refuses_are_refused(tmp_path, name, wrong, right):
    """transformers' generate raises for them, with the start token as the only input of the decoder."""
    (tmp_path / "generation_config.json").write_text(json.dumps({name: wrong}))
    with pytest.raises(UserError, match=f"generation_config.json: {name} is {wrong}, it must be at least {right}"):
        generation.read_generation_config(tmp_path)
    with pytest.raises(UserError, match=f"^config.json: {name} is {wrong}"):
        generation.generation_settings({"config": {name: wrong}, "generation_config": {}})
    (tmp_path / "generation_config.json").write_text(json.dumps({name: right}))
    assert generation.read_generation_config(tmp_path) == {name: right}


def test_the_number_of_answers():
    count = lambda **settings: generation.num_return_sequences(settings)  # noqa: E731
    assert (count(), count(num_return_sequences=2), count(num_return_sequences=None)) == (1, 1, 1)
    for wrong in (2.5, -3, float("inf"), float("nan")):
        given = {"num_return_sequences": wrong, "do_sample": True}
        assert count(**given) == 1 and generation.unsupported_settings(given) == [f"num_return_sequences {wrong}"]
    assert count(num_return_sequences=2, num_beams=4) == count(num_return_sequences=2, do_sample=True) == 2
    assert count(num_return_sequences=5, num_beams=4) == 1
