"""`bertjax predict`: fill masks, answer questions, label, tag, embed and generate texts with a checkpoint."""

import argparse
from typing import TYPE_CHECKING

from bertjax.cli import arguments as cli
from bertjax.errors import UserError, escape_controls
from bertjax.storage.locations import local_path

if TYPE_CHECKING:
    from bertjax.tools.predict import Request

_TEXT = cli.option("text", metavar="[TEXT ...]", nargs="*", help="texts (default: the lines of standard input)")
_FILE = cli.option(
    "--file", metavar="FILE", help="read texts from a .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet file"
)
_COLUMN = cli.option("--column", metavar="NAME", help="field of the file with the text (default: text)")
_BATCH = cli.option("--batch-size", metavar="N", type=cli.size, help="texts computed at once (default: by device)")
_DTYPE = cli.option(
    "--dtype", choices=("float32", "bfloat16"),
    help="compute dtype (default: run.compute_dtype; where that is auto, float32 on a CPU)",
)  # fmt: skip

_EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def _output(*suffixes: str) -> cli.Option:
    ends = " or ".join(filter(None, [", ".join(suffixes[:-1]), suffixes[-1]]))
    return cli.option("--output", metavar="FILE", help=f"write the predictions to a {ends} file")


@cli.command(
    "predict fill-mask",
    "predict the most likely tokens for each [MASK]",
    cli.MODEL,
    _TEXT,
    _FILE,
    _COLUMN,
    cli.option("--top-k", type=cli.positive_int, default=5, help="number of tokens for each [MASK] (default: 5)"),
    _output(".jsonl"),
    cli.BEST,
    _BATCH,
    cli.DEVICE,
    _DTYPE,
    cli.BASE,
    examples=(
        "bertjax predict fill-mask runs/demo/checkpoints/00-pretrain 'Return the [MASK] of the list.'",
        "bertjax predict fill-mask google-bert/bert-base-uncased 'Paris is the [MASK] of France.'",
        "bertjax predict fill-mask google-bert/bert-base-uncased --file sentences.txt --output filled.jsonl",
    ),
    note="the run is that of `bertjax demo`",
)
def fill_mask(arguments: argparse.Namespace) -> int:
    request = _request("fill-mask", arguments, (".jsonl",))
    from bertjax.tools import predict

    return _print(predict.fill_mask(request, arguments.top_k, arguments.column))


@cli.command(
    "predict answer",
    "find the span of a text, or of a folder of documents, that answers a question",
    cli.MODEL,
    cli.option("--question", metavar="Q", help="the question"),
    cli.option("--context", metavar="TEXT", help="the text to search for the answer"),
    cli.option("--context-file", metavar="FILE", help="read the text from a UTF-8 file"),
    cli.option(
        "--documents", metavar="FOLDER", help="search documents: a folder of .txt, .md, .rst and .jsonl files, or one "
        "of them; BM25 selects the passages that the model reads",
    ),
    cli.option(
        "--file", metavar="FILE", help="read questions from a .jsonl, .json (SQuAD's form too), .csv, .tsv or "
        ".parquet file: fields question, context and possibly id; with --documents without context, or .txt",
    ),
    cli.option(
        "--top-passages", metavar="N", type=cli.size, help="passages of --documents read for a question "
        "(default: 10)",
    ),
    cli.option("--column", metavar="NAME", help="field of .jsonl --documents with the text (default: text)"),
    cli.option(
        "--n-best", metavar="N", type=cli.size, help="candidates to list (default: 3, with --documents 5)"
    ),
    cli.option(
        "--null-threshold",
        metavar="X",
        type=cli.finite_float,
        help="give no answer when the null odds exceed X (default: as swept by the evaluation, else its setting)",
    ),
    cli.option("--min-probability", metavar="P", type=cli.fraction, help="give no answer below this probability"),
    cli.option(
        "--min-confidence", metavar="P", type=cli.fraction, help="give no answer below this calibrated confidence"
    ),
    cli.option(
        "--output", metavar="FILE", help="write the predictions to a .jsonl, .csv or .tsv file, or to a .json file "
        "in SQuAD's form, {id: answer}",
    ),
    cli.BEST,
    _BATCH,
    cli.DEVICE,
    _DTYPE,
    cli.BASE,
    examples=(
        "bertjax predict answer runs/demo --question 'What does it return?' --context 'It returns a new list.'",
        "bertjax predict answer runs/demo --question 'Who?' --context 'It rained.' --null-threshold -1.5",
        "bertjax predict answer runs/demo --question 'Where is it kept?' --documents handbook/",
        "bertjax predict answer runs/demo --file questions.jsonl --output answers.jsonl",
    ),
    note="runs/demo is a run of `bertjax demo`",
)  # fmt: skip
def answer(arguments: argparse.Namespace) -> int:
    context = _check_answer(arguments)
    documents = None if arguments.documents is None else cli.existing_path(arguments.documents)
    if documents is not None:
        from bertjax.evaluation.retrieval.document_files import LeftOut, find_files

        find_files(documents, LeftOut())  # its errors come before anything is loaded
    request = _request("answer", arguments, (".jsonl", ".csv", ".tsv", ".json"))
    options = {name: getattr(arguments, name) for name in ("null_threshold", "min_probability", "min_confidence")}
    options["n_best"] = arguments.n_best or (3 if documents is None else 5)
    if documents is not None:
        options |= {
            "documents": documents,
            "top_passages": arguments.top_passages or 10,
            "text_field": arguments.column or "text",
        }
    from bertjax.tools import predict

    return _print(predict.answer(request, arguments.question, context, options))


