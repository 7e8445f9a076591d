"""The layout of an encoder's rows: special tokens and types around one text or two, by the tokenizer's template."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from bertjax.data.tokenizers.files import SpecialTokens


@dataclass(frozen=True)
class RowLayout:
    """`[CLS] a [SEP]` for one text; for two `[CLS] a [SEP] b [SEP]` (BERT, ELECTRA, ALBERT) or, with two separators,
    `<s> a </s></s> b </s>` (RoBERTa, XLM-R).

    Everything up to the last separator before b has type 0; b and the separator after it have `second_type`, which is
    0 for RoBERTa.
    """

    cls_id: int
    sep_id: int
    separators: int = 1  # between two texts
    second_type: int = 1

    def num_special(self, pair: bool) -> int:
        """The number of special tokens of a row with one text or two."""
        return 2 + self.separators if pair else 2

    def second_start(self, first_length: int) -> int:
        """The position of the second text behind a first one of `first_length` tokens, which begins at 1."""
        return 1 + first_length + self.separators

    def row(self, a: Sequence[int], b: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """The ids of a row without padding, and the type of each token. An empty second text is still one."""
        if b is None:
            return [self.cls_id, *a, self.sep_id], [0] * (len(a) + 2)
        ids = [self.cls_id, *a, *[self.sep_id] * self.separators, *b, self.sep_id]
        return ids, [0] * self.second_start(len(a)) + [self.second_type] * (len(b) + 1)

    def split(self, ids: Sequence[int], types: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """The texts of a row that `row` has made; of two texts without types the first separator parts them."""
        body = list(ids[1:-1])
        if any(types):
            second = list(types).index(1)
        elif self.second_type == 0 and self.sep_id in body:
            second = 1 + body.index(self.sep_id) + self.separators
        else:
            return body, None
        return list(ids[1 : second - self.separators]), list(ids[second:-1])

    def template(self, special: SpecialTokens) -> tokenizers.processors.TemplateProcessing:
        """The post-processor with which the tokenizers library writes such rows."""
        cls, sep = special.roles["cls"], special.roles["sep"]
        second = [f"$B:{self.second_type}", f"{sep}:{self.second_type}"]
        named = {cls: self.cls_id, sep: self.sep_id}
        return tokenizers.processors.TemplateProcessing(
            single=[cls, "$A", sep], pair=[cls, "$A", *[sep] * self.separators, *second],
            special_tokens=list(named.items()),
        )  # fmt: skip


def find_layout(backend: tokenizers.Tokenizer, special: SpecialTokens) -> RowLayout | None:
    """The layout of the rows that the template of a tokenizer writes; None for another one than `RowLayout` has."""
    cls_id, sep_id = (backend.token_to_id(special.roles[role]) for role in ("cls", "sep"))
    if cls_id is None or sep_id is None:
        return None
    a, b = (found.ids for found in backend.encode_batch_fast(["a", "b"], add_special_tokens=False))
    single, pair = backend.encode("a"), backend.encode("a", "b")
    written = (single.ids, single.type_ids), (pair.ids, pair.type_ids)
    for separators, second_type in ((1, 1), (2, 0), (1, 0), (2, 1)):
        layout = RowLayout(cls_id, sep_id, separators, second_type)
        if (layout.row(a), layout.row(a, b)) == written:
            return layout
    return None
