"""Paths of a configuration and of the command line: which may lead to an object store, and the errors for others."""

import logging
import re

import pytest
import yaml

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.errors import UserError
from bertjax.storage import remote, staging
from bertjax.storage.locations import REMOTE_SCHEMES, folder_problem, local_path, path_problem

CONFIG = "stages: [{name: s, steps: 1, data: {source: {files: [a.txt]}}}]\n"
SOURCE = "stages.s.data.source"
LOCAL_ONLY = {
    "stages.s.adapter_base": "stages.s.adapter_base={}",
    f"{SOURCE}.name": SOURCE + "={{kind: huggingface, name: '{}'}}",
    f"{SOURCE}.data_dir": SOURCE + "={{kind: tfds, name: x, data_dir: '{}'}}",
}
ALSO_REMOTE = {
    "run.prepared_dir": "run.prepared_dir={}",
    "run.compilation_cache_dir": "run.compilation_cache_dir={}",
    "tokenizer.path": "tokenizer.path={}",
    "stages.s.init_from": "stages.s.init_from={}",
    f"{SOURCE}.files.0": SOURCE + ".files=['{}']",
    "tokenizer.train_on.files.0": "tokenizer.train_on={{files: ['{}']}}",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3:/bucket/x", "http://h/x", "hdfs://h/x", "gs:bucket"])
@pytest.mark.parametrize("key", LOCAL_ONLY)
def test_a_remote_path_where_only_a_local_one_works_is_refused_by_its_key(here, key, url):
    with pytest.raises(UserError, match=r"only a local path works here; name one, or the folder where") as caught:
        load(here / "c.yaml", [LOCAL_ONLY[key].format(url)])
    assert str(caught.value).startswith(f"command line: {key}: '{url}'") and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ALSO_REMOTE)
def test_object_stores_are_taken_where_the_code_behind_reads_them(here, key):
    for scheme in REMOTE_SCHEMES:
        assert load(here / "c.yaml", [ALSO_REMOTE[key].format(f"{scheme}://bucket/x")])
    for url, said in {
        "hdfs://h/x": "use a local path or one of gs://, s3://, az://",
        "gcs://b/x": "did you mean gs://b/x?",
        "gs:/b/x": "did you mean gs://b/x?",
        "GS://b/x": "did you mean gs://b/x?",
        "gs:///b/x": "did you mean gs://b/x?",
        "gs://": "is named like gs://bucket/name",
        "file:///tmp/x": "such as /tmp/x",
    }.items():
        with pytest.raises(UserError) as caught:
            load(here / "c.yaml", [ALSO_REMOTE[key].format(url)])
        assert str(caught.value).startswith(f"command line: {key}: '{url}'") and said in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://my bucket/x", "names of buckets have only lower-case letters"),
        ("gs://b\u00fccket", "names of buckets have only lower-case letters"),
        ("gs://Bucket/x", "names of buckets have only lower-case letters"),
        ("gs://user:pw@bucket/x", r"'gs://***@bucket/x': names of buckets"),
        ("gs://bucket/a/../b", "no control characters, '.' or '..'"),
        ("gs://bucket/./b", "no control characters, '.' or '..'"),
        ("gs://bucket/a\nb", "no control characters, '.' or '..'"),
    ],
)
def test_names_that_no_object_store_has_are_refused(url, said):
    problem = path_problem(url, remote=True)
    assert problem is not None and said in problem and "\n" not in problem and problem.isascii()


def test_names_with_spaces_and_of_other_languages_are_names():
    for url in (
        "gs://bucket/my runs/l\u00e4ufe",
        "gs://bucket",
        "gs://bucket/",
        "gs://a.b-c_9/x",
        "s3://B/x",
        "gs://b",
    ):
        assert path_problem(url, remote=True) is None and folder_problem(url) is None


