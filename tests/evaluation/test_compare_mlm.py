"""`bertjax compare-mlm`: scores against a plain transformers loop, cloze files, the choice of items, the command."""

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import jax
import pytest
from encoder_folders import tokenizer_folder
from hf_folders import BERT, bert_folder
from report_page import Page

from bertjax.cli.main import main
from bertjax.data.tokenizers import load
from bertjax.errors import UserError
from bertjax.evaluation.predictors import masked_scores
from bertjax.evaluation.predictors.masked_scores import MaskedRow, MaskScore, MaskScorer, mask_rows
from bertjax.evaluation.restore import restore
from bertjax.tools.compare_mlm import cloze, significance, table
from bertjax.tools.compare_mlm.command import Request, compare_mlm
from bertjax.tools.compare_mlm.likelihood import compare_likelihoods
from bertjax.tools.compare_mlm.texts import find_words, read_sample

WORDS = (
    "the of and a in to was is river treaty senate harvest soldier market engine winter garden doctor letter castle "
    "music paper signed crossed old long green north carried near village"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentences(count: int, seed: int, words: list[str] = WORDS) -> list[str]:
    draw = random.Random(seed)
    made = (" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(count))
    return [line[0].upper() + line[1:] + "." for line in made]


def torch_folder(where: Path, words: list[str], seed: int) -> Path:
    """A random BertForMaskedLM of transformers whose vocabulary has these words, and pieces of one."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    where.mkdir()
    pieces = [*SPECIAL, ".", ",", "sen", "##ate", *words]
    (where / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.6,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(where)
    transformers.BertTokenizerFast(str(where / "vocab.txt")).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models: the second lacks `senate`, which is two pieces there."""
    base = tmp_path_factory.mktemp("models")
    without = [word for word in WORDS if word != "senate"]
    return torch_folder(base / "a", WORDS, 1), torch_folder(base / "b", without, 2)


@pytest.fixture(scope="module")
def scorers(folders: tuple[Path, Path]) -> tuple[MaskScorer, MaskScorer]:
    a, b = (MaskScorer(restore(folder), batch_size=8) for folder in folders)
    return a, b


def torch_model(folder: Path):
    transformers = pytest.importorskip("transformers")
    return (
        transformers.AutoModelForMaskedLM.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def torch_log_likelihood(model, tokenizer, text: str, padded: bool) -> float:
    """One position at a time, as in Salazar et al.'s definition."""
    torch = pytest.importorskip("torch")
    given = tokenizer(text, return_tensors="pt", **({"padding": "max_length", "max_length": 32} if padded else {}))
    length, total = int(given["attention_mask"].sum()), 0.0
    for place in range(1, length - 1):
        ids = given["input_ids"].clone()
        ids[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(**{**given, "input_ids": ids}).logits[0, place]
        total += torch.log_softmax(logits.double(), -1)[given["input_ids"][0, place]].item()
    return total


def test_pseudo_log_likelihoods_are_those_of_a_plain_loop(folders, scorers):
    model, tokenizer = torch_model(folders[0])
    fourteen = " ".join(WORDS[:14])  # 16 tokens with the special ones: a row without padding
    texts = [fourteen, "river", *sentences(3, 3)]
    ids = scorers[0].tokenizer.encode_batch(texts)
    found = scorers[0].pseudo_log_likelihoods(ids)
    for padded in (False, True):
        expected = [torch_log_likelihood(model, tokenizer, text, padded) for text in texts]
        assert found == pytest.approx(expected, abs=1e-4)


def test_groups_of_rows_and_devices_do_not_change_the_likelihoods(folders, scorers, monkeypatch):
    ids = scorers[0].tokenizer.encode_batch(sentences(4, 4))
    found = scorers[0].pseudo_log_likelihoods(ids)
    assert len(jax.devices()) == 8 and scorers[0].restored.program.batch_shards == 8
    monkeypatch.setattr(masked_scores, "CHUNK_ROWS", 20)
    assert scorers[0].pseudo_log_likelihoods(ids) == pytest.approx(found, abs=1e-4)
    alone = MaskScorer(restore(folders[0], devices=jax.devices()[:1]), batch_size=8)
    assert alone.pseudo_log_likelihoods(ids) == pytest.approx(found, abs=1e-4)


def test_ranks_and_candidates_are_those_of_a_plain_loop(folders, scorers):
    torch = pytest.importorskip("torch")
    model, tokenizer = torch_model(folders[0])
    items = [
        ("The [MASK] crossed the river.", ["soldier"]), ("[MASK] of the old garden", ["Winter"]),
        ("the [MASK] signed a [MASK] in the north, near the village", ["doctor", "letter"]),
    ]  # fmt: skip
    rows = mask_rows(scorers[0].tokenizer, items, scorers[0].room())
    assert all(isinstance(row, MaskedRow) for row in rows)
    for (text, answers), row, scores in zip(items, rows, scorers[0].score(rows, 10), strict=True):
        given = tokenizer(text, return_tensors="pt")
        assert given["input_ids"][0].tolist() == list(row.ids)
        with torch.no_grad():
            logits = model(**given).logits[0].double()
        places = (given["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        assert len(places) == len(scores) == len(answers)
        for place, answer, score in zip(places, answers, scores, strict=True):
            gold = tokenizer.convert_tokens_to_ids(answer.lower())
            chances = torch.log_softmax(logits[place], -1)
            assert score.log_probability == pytest.approx(chances[gold].item(), abs=1e-4)
            assert score.rank == 1 + int((chances > chances[gold]).sum())
            best = chances.topk(10)
            assert [token for token, _ in score.top] == tokenizer.convert_ids_to_tokens(best.indices.tolist())
            assert [p for _, p in score.top] == pytest.approx(best.values.exp().tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["roberta, json", "xlm-roberta", "electra"])
def test_masked_rows_of_other_tokenizers_are_those_of_transformers(kind, tmp_path):
    """The gold piece is the one that transformers has in the place of the mask where the answer is filled in."""
    transformers = pytest.importorskip("transformers")
    model_type = kind.split(",")[0]
    where = tokenizer_folder(kind, tmp_path / "hf", model_type=model_type)
    ours, theirs = load.from_file(where), transformers.AutoTokenizer.from_pretrained(where)
    texts = ["on the [MASK] sat", "[MASK]", "dog [MASK], and", "is [MASK]!"]
    found = mask_rows(ours, [(text, ["cat"]) for text in texts], None)
    kept = [(text, row) for text, row in zip(texts, found, strict=True) if isinstance(row, MaskedRow)]
    assert len(kept) >= 3, "RoBERTa's first word has no space before it, and is other pieces"
    for text, row in kept:
        (place,), (gold,) = row.masks, row.gold
        assert list(row.ids) == theirs(text.replace("[MASK]", theirs.mask_token))["input_ids"]
        assert row.ids[place] == theirs.mask_token_id
        assert gold == theirs(text.replace("[MASK]", "cat"))["input_ids"][place]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tmp_path):
    """With weights of zero each of the 40 outputs has probability 1/40, and ranks are in the order of the ids."""
    restored = restore(bert_folder(tmp_path / "hf", ("mlm",), BERT))
    zeros = {path: jax.tree.map(lambda x: 0 * x, value) for path, value in restored.params.items()}
    scorer = MaskScorer(restored, batch_size=8)
    scorer.params = zeros
    ids = scorer.tokenizer.encode_batch(["a b c d", "abc word !"])
    assert scorer.pseudo_log_likelihoods(ids) == pytest.approx([-len(row) * math.log(40) for row in ids], rel=1e-5)
    (row,) = mask_rows(scorer.tokenizer, [("a [MASK] !", ["word"])], None)
    ((score,),) = scorer.score([row], 3)
    assert score.rank == 1 + row.gold[0] == 1 + scorer.tokenizer.pieces.index("word")
    assert [token for token, _ in score.top] == SPECIAL[:3]
    assert [p for _, p in score.top] == pytest.approx([1 / 40] * 3)


def test_aggregates_and_counts_of_known_scores():
    a = [MaskScore(rank, -float(rank), []) for rank in (1, 2, 4, 20)]
    b = [MaskScore(rank, -float(rank) / 2, []) for rank in (1, 1, 8, 10)]
    found = significance.aggregate(a)
    assert found == {
        "mean_reciprocal_rank": pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4), "accuracy@1": 25.0, "accuracy@10": 75.0,
        "mean_log_probability": -6.75,
    }  # fmt: skip
    counted = significance.counts(a, b)
    assert counted == {"won": 2, "lost": 1, "tied": 1, "only_a_first": 0, "only_b_first": 1}
    tests = significance.paired_tests(a, b, 1)
    assert tests["sign_test"]["p"] == 1.0 and tests["mcnemar"]["p"] == 1.0
    assert tests["bootstrap"]["log_probability"]["difference"] == pytest.approx(6.75 - 20 / 8)


# ---- cloze files and the choice of items ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cloze.txt", "cloze.jsonl"])
def test_a_written_set_is_read_again(name, tmp_path):
    items = [cloze.ClozeItem("A [MASK], \"ß\" 'x'", ("river",)), cloze.ClozeItem("[MASK] and [MASK]", ("a", "the"))]
    cloze.write_cloze(tmp_path / name, items)
    assert cloze.read_cloze(tmp_path / name) == items


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("c.txt", "a [MASK]\tb\n\nno mask\tc\n", r"c.txt: line 3: contains no \[MASK\]; write \[MASK\] in place"),
        ("c.txt", "a [MASK] b\n", r"c.txt: line 1: 1 \[MASK\] and 0 answers; give a word for each"),
        ("c.txt", "a [MASK] b\t \n", r"line 1: 1 \[MASK\] and 0 answers"),
        ("c.txt", "a [MASK] b\tc\td\n", r"line 1: 1 \[MASK\] and 2 answers"),
        ("c.txt", "\n \n", "c.txt: holds no cloze item"),
        ("c.txt", "", "c.txt: the file is empty"),
        ("c.jsonl", '{"text": "a [MASK]"}\n', "c.jsonl: line 1: no field 'answer' with a word"),
        ("c.jsonl", '{"text": "a [MASK]", "answer": ["b", 1]}\n', "line 1: no field 'answer' with a word"),
        ("c.jsonl", '{"text": "a", "answer": "b"}\n', r"line 1: contains no \[MASK\]"),
        ("c.jsonl", '{"text": "[MASK] [MASK]", "answer": "b"}\n', r"line 1: 2 \[MASK\] and 1 answers"),
        ("c.jsonl", '{"sentence": "a", "answer": "b"}\n', "line 1: no field 'text'"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(name, content, error, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=error):
        cloze.read_cloze(tmp_path / name)


def test_answers_of_several_pieces_in_either_model_are_left_out(scorers):
    items = [
        cloze.ClozeItem("The [MASK] crossed the river.", ("soldier",)),
        cloze.ClozeItem("The [MASK] crossed the river.", ("senate",)),  # sen ##ate in B
        cloze.ClozeItem("The [MASK] crossed the river.", ("unheard",)),  # [UNK]
        cloze.ClozeItem("The [MASK] crossed the river.", ("old village",)),
        cloze.ClozeItem("[MASK] " + "river " * 40, ("old",)),
    ]
    found = cloze.fitting_items(items, scorers)
    assert found.items == items[:1] and found.left_out == {"not one piece": 3, "too long": 1}
    gold = [side[0].gold[0] for side in found.rows]
    assert [s.tokenizer.pieces[i] for s, i in zip(scorers, gold, strict=True)] == ["soldier", "soldier"]


def test_words_are_those_of_letters_that_nothing_joins():
    text = "The well-known King's hat, 3rd x2 snake_case café cafe\u0301 हिन्दी 東京 END."
    assert [text[w.start : w.end] for w in find_words(text)] == [
        "The", "hat", "café", "cafe\u0301", "हिन्दी", "END",
    ]  # fmt: skip


def test_stop_words_are_the_most_frequent_and_at_most_a_tenth():
    assert cloze.stop_words(Counter({"b": 3, "a": 3, "c": 9} | {f"w{n}": 1 for n in range(17)})) == {"a", "c"}
    many = Counter({f"w{n:04}": n for n in range(3000)})
    assert cloze.stop_words(many) == {f"w{n:04}" for n in range(2950, 3000)}


def test_chosen_items_follow_the_rule_and_the_seed(scorers, tmp_path):
    lines = sentences(300, 5)
    (tmp_path / "text.txt").write_text("\n".join(lines))
    sample = read_sample([tmp_path / "text.txt"], "text", 1, 50)
    assert sorted(sample.sentences) == sorted(lines) and sample.total == 300 and sample.documents == 1
    assert sample.words == sum(len(line.split()) for line in lines)
    found = cloze.choose_cloze(sample, scorers, 50, 1)
    assert len(found.items) == 50 and len({item.text for item in found.items}) == 50
    stop = cloze.stop_words(sample.frequencies)
    assert 0 < len(stop) <= 3
    for item in found.items:
        (answer,) = item.answers
        assert item.text.replace("[MASK]", answer) in lines and len(item.text.split()) >= 5
        assert len(answer) >= 3 and answer.lower() not in stop | {"senate"} and answer.lower() in WORDS
    assert cloze.choose_cloze(sample, scorers, 50, 1).items == found.items
    assert cloze.choose_cloze(sample, scorers, 20, 1).items == found.items[:20]
    assert cloze.choose_cloze(sample, scorers, 50, 2).items != found.items
    assert read_sample([tmp_path / "text.txt"], "text", 2, 50).sentences != sample.sentences
    assert found.left_out["not one piece"] > 0, "senate"


def test_a_sample_is_a_part_of_a_large_text(tmp_path, monkeypatch):
    monkeypatch.setattr("bertjax.tools.compare_mlm.texts.KEPT", 30)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in sentences(200, 6)))
    sample = read_sample([tmp_path / "a.jsonl"], "body", 1, 2)
    assert len(sample.sentences) == 30 and sample.total == sample.documents == 200
    more = read_sample([tmp_path / "a.jsonl"], "body", 1, 5)
    assert more.sentences[:30] == sample.sentences and len(more.sentences) == 50
    with pytest.raises(UserError, match="a.jsonl: line 1: no field 'text'; the fields are: body; name another with"):
        read_sample([tmp_path / "a.jsonl"], "text", 1, 2)
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(UserError, match="blank.txt: holds no text"):
        read_sample([tmp_path / "blank.txt"], "text", 1, 2)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("domain.txt").write_text("\n".join([*sentences(20, 7), "Old " + "old " * 60 + "."]))
    Path("general.txt").write_text("\n".join(sentences(15, 8)))
    return tmp_path


def test_the_report_of_the_command(here, folders, capsys):
    a, b = map(str, folders)
    common = ["--limit", "6", "--device", "cpu", "--batch-size", "8"]
    given = ["--text", "domain.txt", "--general", "general.txt", "--write-cloze", "set.txt", "--output", "page.html"]
    assert main(["compare-mlm", a, b, *given, *common]) == 0
    shown = capsys.readouterr().out
    report = json.loads(Path("page.json").read_text())
    assert shown == f"{table.format_text(report)}\n\npage.html\n"
    assert (report["a"], report["b"]["path"]) == ({"path": a, "vocabulary": len(WORDS) + 9}, b)
    assert not report["same_tokenizer"] and "tokenizers differ" in report["notes"][0]
    found = report["cloze"]
    assert found["texts"] == found["masks"] == len(found["items"]) == 6
    assert sum(found["counts"][name] for name in ("won", "lost", "tied")) == 6
    for item in found["items"]:
        assert item["rank_change"] == item["b"]["rank"] - item["a"]["rank"]
        assert len(item["a"]["top"]) == len(item["b"]["top"]) == 10
    for name in ("domain", "general"):
        text = report["texts"][name]
        assert text["scored_sentences"] == 6
        for side in "ab":
            one = text[side]
            per = one["pseudo_log_likelihood"]
            assert one["perplexity_per_token"] == pytest.approx(math.exp(-per / one["tokens"]))
            assert one["perplexity_per_word"] == pytest.approx(math.exp(-per / text["scored_words"]))
    general = report["texts"]["general"]
    lines = Path("general.txt").read_text().splitlines()
    pieces = sum(len(line.split()) + 1 + line.lower().count("senate") for line in lines)  # a full stop each
    assert general["b"]["tokens_per_word"] == pytest.approx(pieces / sum(len(line.split()) for line in lines))
    page = Page(Path("page.html").read_text())  # fails at a tag out of place
    assert page.ids[:4] == ["cloze", "domain", "general", "tests"] and page.tags.count("details") == 6
    assert "The full report is in page.json" in page.text and page.tags.count("script") == 1

    assert main(["compare-mlm", a, b, "--cloze", "set.txt", "--json", *common]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["texts"] == {} and again["cloze"]["source"] == {"cloze": "set.txt"}
    for one, other in zip(again["cloze"]["items"], found["items"], strict=True):
        assert (one["text"], one["answer"]) == (other["text"], other["answer"])
        assert one["a"]["rank"] == other["a"]["rank"] and one["b"]["rank"] == other["b"]["rank"]


def test_a_model_compared_with_itself_is_equal(here, folders):
    report = compare_mlm(Request(folders[0], folders[0], text=[Path("domain.txt")], limit=5, batch_size=8))
    assert report["same_tokenizer"] and report["cloze"]["a"] == report["cloze"]["b"]
    assert report["cloze"]["counts"]["tied"] == 5 and report["cloze"]["significance"]["sign_test"]["p"] == 1.0
    domain = report["texts"]["domain"]
    assert domain["a"] == domain["b"] and domain["bootstrap"]["pseudo_log_likelihood"]["difference"] == 0
    assert "B better:" not in table.format_text(report)
    domain["a"]["perplexity_per_word"] = 1594270.66  # a word of many pieces: the columns stay apart
    domain["b"]["perplexity_per_word"] = 1e304
    assert re.search(r"per word +1\.594e\+06 +1\.000e\+304\n", table.format_text(report))


def test_sentences_that_a_model_cannot_read_are_counted(here, scorers):
    Path("few.txt").write_text("\n".join([*sentences(3, 9), "Old " + "old " * 60 + "."]))
    found = compare_likelihoods(read_sample([Path("few.txt")], "text", 1, 9), scorers, 9, 1, "domain")
    assert (found["sentences"], found["scored_sentences"], found["left_out"]) == (4, 3, {"more than 30 tokens": 1})
    assert found["scored_words"] == sum(len(line.split()) for line in sentences(3, 9)) == found["words"] - 62
    with pytest.raises(UserError, match="few.txt: no sentence of at most 30 tokens"):
        Path("few.txt").write_text("Old " + "old " * 60 + ".")
        compare_likelihoods(read_sample([Path("few.txt")], "text", 1, 9), scorers, 9, 1, "domain")


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["compare-mlm", *argv]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert out == "" and len(errors) == 1
    return f"{errors[0]}\n"


@pytest.mark.parametrize("number", [0, 1])
def test_a_long_text_is_cut_around_its_mask(number):
    text = "start " + "a " * 60 + "first [MASK] word " + "b\n" * 60 + "second [MASK] word " + "c " * 60 + "end"
    shown = table.around_mask(text, number, 60)
    assert len(shown) == 60 and shown.startswith("...") and shown.endswith("...")
    assert f"{('first', 'second')[number]} [MASK] word" in shown and "\n" not in shown
    assert table.around_mask("a  [MASK]\nb", 0, 60) == "a [MASK] b"
    assert table.around_mask("[MASK] " + "a " * 60, 0, 20) == "[MASK] a a a a a ..."
    assert table.around_mask("a " * 60 + "[MASK]", 0, 20).endswith("a a a [MASK]")


def test_mistakes_are_one_line_and_nothing_is_written(here, folders, capsys):
    a, b = map(str, folders)
    headless = str(bert_folder(here / "qa", ("qa",)))
    files = sorted(here.iterdir())
    assert "has no 'mlm' head (it has: qa)" in said(capsys, a, headless, "--text", "domain.txt", "--output", "p.html")
    assert said(capsys, a, b) == "bertjax compare-mlm: give --text, --cloze or both\n"
    both = ("--cloze", "domain.txt", "--write-cloze", "new.txt")
    assert "--write-cloze is for items chosen from --text" in said(capsys, a, b, *both)
    assert "line 1: contains no [MASK]" in said(capsys, a, b, "--cloze", "domain.txt")
    assert "'none.txt': no such file" in said(capsys, a, b, "--text", "none.txt")
    assert "would be overwritten" in said(capsys, a, b, "--text", "domain.txt", "--write-cloze", "domain.txt")
    same = ("--text", "domain.txt", "--write-cloze", "p.json", "--output", "p.html")
    assert "name the same file; name two" in said(capsys, a, b, *same)
    assert sorted(here.iterdir()) == files
    Path("odd.txt").write_text("He met unheard [MASK].\tsomebody\n")
    assert "odd.txt: holds no cloze item for both models" in said(capsys, a, b, "--cloze", "odd.txt")
    Path("short.txt").write_text("One two. Three four.")
    assert "short.txt: holds no cloze item for both models: no word to mask" in said(
        capsys, a, b, "--text", "short.txt"
    )


def test_a_page_shows_markup_as_text(here, folders):
    Path("set.txt").write_text("The <b>[MASK]</b> crossed & <script>x</script>\triver\n")
    compare_mlm(Request(*folders, cloze=Path("set.txt"), output=Path("p.html"), batch_size=8))
    page = Page(Path("p.html").read_text())
    assert "The <b>[MASK]</b> crossed & <script>x</script>" in page.text and "b" not in page.tags


def test_stop_words_of_real_text(shared_data):
    sample = read_sample([shared_data / "domain" / "presidential_speeches.jsonl.xz"], "text", 1, 3)
    assert len(sample.sentences) == 10_000 < sample.total
    stop = cloze.stop_words(sample.frequencies)
    assert len(stop) == 50 and {"the", "and", "of", "that", "we"} <= stop and not {"freedom", "peace"} & stop
