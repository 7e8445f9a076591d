"""`bertjax explore`: neighbors and analogies against gensim, projections against scikit-learn, words of tokenizers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from encoder_folders import tokenizer_folder
from hf_folders import BERT, T5_MODELS, bert_folder, t5_folder
from report_page import Page

from bertjax.cli.main import main
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers import sentencepiece as spm
from bertjax.errors import UserError
from bertjax.evaluation.predictors.vectors import LayerReader
from bertjax.evaluation.restore import restore
from bertjax.report.pages.attention import encode_values, small_map
from bertjax.report.script import digest
from bertjax.tools.explore import contextual, inputs, projection, vocabulary, words
from bertjax.tools.explore.analogies import Question, analogies
from bertjax.tools.explore.neighbors import nearest


def random_space(count: int = 60, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    pieces = [f"w{number}" for number in range(count)]
    return pieces, rng.normal(size=(count, 7)).astype(np.float32) * rng.uniform(0.1, 5, (count, 1)).astype(np.float32)


def test_nearest_words_are_those_of_gensim():
    gensim = pytest.importorskip("gensim.models")
    pieces, vectors = random_space()
    theirs = gensim.KeyedVectors(7)
    theirs.add_vectors(pieces, vectors)
    found = nearest(vectors, pieces, pieces, 10)
    assert list(found) == pieces
    for word, near in found.items():
        expected = theirs.most_similar(word, topn=10)
        assert [other for other, _ in near] == [other for other, _ in expected]
        np.testing.assert_allclose([x for _, x in near], [x for _, x in expected], atol=1e-5)


def test_analogies_are_those_of_gensim(tmp_path):
    """Also the accuracies of each section, with questions that have unknown words, in its own file format."""
    gensim = pytest.importorskip("gensim.models")
    pieces, vectors = random_space()
    rng = np.random.default_rng(1)
    lines, picked = [], [rng.choice(pieces, 3, replace=False).tolist() for _ in range(60)]
    theirs = gensim.KeyedVectors(7)
    theirs.add_vectors(pieces, vectors)
    for number, (a, b, c) in enumerate(picked):
        lines += [f": part {number // 20}"] if number % 20 == 0 else []
        best = theirs.most_similar(positive=[b, c], negative=[a], topn=1)[0][0]
        lines.append(f"{a} {b} {c} {best if number % 3 else rng.choice(pieces)}" if number % 7 else f"{a} {b} {c} no")
    (tmp_path / "questions.txt").write_text("".join(f"{line}\n" for line in lines))
    expected, sections = theirs.evaluate_word_analogies(str(tmp_path / "questions.txt"), case_insensitive=False)
    questions = inputs.read_questions(tmp_path / "questions.txt")
    found = analogies(vectors, {piece: number for number, piece in enumerate(pieces)}, questions)
    assert found.total.accuracy == pytest.approx(100 * expected) and 0 < expected < 1
    for section in sections[:-1]:  # the last one is the total
        own = found.sections[section["section"]]
        assert (own.correct, own.answered) == (len(section["correct"]), len(section["correct"] + section["incorrect"]))
    assert found.total.unknown == 9 and found.total.answered == 51
    for question, answer in zip(questions, found.answers, strict=True):
        if answer is not None:
            assert answer == theirs.most_similar(positive=[question.b, question.c], negative=[question.a])[0][0]


def test_neighbors_and_analogies_by_hand():
    """Rows of `index` may be any of the vectors; words without a row are unknown; questions' words are no answers."""
    vectors = np.array([[9, 9], [1, 0], [1, 0.1], [0, 2], [0.1, 3], [-1, 0]], np.float32)
    found = nearest(vectors[1:], ["a", "b", "c", "d", "e"], ["a", "nothing", "a"], 9)
    assert list(found) == ["a"] and [word for word, _ in found["a"]] == ["b", "d", "c", "e"]
    np.testing.assert_allclose([x for _, x in found["a"]], [1.01**-0.5, 0.1 / 9.01**0.5, 0, -1], atol=1e-6)
    index = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    asked = [Question("s", *"abcd"), Question("s", *"abce"), Question("t", "a", "b", "c", "x")]
    found = analogies(vectors, index, asked)
    assert found.answers == ["d", "d", None]
    assert found.sections["s"].accuracy == 50 and found.sections["t"].accuracy is None and found.total.unknown == 1
    assert analogies(vectors, {}, asked).total.answered == 0


