"""Weights of transformers' torch T5 for tests of parity; apart from interop, so that it is checked against it."""

import numpy as np

from bertjax.config.schema.model import T5Config


def flat_parameters(model, config: T5Config) -> dict[str, np.ndarray]:
    """transformers' weights under our names; its linear layers are [out, in]."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    out = {"embeddings/word/embedding": state["shared.weight"]}
    if not config.tie_word_embeddings:
        out["heads/lm/kernel"] = state["lm_head.weight"].T
    attention = {"q": "query", "k": "key", "v": "value", "o": "output"}
    gated = config.gated
    mlp = {"wi_0": "gate", "wi_1": "intermediate", "wo": "output"} if gated else {"wi": "intermediate", "wo": "output"}
    for part, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        bias = f"{part}.block.{{}}.layer.0.SelfAttention.relative_attention_bias.weight"
        if config.model_type == "umt5":
            out |= {f"{part}/layers/{i}/position/embedding": state[bias.format(i)] for i in range(depth)}
        else:
            out[f"{part}/position/embedding"] = state[bias.format(0)]
        out[f"{part}/norm/scale"] = state[f"{part}.final_layer_norm.weight"]
        for i in range(depth):
            sublayers = [("SelfAttention", "attention", attention), ("DenseReluDense", "mlp", mlp)]
            if part == "decoder":
                sublayers.insert(1, ("EncDecAttention", "cross_attention", attention))
            for number, (theirs, ours, kernels) in enumerate(sublayers):
                at = f"{part}.block.{i}.layer.{number}"
                out[f"{part}/layers/{i}/{ours}/norm/scale"] = state[f"{at}.layer_norm.weight"]
                for a, b in kernels.items():
                    out[f"{part}/layers/{i}/{ours}/{b}/kernel"] = state[f"{at}.{theirs}.{a}.weight"].T
    return out
