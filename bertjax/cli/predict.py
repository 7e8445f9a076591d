"""`bertjax predict`: fill masks, answer questions and generate text with a checkpoint."""

import argparse
import sys

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage.locations import local_path


@cli.command(
    "predict fill-mask",
    "predict the most likely tokens for each [MASK]",
    cli.MODEL,
    cli.option("text", metavar="TEXT", nargs="+", help="text that contains [MASK]"),
    cli.option("--top-k", type=cli.positive_int, default=5, help="number of tokens for each [MASK] (default: 5)"),
    cli.DEVICE,
    cli.DTYPE,
    examples=(
        "bertjax predict fill-mask runs/demo/checkpoints/00-pretrain 'Return the [MASK] of the list.'",
        "bertjax predict fill-mask google-bert/bert-base-uncased 'Paris is the [MASK] of France.'",
    ),
    note="the run is that of `bertjax demo`",
)
def fill_mask(arguments: argparse.Namespace) -> int:
    checkpoint = cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    from bertjax.evaluation import predict

    overrides = cli.dtype_override(arguments)
    return cli.print_result(predict.fill_mask(checkpoint, arguments.text, arguments.top_k, overrides=overrides))


@cli.command(
    "predict answer",
    "find the span of a text that answers a question",
    cli.MODEL,
    cli.option("--question", metavar="Q", required=True),
    cli.option("--context", metavar="TEXT", help="the text to search for the answer"),
    cli.option("--context-file", metavar="FILE", help="read the text from a UTF-8 file"),
    cli.option("--n-best", type=cli.positive_int, default=3, help="number of candidates to list (default: 3)"),
    cli.option(
        "--null-threshold",
        metavar="X",
        type=cli.finite_float,
        help="give no answer when the null odds exceed X (default: that of the evaluation, after training for v2.0)",
    ),
    cli.option("--min-probability", metavar="P", type=cli.fraction, help="give no answer below this probability"),
    cli.DEVICE,
    cli.DTYPE,
    examples=(
        "bertjax predict answer runs/demo --question 'What does it return?' --context 'It returns a new list.'",
        "bertjax predict answer runs/demo --question 'Who?' --context 'It rained.' --null-threshold -1.5",
    ),
    note="runs/demo is a run of `bertjax demo`",
)
def answer(arguments: argparse.Namespace) -> int:
    context = arguments.context
    if (context is None) == (arguments.context_file is None):
        raise UserError("bertjax predict answer: give either --context or --context-file")
    if context is None:
        from bertjax.storage.text import read_text

        context = read_text(local_path(arguments.context_file), 10_000_000)
    checkpoint = cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    from bertjax.evaluation import predict

    asked = (arguments.question, context, arguments.n_best, arguments.null_threshold, arguments.min_probability)
    return cli.print_result(predict.answer(checkpoint, *asked, overrides=cli.dtype_override(arguments)))


@cli.command(
    "predict generate",
    "generate text with a T5, or continue a text with a decoder-only run",
    cli.MODEL,
    cli.option("text", metavar="[TEXT ...]", nargs="*", help="input texts (default: the lines of standard input)"),
    cli.option("--file", metavar="FILE", help="read input texts from a UTF-8 file, one per line"),
    cli.option(
        "--beam", dest="beam_size", metavar="N", type=cli.positive_int, help="beams (default: of the run, else 1)"
    ),
    cli.option("--beam-rules", choices=("t5x", "transformers"), help="beam search (default: of the run, else t5x)"),
    cli.option("--length-penalty", metavar="X", type=cli.length_penalty, help="default: of the run, else 0.6"),
    cli.option("--sample", action="store_true", help="sample tokens instead of searching"),
    cli.option("--temperature", metavar="X", type=cli.positive_float, help="sampling temperature (default: 1)"),
    cli.option("--top-k", metavar="K", type=cli.positive_int, help="sample only from the K most likely tokens"),
    cli.option("--top-p", metavar="P", type=cli.fraction, help="nucleus sampling with total probability P"),
    cli.option("--seed", metavar="N", type=cli.positive_int, default=1, help="seed of sampling (default: 1)"),
    cli.option("--max-input-tokens", metavar="N", type=cli.positive_int, help="longest input, end token included"),
    cli.option("--max-new-tokens", metavar="N", type=cli.positive_int, help="longest output (default: of the data)"),
    cli.option("--json", action="store_true", help="print JSON that includes the input texts"),
    cli.BASE,
    cli.DEVICE,
    cli.DTYPE,
    examples=(
        "bertjax predict generate google-t5/t5-small 'translate English to German: Thank you.'",
        "bertjax predict generate runs/demo-t5 'question: What is it? context: It is a list.' --beam 4",
        "echo 'Return the <extra_id_0> of it.' | bertjax predict generate runs/demo-t5 --json",
        "bertjax predict generate runs/demo-t5/checkpoints/00-pretrain 'Return <extra_id_0> it.' --sample --top-p 0.9",
    ),
    note="runs/demo-t5 is a run of `bertjax demo`",
)
def generate(arguments: argparse.Namespace) -> int:
    names = ("beam_size", "beam_rules", "length_penalty", "temperature", "top_k", "top_p", "max_new_tokens")
    decoding = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.sample:
        decoding["sample"] = True
        if not decoding.keys().isdisjoint(("beam_size", "beam_rules", "length_penalty")):
            raise UserError("bertjax predict generate: --sample and beam search options exclude each other")
    elif sampling := [name for name in ("temperature", "top_k", "top_p") if name in decoding]:
        raise UserError(f"bertjax predict generate: --{sampling[0].replace('_', '-')} needs --sample")
    texts = _texts(arguments)
    checkpoint = cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    more = {"max_input_tokens": arguments.max_input_tokens, "overrides": cli.dtype_override(arguments)}
    more |= cli.base_model_argument(arguments)
    from bertjax.evaluation import predict

    found = predict.generate(checkpoint, texts, decoding, arguments.seed, **more)
    return cli.print_result(found if arguments.json else "\n".join(one["generated"] for one in found))


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
        reporter.current.close()  # someone may be typing
        try:
            content = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from None
    if not content.strip():
        raise UserError(f"{arguments.file or 'standard input'}: contains no text; give one text per line")
    return [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]
