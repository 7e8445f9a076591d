"""Names of the tensors that transformers' RobertaFor*, ElectraFor* and AlbertFor* save (see bert_names.py)."""

from dataclasses import replace

from bertjax.interop import bert_names
from bertjax.interop.bert_names import EncoderNames

_CLASSIFIER = {"classifier": "classifier.out_proj", "pre_classifier": "classifier.dense"}

# The classes of XLM-RoBERTa and CamemBERT have the same tensors.
ROBERTA = replace(
    bert_names.BERT,
    prefix="roberta.",
    heads={
        "mlm": {"mlm/transform": "lm_head.dense", "mlm/norm": "lm_head.layer_norm"},
        "qa": {"qa": "qa_outputs"},
        "classifier": _CLASSIFIER,
        "token_classifier": {"token_classifier": "classifier"},
    },
    mlm_bias="lm_head.bias",
    tied={"decoder": "lm_head.decoder.weight", "bias": "lm_head.decoder.bias"},
    classes={
        frozenset(): "RobertaModel",
        frozenset({"mlm"}): "RobertaForMaskedLM",
        frozenset({"qa"}): "RobertaForQuestionAnswering",
        frozenset({"classifier"}): "RobertaForSequenceClassification",
        frozenset({"token_classifier"}): "RobertaForTokenClassification",
    },
    class_prefixes={"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"},
)
ELECTRA = replace(
    bert_names.BERT,
    prefix="electra.",
    heads={
        "mlm": {"mlm/transform": "generator_predictions.dense", "mlm/norm": "generator_predictions.LayerNorm"},
        "discriminator": {
            "discriminator/dense": "discriminator_predictions.dense",
            "discriminator/output": "discriminator_predictions.dense_prediction",
        },
        "qa": {"qa": "qa_outputs"},
        "classifier": _CLASSIFIER,
        "token_classifier": {"token_classifier": "classifier"},
    },
    mlm_bias="generator_lm_head.bias",
    tied={"decoder": "generator_lm_head.weight"},
    classes={
        frozenset(): "ElectraModel",
        frozenset({"mlm"}): "ElectraForMaskedLM",
        frozenset({"discriminator"}): "ElectraForPreTraining",
        frozenset({"qa"}): "ElectraForQuestionAnswering",
        frozenset({"classifier"}): "ElectraForSequenceClassification",
        frozenset({"token_classifier"}): "ElectraForTokenClassification",
    },
    pooler=None,
    project="embeddings_project",
)
ALBERT = EncoderNames(
    prefix="albert.",
    layers="encoder.albert_layer_groups.",
    inner="albert_layers.",
    layer={
        "attention/qkv": ("attention.query", "attention.key", "attention.value"),
        "attention/output": ("attention.dense",),
        "attention/norm": ("attention.LayerNorm",),
        "mlp/intermediate": ("ffn",),
        "mlp/output": ("ffn_output",),
        "mlp/norm": ("full_layer_layer_norm",),
    },
    heads={
        "mlm": {"mlm/transform": "predictions.dense", "mlm/norm": "predictions.LayerNorm"},
        "sop": {"sop": "sop_classifier.classifier"},
        "qa": {"qa": "qa_outputs"},
        "classifier": {"classifier": "classifier"},
        "token_classifier": {"token_classifier": "classifier"},
    },
    mlm_bias="predictions.bias",
    tied={"decoder": "predictions.decoder.weight", "bias": "predictions.decoder.bias"},
    classes={
        frozenset(): "AlbertModel",
        frozenset({"mlm", "sop"}): "AlbertForPreTraining",
        frozenset({"mlm"}): "AlbertForMaskedLM",
        frozenset({"qa"}): "AlbertForQuestionAnswering",
        frozenset({"classifier"}): "AlbertForSequenceClassification",
        frozenset({"token_classifier"}): "AlbertForTokenClassification",
    },
    pooler="pooler",
    token_types=True,
    project="encoder.embedding_hidden_mapping_in",
)