def test_pca_is_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    for count, size in ((40, 9), (5, 30)):
        vectors = np.random.default_rng(2).normal(size=(count, size)) @ np.diag(np.linspace(1, 3, size))
        theirs = decomposition.PCA(3, svd_solver="full").fit(vectors)
        found = projection.pca(vectors, 3)
        np.testing.assert_allclose(np.abs(found.points), np.abs(theirs.transform(vectors)), atol=1e-9)
        np.testing.assert_allclose(found.explained, theirs.explained_variance_ratio_, atol=1e-9)
    assert (
        not projection.pca(np.ones((4, 3)), 2).points.any() and projection.pca(np.ones((2, 1)), 2).points.shape[1] == 2
    )


def test_tsne_keeps_clusters_together():
    pytest.importorskip("sklearn.manifold")
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 20)) * 4
    vectors = np.repeat(centers, 10, axis=0) + 0.1 * rng.normal(size=(30, 20))
    points = projection.tsne(vectors, 1)
    assert np.array_equal(points, projection.tsne(vectors, 1)) and points.shape == (30, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 10 == np.arange(30) // 10).all()


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"t-SNE needs scikit-learn: pip install 'bertjax\[eval\]'"):
        projection.tsne(np.eye(5), 1)


@pytest.mark.parametrize(
    ("kind", "some", "text"),
    [
        ("electra", {"the", "cat"}, "the"),
        ("roberta", {"the", "capital", "首都"}, "The"),
        ("xlm-roberta", {"cat", "twice", "日本"}, "The"),
        ("albert, cased", {"cat", "twice"}, "The"),
    ],
)
def test_words_of_each_kind_of_tokenizer(kind, some, text, tmp_path):
    tokenizer = load.from_pretrained(tokenizer_folder(kind, tmp_path))
    found = vocabulary.word_ids(tokenizer)
    assert some <= found.keys()
    assert not any("#" in word or "Ġ" in word or "▁" in word or "<" in word for word in found)
    for word, number in found.items():  # a piece that is a word begins one, where the text has a space before it
        assert tokenizer.decode([number]).strip() == word
    for word in ("Café", "Cafe\u0301") if tokenizer.lowercase else ():
        assert vocabulary.normalize(word, tokenizer) == "cafe", "without accents, as its pieces"
    ids = tokenizer.encode_batch(["The cat's café, “unaffable” (Paris)!"])[0]
    row = vocabulary.words_in(ids, tokenizer)
    cafe, paris = ("cafe", "paris") if tokenizer.lowercase else ("café", "Paris")
    assert [word.text for word in row] == [text, "cat", "s", cafe, "unaffable", paris]
    for word in row:
        assert tokenizer.decode(ids[word.start : word.stop]).strip() == word.text


def sentencepiece_tokenizer() -> spm.SentencePieceTokenizer:
    text = ["the cat sat on a mat", "the dog ran to the cat", "a cat and a dog"] * 20
    return spm.train(lambda: iter([text]), vocab_size=60, extra_ids=4, character_coverage=1.0)


def test_vectors_of_words_in_sentences(tmp_path):
    """The mean over occurrences of the mean over pieces, computed here from the hidden states one by one."""
    reader = LayerReader(restore(bert_folder(tmp_path / "hf", ("mlm",))))
    sentences = ["word ab! word", "abc word ab", "word !"]
    found = contextual.text_vectors(reader, sentences, 1)
    assert dict(zip(found.words, found.counts, strict=True)) == {"word": 4, "ab": 2, "abc": 1} and found.layer == 1
    states = [reader([sentence]).layers[1][0] for sentence in sentences]
    expected = {
        "word": [states[0][1], states[0][5], states[1][4], states[2][1]],  # behind [CLS]; ab is two pieces, abc three
        "ab": [states[0][2:4].mean(0), states[1][5:7].mean(0)],
        "abc": [states[1][1:4].mean(0)],
    }
    for word, vector in zip(found.words, found.vectors, strict=True):
        np.testing.assert_allclose(vector, np.mean(expected[word], axis=0), atol=1e-5, err_msg=word)
    single = contextual.template_vectors(reader, ["Word", "word", "a-b"], None)
    assert single.words == ["word"] and single.counts == [1] and single.layer == BERT.num_hidden_layers
    with pytest.raises(UserError, match="--layer: the model has layers 1 to 2, and 0 for its embeddings"):
        contextual.text_vectors(reader, sentences, 3)


def test_the_maps_of_the_page():
    attention = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    assert [ord(x) - 35 for x in encode_values(attention)] == [90, 0, 0, 45, 45, 0, 0, 22, 68]
    drawn = small_map(attention)
    assert 'viewBox="0 0 3 3"' in drawn and '<path opacity="1" d="M0 0h1v1h-1z"/>' in drawn
    assert '<path opacity="0.75" d="M0 1h2v1h-2z"/>' in drawn and 'd="M1 2h1v1h-1z"' in drawn