def _check_answer(arguments: argparse.Namespace) -> str | None:
    """Raise UserError for options that exclude each other -> the context, if it is not in a file of questions."""
    name = "bertjax predict answer"
    texts = [arguments.context, arguments.context_file]
    if arguments.file is not None:
        if any(one is not None for one in [arguments.question, *texts]):
            raise UserError(f"{name}: give either --file or --question with a context")
    elif arguments.question is None or sum(one is not None for one in [*texts, arguments.documents]) != 1:
        raise UserError(
            f"{name}: give --question and either --context or --context-file or --documents, or give --file"
        )
    elif arguments.output is not None:
        raise UserError(f"{name}: --output needs --file")
    for option in ("top_passages", "column"):
        if arguments.documents is None and getattr(arguments, option) is not None:
            raise UserError(f"{name}: --{option.replace('_', '-')} needs --documents")
    if arguments.context_file is None:
        return arguments.context
    from bertjax.storage.text import read_text

    return read_text(local_path(arguments.context_file), 10_000_000)


@cli.command(
    "predict classify",
    "label texts, or pairs of texts, with a classification run",
    cli.MODEL,
    _TEXT,
    cli.option("--pair", metavar="TEXT", help="the second text of each pair"),
    _FILE,
    cli.option("--column", metavar="NAME", help="field of the file with the text (default: as in training, or text)"),
    cli.option("--pair-column", metavar="NAME", help="field with the second text (default: as in training)"),
    cli.option("--top-k", metavar="K", type=cli.positive_int, help="list the K most likely labels (default: all)"),
    cli.option(
        "--threshold", metavar="P", type=cli.fraction,
        help="with several labels for one text: give those with this probability (default: as in the evaluation, 0.5)",
    ),
    _output(".csv", ".tsv", ".jsonl"),
    cli.option("--json", action="store_true", help="print JSON that includes all probabilities"),
    cli.BEST,
    _BATCH,
    cli.DEVICE,
    _DTYPE,
    cli.BASE,
    examples=(
        "bertjax predict classify distilbert/distilbert-base-uncased-finetuned-sst-2-english 'A film to remember.'",
        "bertjax predict classify runs/reviews --file unlabelled.csv --output labelled.csv",
        "bertjax predict classify runs/entailment 'It rains.' --pair 'It is wet.' --json",
    ),
    note="runs/reviews and runs/entailment are runs of your own",
)  # fmt: skip
def classify(arguments: argparse.Namespace) -> int:
    if arguments.file is not None and arguments.pair is not None:
        raise UserError("bertjax predict classify: --pair is for TEXT; a file has its second texts in --pair-column")
    request = _request("classify", arguments, (".csv", ".tsv", ".jsonl"))
    from bertjax.tools import predict

    options = {"top_k": arguments.top_k, "threshold": arguments.threshold}
    found = predict.classify(request, arguments.pair, arguments.column, arguments.pair_column, **options)
    if found is None or arguments.json:
        return _print(found)
    return cli.print_result("\n".join(map(predict.label_line, found)))


