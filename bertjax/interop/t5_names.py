"""Which Hugging Face tensor is which parameter of a T5. Names are those that T5ForConditionalGeneration saves."""

from bertjax.config.schema.model import T5Config

EMBEDDING_NAMES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one table
OUTPUT_NAME = "lm_head.weight"
# In old files; transformers ignores it (`_keys_to_ignore_on_load_unexpected`).
IGNORED_NAMES = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_MLP = {False: {"intermediate": "wi"}, True: {"gate": "wi_0", "intermediate": "wi_1"}}


def t5_tensor_names(model: T5Config) -> dict[str, str]:
    """{our path: its tensor} of an encoder-decoder."""
    found = {"embeddings/word/embedding": EMBEDDING_NAMES[0]}
    mlp = _MLP[model.gated] | {"output": "wo"}
    sublayers = {
        "encoder": {"attention": ("SelfAttention", _ATTENTION), "mlp": ("DenseReluDense", mlp)},
        "decoder": {
            "attention": ("SelfAttention", _ATTENTION),
            "cross_attention": ("EncDecAttention", _ATTENTION),
            "mlp": ("DenseReluDense", mlp),
        },
    }
    for stack, depth in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found |= {f"{stack}/position/embedding": first, f"{stack}/norm/scale": f"{stack}.final_layer_norm.weight"}
        for i in range(depth):
            for number, (ours, (theirs, kernels)) in enumerate(sublayers[stack].items()):
                here, there = f"{stack}/layers/{i}/{ours}", f"{stack}.block.{i}.layer.{number}"
                found[f"{here}/norm/scale"] = f"{there}.layer_norm.weight"
                found |= {f"{here}/{a}/kernel": f"{there}.{theirs}.{b}.weight" for a, b in kernels.items()}
    return found if model.tie_word_embeddings else found | {"heads/lm/kernel": OUTPUT_NAME}
