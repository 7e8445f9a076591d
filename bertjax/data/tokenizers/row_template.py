"""Sets the template of a tokenizer: the special tokens around one text and two.

Rows always have those of BERT or T5, whatever the template of the original folder. Exported tokenizers get the same, so
that in transformers an exported model reads what it was trained on.
"""

import tokenizers
import tokenizers.processors

from bertjax.data.tokenizers.files import SpecialTokens


def template_difference(backend: tokenizers.Tokenizer, special: SpecialTokens) -> str:
    """A note on how a tokenizer's template differs from bertjax's rows; "" if it does not."""
    if _is_standard(backend, special):
        return ""
    if special.is_t5:
        return "transformers does not append eos to a text; bertjax and its exports do"
    written = " ".join(backend.encode("a", "b").tokens[:12])
    return f"transformers writes two texts as {written}; bertjax and its exports as [CLS] a [SEP] b [SEP]"


def _is_standard(backend: tokenizers.Tokenizer, special: SpecialTokens) -> bool:
    token = {role: backend.token_to_id(name) for role, name in special.roles.items()}
    (a,), (b,) = (backend.encode_batch_fast([text], add_special_tokens=False) for text in "ab")
    pair = backend.encode("a", "b")
    if special.is_t5:
        return bool(pair.ids == [*a.ids, token["eos"], *b.ids, token["eos"]])
    ids = [token["cls"], *a.ids, token["sep"], *b.ids, token["sep"]]
    return bool((pair.ids, pair.type_ids) == (ids, [0] * (len(a.ids) + 2) + [1] * (len(b.ids) + 1)))


def set_template(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """Set the template of bertjax's rows."""
    if _is_standard(backend, special):
        return
    if special.is_t5:
        eos = special.roles["eos"]
        single, pair, tokens = ["$A", eos], ["$A", eos, "$B", eos], [eos]
    else:
        cls, sep = special.roles["cls"], special.roles["sep"]
        single, pair, tokens = [cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"], list(dict.fromkeys([cls, sep]))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, backend.token_to_id(token)) for token in tokens]
    )