def run(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> str:
    assert main(["explore", *map(str, line)]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_report_and_page_of_a_bert(tmp_path, capsys):
    folder = bert_folder(tmp_path / "hf", ("mlm",))
    (tmp_path / "words.txt").write_text(": letters\nA\nb\nc\n\nd\n: others\nword\nWord\nabc\n")
    (tmp_path / "questions.txt").write_text(": first\na b c d\nA B c e\n: second\na b c zebra\n")
    line = (folder, "--words", tmp_path / "words.txt", "--analogies", tmp_path / "questions.txt", "--neighbors", "3")
    line = (*line, "--sentence", "a <b> & word", "--picture", "pca")
    shown = run(capsys, *line, "--output", tmp_path / "page.html")
    assert "unknown: abc" in shown and "1 with unknown words" in shown and shown.endswith(f"{tmp_path}/page.html\n")
    assert re.findall(r"  \.\.\. (\d) more on the page", shown) == ["3", "4"], "besides the first word of each group"
    report = json.loads((tmp_path / "page.json").read_text())
    assert report == json.loads(run(capsys, *line, "--json"))
    assert report["groups"] == {"letters": ["a", "b", "c", "d"], "others": ["word", "abc"]} and report["words"] == 9
    table = np.asarray(restore(folder).params["embeddings/word/embedding"])
    pieces = restore(folder).ctx.tokenizer.pieces
    a, other = (table[pieces.index(x)] for x in ("a", report["static"]["nearest"][0]["neighbors"][0]["word"]))
    cosine = a @ other / np.linalg.norm(a) / np.linalg.norm(other)
    assert report["static"]["nearest"][0]["neighbors"][0]["cosine"] == pytest.approx(cosine, abs=1e-4)
    assert [one["word"] for one in report["contextual"]["nearest"]] == ["a", "b", "c", "d", "word", "abc"]
    assert report["analogies"]["total"]["answered"] == 2 and report["analogies"]["answers"][1]["question"][0] == "a"
    [sentence] = report["attention"]
    maps = np.array(sentence["maps"])
    assert maps.shape == (2, 2, *2 * [len(sentence["tokens"])])
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-3)

    source = (tmp_path / "page.html").read_text()
    page = Page(source)
    assert "://" not in source and len(page.ids) == len(set(page.ids))
    assert page.tags.count("button") == 4 and page.tags.count("figure") == 2 and "a <b> & word" in page.text
    assert "Questions with a word that is not one piece of the vocabulary, left out: 1." in page.text
    script = source.rsplit("<script>", 1)[1].split("</script>")[0]
    assert f"'sha256-{digest(script)}'" in source  # else it would not run


def test_a_t5_in_a_folder_of_pages(tmp_path, capsys):
    tokenizer = sentencepiece_tokenizer()
    folder = t5_folder(tmp_path / "hf", T5_MODELS["1.0"], tokenizer)
    (tmp_path / "text.txt").write_text("the cat sat on a mat. The dog ran.\n")
    line = (folder, "--text", tmp_path / "text.txt", "--words", "cat,dog,the,zebra", "--layer", "0", "--picture", "pca")
    shown = run(capsys, *line, "--output", tmp_path / "pages")
    report = json.loads((tmp_path / "pages/explore.json").read_text())
    assert (tmp_path / "pages/explore.html").is_file() and "contextual vectors, layer 0" in shown
    assert report["contextual"]["sentences"] == 2 and "zebra" in report["contextual"]["unknown"]
    assert np.array(report["attention"][0]["maps"]).shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--words missing.txt", "'missing.txt': no such file or folder"),
        ("--words ,", "--words: holds no word"),
        ("--analogies bad.txt", "bad.txt: line 2 has 3 words; write four"),
        ("--analogies hf/config.json", "words; write four"),
        ("--layer 9", "--layer: the model has layers 1 to 2, and 0 for its embeddings (got 9)"),
        ("--output page.txt", "is neither a folder nor a file .html"),
        ("--output no/where/page.html", "'no/where': no such file or folder"),
        ("--picture circle", "invalid choice"),
        ("--neighbors 0", "must be an integer above 0"),
    ],
)
def test_refusals(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bert_folder(tmp_path / "hf", ())
    Path("bad.txt").write_text("a b c d\na b c\n")
    assert message in run(capsys, "hf", *options.split(), code=2)
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob("*.json"))


def test_the_built_in_words_and_questions():
    listed = [word for group in words.GROUPS.values() for word in group]
    assert len(listed) == len(set(listed)) == 64
    questions = words.default_questions()
    assert len(questions) == len({q.words for q in questions}) == 96
    assert all(len(set(q.words)) == 4 for q in questions)
