"""`bertjax predict`: fill masks, answer questions and generate text with a checkpoint."""

import argparse
import sys

from bertjax.cli.arguments import (
    BASE,
    CHECKPOINT,
    DEVICE,
    DTYPE,
    base_model_argument,
    command,
    dtype_override,
    existing_path,
    finite_float,
    fraction,
    length_penalty,
    option,
    positive_float,
    positive_int,
)
from bertjax.cli.startup import print_result, require_device
from bertjax.errors import UserError
from bertjax.storage.locations import local_path


@command(
    "predict fill-mask",
    "predict the most likely tokens for each [MASK]",
    CHECKPOINT,
    option("text", metavar="TEXT", nargs="+", help="text that contains [MASK]"),
    option("--top-k", type=positive_int, default=5, help="number of tokens for each [MASK] (default: 5)"),
    DEVICE,
    DTYPE,
    examples=("bertjax predict fill-mask runs/demo 'Return the [MASK] of the list.'",),
)
def fill_mask(arguments: argparse.Namespace) -> int:
    checkpoint = existing_path(arguments.checkpoint)
    require_device(arguments)
    from bertjax.evaluation import predict

    overrides = dtype_override(arguments)
    return print_result(predict.fill_mask(checkpoint, arguments.text, arguments.top_k, overrides=overrides))


@command(
    "predict answer",
    "find the span of a text that answers a question",
    CHECKPOINT,
    option("--question", metavar="Q", required=True),
    option("--context", metavar="TEXT", help="the text to search for the answer"),
    option("--context-file", metavar="FILE", help="read the text from a UTF-8 file"),
    option("--n-best", type=positive_int, default=3, help="number of candidates to list (default: 3)"),
    option(
        "--null-threshold",
        metavar="X",
        type=finite_float,
        help="give no answer when the null odds exceed X (default: the threshold of the stage's evaluation, if the "
        "training data had unanswerable questions)",
    ),
    option(
        "--min-probability",
        metavar="P",
        type=fraction,
        help="give no answer when the best candidate's probability is below P",
    ),
    DEVICE,
    DTYPE,
    examples=(
        "bertjax predict answer runs/qa --question 'What is a list?' --context-file lists.txt",
        "bertjax predict answer runs/qa --question 'Who?' --context 'It rained.' --null-threshold -1.5",
    ),
)
def answer(arguments: argparse.Namespace) -> int:
    checkpoint, context = existing_path(arguments.checkpoint), arguments.context
    if (context is None) == (arguments.context_file is None):
        raise UserError("bertjax predict answer: give either --context or --context-file")
    if context is None:
        from bertjax.storage.text import read_text

        context = read_text(local_path(arguments.context_file), 10_000_000)
    require_device(arguments)
    from bertjax.evaluation import predict

    asked = (arguments.question, context, arguments.n_best, arguments.null_threshold, arguments.min_probability)
    return print_result(predict.answer(checkpoint, *asked, overrides=dtype_override(arguments)))


@command(
    "predict generate",
    "generate text with a T5 run, or continue a text with a decoder-only run",
    CHECKPOINT,
    option("text", metavar="[TEXT ...]", nargs="*", help="input texts (default: the lines of standard input)"),
    option("--file", metavar="FILE", help="read input texts from a UTF-8 file, one per line"),
    option(
        "--beam", dest="beam_size", metavar="N", type=positive_int, help="beam size (default: that of the run, else 1)"
    ),
    option(
        "--beam-rules", choices=("t5x", "transformers"), help="beam search variant (default: that of the run, else t5x)"
    ),
    option(
        "--length-penalty",
        metavar="X",
        type=length_penalty,
        help="length penalty of beam search (default: that of the run, else 0.6)",
    ),
    option("--sample", action="store_true", help="sample tokens instead of searching"),
    option("--temperature", metavar="X", type=positive_float, help="sampling temperature (default: 1)"),
    option("--top-k", metavar="K", type=positive_int, help="sample only from the K most likely tokens"),
    option("--top-p", metavar="P", type=fraction, help="nucleus sampling with total probability P"),
    option("--seed", metavar="N", type=positive_int, default=1, help="seed of sampling (default: 1)"),
    option(
        "--max-input-tokens",
        metavar="N",
        type=positive_int,
        help="truncate inputs to N tokens, the end token included (default: no truncation)",
    ),
    option(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        help="maximum output length (default: that of the run's data)",
    ),
    option("--json", action="store_true", help="print JSON that includes the input texts"),
    BASE,
    DEVICE,
    DTYPE,
    examples=(
        "bertjax predict generate runs/t5 'translate English to German: Thank you.' --beam 4",
        "bertjax predict generate runs/t5 --file articles.txt --json",
        "bertjax predict generate runs/t5/checkpoints/00-pretrain 'Thank <extra_id_0> me.' --sample --top-p 0.9",
    ),
)
def generate(arguments: argparse.Namespace) -> int:
    given = {
        name: getattr(arguments, name)
        for name in ("beam_size", "beam_rules", "length_penalty", "temperature", "top_k", "top_p", "max_new_tokens")
    }
    decoding = {name: value for name, value in given.items() if value is not None}
    if arguments.sample:
        decoding["sample"] = True
        if not decoding.keys().isdisjoint(("beam_size", "beam_rules", "length_penalty")):
            raise UserError("bertjax predict generate: --sample and beam search options exclude each other")
    elif sampling := [name for name in ("temperature", "top_k", "top_p") if name in decoding]:
        raise UserError(f"bertjax predict generate: --{sampling[0].replace('_', '-')} needs --sample")
    checkpoint = existing_path(arguments.checkpoint)
    texts = _texts(arguments)
    require_device(arguments)
    more = {"max_input_tokens": arguments.max_input_tokens, "overrides": dtype_override(arguments)}
    more |= base_model_argument(arguments)
    from bertjax.evaluation import predict

    found = predict.generate(checkpoint, texts, decoding, arguments.seed, **more)
    return print_result(found if arguments.json else "\n".join(one["generated"] for one in found))


def _texts(arguments: argparse.Namespace) -> list[str]:
    """The texts on the command line, else the lines of --file or of standard input."""
    if arguments.text and arguments.file:
        raise UserError("bertjax predict generate: give either TEXT or --file")
    if arguments.text:
        return list(arguments.text)
    if arguments.file:
        from bertjax.storage.text import read_text

        content = read_text(local_path(arguments.file), 100_000_000)
    else:
        try:
            content = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from None
    if not content.strip():
        raise UserError(f"{arguments.file or 'standard input'}: contains no text; give one text per line")
    return [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]