@pytest.mark.parametrize("key", ["run.root", "run.prepared_dir"])
@pytest.mark.parametrize("name", ["a*b", "[a]", "a?", "a#1"])
def test_wildcards_in_a_folder_that_is_written_to_are_refused(here, key, name):
    with pytest.raises(UserError, match=rf"{key}: 'gs://bucket/.*': has '.', a wildcard to object stores"):
        load(here / "c.yaml", [f"{key}=gs://bucket/{name}/runs"])
    assert load(here / "c.yaml", [f"{key}=/tmp/{name}/runs"])  # on a disk it is a name
    assert load(here / "c.yaml", [f"{SOURCE}.files=['gs://bucket/*.txt']"])


def test_a_root_in_a_bucket_has_one_spelling(here):
    for root in ("gs://bucket/a/b", "gs://bucket//a/b/", "gs://bucket/a//b//"):
        assert load(here / "c.yaml", [f"run.root={root}"]).run.root == "gs://bucket/a/b"


def test_a_repeated_warning_of_a_client_is_shown_once(caplog):
    for logger in ("gcsfs", "google.auth._default"):
        for text in ("no rights", "no rights", "other"):
            logging.getLogger(logger).warning("%s here", text)
        logging.getLogger(logger).error("no rights here")
        logging.getLogger(logger).error("no rights here")
    assert [record.getMessage() for record in caplog.records] == [
        "no rights here", "other here", "no rights here", "no rights here"
    ] * 2  # fmt: skip


def test_names_with_colons_are_local_paths_and_the_schemes_are_those_with_a_package():
    for path in ("runs", "/mnt/a:b", "notes: old/x.txt", "C:stuff", "~/x", "12:30.txt"):
        assert path_problem(path, remote=False) is None
    assert tuple(remote.SCHEMES) == REMOTE_SCHEMES
    with pytest.raises(UserError, match=r"'https://\*\*\*@h/x'"):
        local_path("https://me:TOKEN@h/x")
    with pytest.raises(UserError, match=r"named like gs://bucket/name"):
        remote.as_path("gs:/bucket")


@pytest.mark.parametrize(
    "argv",
    [
        "train gs://b/c.yaml", "demo --root gs://b/r",
        "predict answer . --question q --context-file gs://b/c", "import . gs://b/out", "export . gs://b/out",
        "report . --output gs://b/x.html",
    ],
)  # fmt: skip
def test_every_command_says_so_before_it_writes_anything(here, capsys, argv):
    before = {path.name for path in here.iterdir()}
    assert main(argv.split()) == 2
    err = capsys.readouterr().err
    assert "only a local path works here" in err and err.count("\n") == 1 and len(err) <= 301
    assert {path.name for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~nobody-of-this-name/x.yaml", "there is no home folder of a user 'nobody-of-this-name'"),
        ("a" * 256, "too long for the name of a file (256 bytes)"),
        ("é" * 128, "too long for the name of a file (256 bytes)"),
        ("a/" * 2050, "too long for the name of a file (4,100 bytes)"),
    ],
)
def test_names_that_no_file_has_are_refused_by_their_key(here, capsys, path, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        local_path(path)
    for section in ({"registries": [path]}, {"extends": path}, {"run": {"root": path}}, {"pretrained": path}):
        (here / "c.yaml").write_text(yaml.safe_dump({"stages": [{"name": "s"}], **section}))
        assert main(["train", "c.yaml"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("c.yaml:") and reason in err and next(iter(section)) in err


def test_names_of_the_longest_kind_and_patterns_are_files():
    for path in ("a" * 255, "é" * 127, "a/" * 2048, "[" + "ab" * 200 + "]*.txt", "~/x", "\ud800"):
        assert path_problem(path, remote=False) is None


def test_a_file_extends_a_local_one(here):
    (here / "d.yaml").write_text("extends: gs://b/c.yaml\n")
    with pytest.raises(UserError, match=r"d.yaml:1: extends: 'gs://b/c.yaml': only a local path works here"):
        load(here / "d.yaml")


def test_the_staging_folder_is_local(monkeypatch):
    monkeypatch.setenv(staging.STAGING_ENV, "gs://b/staged")
    with pytest.raises(UserError, match="only a local path works here"):
        staging.staging_dir()