@cli.command(
    "predict tag",
    "find entities in texts, or label words, with a token classification run",
    cli.MODEL,
    _TEXT,
    cli.option(
        "--file", metavar="FILE", help="read texts from a .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet "
        "file, or words from a .conll file (one a line) or from lists in records",
    ),
    cli.option("--column", metavar="NAME", help="field with the text, or the list of words (default: as in training)"),
    cli.option(
        "--aggregation", choices=("none", "simple", "first", "average", "max"), default="first",
        help="aggregation_strategy of transformers: how labels of pieces become entities (default: first)",
    ),
    _output(".jsonl", ".conll"),
    cli.BEST,
    _BATCH,
    cli.DEVICE,
    _DTYPE,
    cli.BASE,
    examples=(
        "bertjax predict tag dslim/bert-base-NER 'Angela Merkel visited New York.'",
        "bertjax predict tag runs/entities --file texts.txt --output entities.jsonl",
        "bertjax predict tag runs/entities --file test.conll --output labelled.conll",
    ),
    note="runs/entities is a run of your own",
)  # fmt: skip
def tag(arguments: argparse.Namespace) -> int:
    request = _request("tag", arguments, (".jsonl", ".conll"))
    from bertjax.tools import tagging

    return _print(tagging.tag(request, arguments.aggregation, arguments.column))


@cli.command(
    "predict embed",
    "turn each text into a vector",
    cli.MODEL,
    _TEXT,
    _FILE,
    _COLUMN,
    cli.option(
        "--pooling", choices=("mean", "cls"),
        help="mean of the last layer over the text's tokens, or its first token (default: as trained, else mean)",
    ),
    cli.option(
        "--no-normalize", action="store_true",
        help="keep the lengths of the vectors (default: as trained, else length 1)",
    ),
    cli.option(
        "--max-tokens", metavar="N", type=cli.size,
        help="cut longer texts (default: at the length in training, else the model's)",
    ),
    _output(".npy", ".jsonl"),
    cli.BEST,
    _BATCH,
    cli.DEVICE,
    _DTYPE,
    cli.BASE,
    examples=(
        "bertjax predict embed sentence-transformers/all-MiniLM-L6-v2 'A sentence.' 'Another.' --output vectors.jsonl",
        "bertjax predict embed sentence-transformers/all-MiniLM-L6-v2 --file sentences.txt --output vectors.npy",
    ),
)  # fmt: skip
def embed(arguments: argparse.Namespace) -> int:
    request = _request("embed", arguments, (".npy", ".jsonl"))
    from bertjax.tools import predict

    normalize = False if arguments.no_normalize else None
    options = (arguments.pooling, normalize, arguments.max_tokens, arguments.column)
    return _print(predict.embed(request, *options))


@cli.command(
    "predict generate",
    "generate text with a T5, or continue a text with a decoder-only run",
    cli.MODEL,
    _TEXT,
    _FILE,
    _COLUMN,
    cli.option(
        "--beam", dest="beam_size", metavar="N", type=cli.size, help="beams (default: of the run, else 1)"
    ),
    cli.option("--beam-rules", choices=("t5x", "transformers"), help="beam search (default: of the run, else t5x)"),
    cli.option("--length-penalty", metavar="X", type=cli.length_penalty, help="default: of the run, else 0.6"),
    cli.option(
        "--early-stopping", choices=tuple(_EARLY_STOPPING), help="when beam search by transformers' rules ends: with "
        "as many answers as beams, when a better one is unlikely (default), or impossible",
    ),
    cli.option("--sample", action="store_true", help="sample tokens instead of searching"),
    cli.option("--temperature", metavar="X", type=cli.positive_float, help="sampling temperature (default: 1)"),
    cli.option("--top-k", metavar="K", type=cli.positive_int, help="sample only from the K most likely tokens"),
    cli.option("--top-p", metavar="P", type=cli.fraction, help="nucleus sampling with total probability P"),
    cli.option("--seed", metavar="N", type=cli.positive_int, default=1, help="seed of sampling (default: 1)"),
    cli.option(
        "--num-return-sequences", metavar="N", type=cli.size,
        help="answers for each text: the best beams, or N samples (default: 1, or of an imported folder)",
    ),
    cli.option("--max-input-tokens", metavar="N", type=cli.size, help="longest input, end token included"),
    cli.option("--max-new-tokens", metavar="N", type=cli.size, help="longest output (default: of the data)"),
    cli.option(
        "--min-new-tokens", metavar="N", type=cli.non_negative_int, help="shortest output, without the end token"
    ),
    cli.option(
        "--no-repeat-ngram-size", metavar="N", type=cli.non_negative_int, help="let no N tokens in a row occur twice"
    ),
    cli.option(
        "--repetition-penalty", metavar="X", type=cli.positive_float,
        help="above 1: make tokens that the output already has less likely (default: 1)",
    ),
    _output(".jsonl"),
    cli.option("--json", action="store_true", help="print JSON: input texts, and all answers with their scores"),
    cli.BEST,
    cli.option("--batch-size", metavar="N", type=cli.size, help="texts computed at once (default: 8)"),
    cli.DEVICE,
    _DTYPE,
    cli.BASE,
    examples=(
        "bertjax predict generate google-t5/t5-small 'translate English to German: Thank you.'",
        "bertjax predict generate runs/demo-t5 'question: What is it? context: It is a list.' --beam 4",
        "bertjax predict generate runs/demo-t5 'Return <extra_id_0> it.' --beam 4 --num-return-sequences 3 --json",
        "echo 'Return the <extra_id_0> of it.' | bertjax predict generate runs/demo-t5 --json",
        "bertjax predict generate runs/demo-t5/checkpoints/02-copy_40 'Return <extra_id_0> it.' --sample --top-p 0.9",
        "bertjax predict generate runs/demo-t5 --file questions.jsonl --column input --output answers.jsonl",
    ),
    note="runs/demo-t5 is a run of `bertjax demo`",
)  # fmt: skip
def generate(arguments: argparse.Namespace) -> int:
    names = (
        "beam_size", "beam_rules", "length_penalty", "temperature", "top_k", "top_p", "max_new_tokens",
        "min_new_tokens", "no_repeat_ngram_size", "repetition_penalty",
    )  # fmt: skip
    decoding = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.early_stopping is not None:
        decoding["early_stopping"] = _EARLY_STOPPING[arguments.early_stopping]
    if arguments.sample:
        decoding["sample"] = True
        if not decoding.keys().isdisjoint(("beam_size", "beam_rules", "length_penalty", "early_stopping")):
            raise UserError("bertjax predict generate: --sample and beam search options exclude each other")
    elif sampling := [name for name in ("temperature", "top_k", "top_p") if name in decoding]:
        raise UserError(f"bertjax predict generate: --{sampling[0].replace('_', '-')} needs --sample")
    request = _request("generate", arguments, (".jsonl",))
    from bertjax.tools import predict

    found = predict.generate(
        request, decoding, arguments.num_return_sequences, scored=arguments.json or request.output is not None,
        seed=arguments.seed, max_input_tokens=arguments.max_input_tokens, column=arguments.column,
    )  # fmt: skip
    if found is None or arguments.json:
        return _print(found)
    answers = (answer["generated"] for one in found for answer in one.get("answers", [one]))
    return cli.print_result("\n".join(map(escape_controls, answers)))


def _request(name: str, arguments: argparse.Namespace, suffixes: tuple[str, ...]) -> "Request":
    """Check the paths and the device of a command, in this order, before anything is loaded."""
    file = None
    if arguments.file is not None:
        file = cli.existing_path(arguments.file)
        if file.is_dir():
            raise UserError(f"{file}: is a folder; name a file")
    documents = getattr(arguments, "documents", None)
    output = cli.output_path(arguments.output, [file, None if documents is None else local_path(documents)])
    if output is not None and output.suffix not in suffixes:
        ends = " or ".join(filter(None, [", ".join(suffixes[:-1]), suffixes[-1]]))
        raise UserError(f"{output}: the name of --output must end with {ends}")
    texts = getattr(arguments, "text", [])
    if texts and file is not None:
        raise UserError(f"bertjax predict {name}: give either TEXT or --file")
    if not texts and file is None and hasattr(arguments, "text"):
        texts = cli.standard_input(f"bertjax predict {name}")
    cli.check_utf8(texts)
    checkpoint = cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    from bertjax.tools.predict import Request

    best = getattr(arguments, "best", None)
    more = cli.base_model_argument(arguments)
    return Request(checkpoint, texts, file, output, arguments.batch_size, arguments.dtype, best, **more)


def _print(found: object) -> int:
    return 0 if found is None else cli.print_result(found)
