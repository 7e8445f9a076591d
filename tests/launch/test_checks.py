"""What launch/tpu.py finds on the laptop: types, names, meshes, batches and paths that cannot work, and secrets."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from tpu_pod import checks, redact
from tpu_pod.checks import WorkerPaths
from tpu_pod.gcloud import RUNTIMES, LaunchError, Pod

from bertjax.config.loading.error_messages import mask_secrets
from bertjax.plan import topologies

ROOT = Path(__file__).resolve().parents[2]
MOUNTED = WorkerPaths(["/mnt/share"], "/mnt/share")
BASE = "configs/bert/pretrain_base.yaml"


def pod(kind: str = "v5litepod-16", node_id: str | None = "p", count: int | None = None, **more: str) -> Pod:
    return Pod("p", kind, more.pop("runtime", "v2-alpha-tpuv5-lite"), node_id, count, **more)


def test_the_table_of_types_is_that_of_plan():
    for name, sizes in checks.SIZES.items():
        assert name in RUNTIMES
        for size in sizes if name != "v2" else ():  # which no compiler here knows
            assert topologies.parse(f"{name}-{size}").size == checks.device_count(f"{name}-{size}")
    of_plan = {name: topologies._TYPES[topologies._ALIASES.get(name, name)] for name in checks.SIZES if name != "v2"}
    for name, (shapes, cores) in of_plan.items():
        assert sorted(chips * cores for chips in shapes) == sorted(checks.SIZES[name])


@pytest.mark.parametrize(
    ("wrong", "given", "says"),
    [
        (pod("v5litepod-17"), False, "--type: there is no v5litepod-17; did you mean v5litepod-16 or v5litepod-32?"),
        (pod("v5litepod-512"), False, "there is no v5litepod-512; did you mean v5litepod-256?"),
        (pod("v4-7"), False, "did you mean v4-8?"),
        (pod("v5p-100"), False, "did you mean v5p-64 or v5p-128?"),
        (pod("v6e-3"), False, "did you mean v6e-1 or v6e-4?"),
        (pod(zone="us-west4"), False, "--zone: 'us-west4': is a region; name a zone of it, such as us-west4-a"),
        (pod(zone="nonsense"), False, "--zone: 'nonsense': write a zone like us-west4-a"),
        (pod(node_id="My_node"), False, "--node-id: 'My_node': must be at most 63 lower-case letters"),
        (Pod("p" * 63, "v6e-8", "r", None, 2), False, "at most 63"),
        (pod("v6e-8"), True, "--runtime-version: v2-alpha-tpuv5-lite is not for v6e; leave it out for v2-alpha-tpuv6e"),
        (pod(runtime="no version"), True, "--runtime-version: 'no version' is not a version name"),
    ],
)
def test_a_pod_that_cannot_be(wrong, given, says):
    with pytest.raises(LaunchError) as caught:
        checks.check_pod(wrong, given)
    assert says in str(caught.value)


def test_pods_that_can_be():
    for kind in ("v2-8", "v3-64", "v4-384", "v5p-12288", "v6e-256", "v5litepod-1"):
        checks.check_pod(pod(kind, zone="northamerica-northeast1-c", runtime="tpu-vm-v4-base"), True)


@pytest.mark.parametrize("url", ["https://h/a/b.git", "git@github.com:a/b", "ssh://git@h/a", "host.example:a/b.git"])
def test_urls_that_workers_clone(url):
    checks.check_repo(url, WorkerPaths())
    checks.check_repo("file:///mnt/share/code", MOUNTED)
    for local in ("/home/me/code", "code", "file:///home/me", "./x:y"):
        with pytest.raises(LaunchError, match="the workers cannot clone it"):
            checks.check_repo(local, MOUNTED)


@pytest.fixture
def here(monkeypatch):
    """The question to bertjax is answered in this process, which has it imported; a dry run below starts another."""

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        monkeypatch.setattr(sys, "argv", ["-c", *argv[3:]])
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                exec(argv[2], {})
            except SystemExit as leaves:
                code = leaves.code or 0
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    git = subprocess.run
    asks = lambda argv, **more: run(argv) if argv[1] == "-c" else git(argv, **more)  # noqa: E731
    monkeypatch.setattr(checks.subprocess, "run", asks)


def check(where: Pod, place: WorkerPaths, *overrides: str, repo: bool = False) -> checks.Findings:
    return checks.check_command(where, [BASE, *overrides], place, repo)


def test_mesh_batches_paths_and_attention_are_checked_on_the_pod_s_devices(here):
    """16 chips of v5e: by bertjax's own rules, as `bertjax plan` has them."""
    wrong = "stages.pretrain128.batch_size=250", "stages.pretrain512.grad_accum=32", "run.attention=cudnn"
    found = check(pod(), WorkerPaths(["/mnt/share"]), "run.root=/mnt/share/runs", *wrong)
    batches = "stages.pretrain128.batch_size: 250 rows do not divide over 16 parts (data=16); set 240 or 256, or"
    assert found.problems[0].startswith(batches) and found.problems[1].startswith("stages.pretrain512.batch_size: 256")
    assert found.problems[2] == "run.attention: cudnn is for GPUs; use auto, splash, fused or xla"
    assert found.problems[3].startswith("tokenizer.path: vocab.txt: is not in the code that is sent; name a path in")
    assert [line.split(":")[0] for line in found.problems[4:]] == [
        "tasks.s128.source.0.files", "tasks.s512.source.0.files",
        "stages.pretrain128.evaluate.heldout.data.source.0.files",
        "stages.pretrain512.evaluate.heldout.data.source.0.files",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "overrides", "says"),
    [
        (pod("v5p-16"), ["mesh.data=7"], "mesh: data=7 x fsdp=1 x tensor=1 does not fit 8 devices"),
        (pod(node_id=None, count=2), [], "mesh.dcn: the devices come in slices: 2, not 1; set mesh.dcn=2"),
        (pod(), ["run.root=s3://b/r"], "run.root: 's3://b/r': runs are kept in a local folder or in gs://"),
        (pod(), ["run.root=/mnt/shared"], "run.root: /mnt/shared: is on each machine's own disk: no other worker"),
    ],
)
def test_a_run_that_cannot_work_there(here, where, overrides, says):
    found = check(where, MOUNTED, "run.root=/mnt/share/runs", *overrides)
    assert len(found.problems) == 1 and says in found.problems[0]
    with pytest.raises(LaunchError, match="^"):
        found.stop()


def test_counted_slices_fit_any_number_that_divides_the_batches(here):
    """BERT-base has 256 rows; 16 chips a slice."""
    counted = "run.root=/mnt/share/runs", "mesh.dcn=-1"
    for count in (None, 2, 4):
        assert check(pod(node_id=None if count else "n", count=count), MOUNTED, *counted).problems == []
    first, last = check(pod(node_id=None, count=3), MOUNTED, *counted).problems
    assert "256 rows do not divide over 48 parts (dcn=3 data=16)" in first and "begun" not in first
    assert last.endswith("numbers of slices that divide them when each slice has 16 devices: 1, 2, 4")


def test_a_run_that_can_work_there(here):
    found = check(pod(), MOUNTED, "run.root=runs", "stages.pretrain128.init_from=/home/me/bert")
    assert found.problems == [] and found.notes == [
        "stages.pretrain128.init_from: /home/me/bert: is not in an --nfs folder; the workers' own disks must have it"
    ]
    code = "tokenizer.path=configs/bert/pretrain_base.yaml", "tasks.s128.source.files=['README*']"
    same = ["stages.pretrain512.data=s128", "stages.0.evaluate=[]", "stages.1.evaluate=[]"]
    assert check(pod(), WorkerPaths(["/mnt/share"]), "run.root=/mnt/share/runs", *code, *same).problems == []


def test_roots():
    alone = pod("v5litepod-8")
    for place, root, problems, notes in (
        (WorkerPaths(["/mnt/share"]), "/mnt/share", 0, 0),
        (WorkerPaths(["/mnt/share"]), "/mnt/sharedx", 1, 0),
        (WorkerPaths(), "/data", 1, 0),
        (WorkerPaths(shared=True), "/data", 0, 0),
        (WorkerPaths(keep=True), "/data", 0, 1),
        (WorkerPaths(), None, 0, 1),
        (WorkerPaths(), "s3://b/r", 1, 0),
        (WorkerPaths(), "gs://b/r", 0, 0),
    ):
        found = checks.Findings()
        checks._check_root(alone, root, place, found)
        assert (len(found.problems), len(found.notes)) == (problems, notes), root


def test_of_a_repository_this_checkout_can_only_tell_its_own_copy(here):
    found = check(pod(), MOUNTED, "run.root=/mnt/share/runs", "mesh.data=7", repo=True)
    assert found.problems == [] and found.notes[0].startswith("in this checkout's copy: mesh: data=7")
    found = check(pod(), MOUNTED, "run.root=s3://b/r", repo=True)
    assert len(found.problems) == 1 and found.problems[0].startswith("run.root: s3://b/r: must be in gs://")
    away = checks.check_command(pod(), ["configs/elsewhere.yaml", "run.root=s3://b/r"], MOUNTED, True)
    assert away.notes == ["configs/elsewhere.yaml: not checked, it is only in --repo"] and len(away.problems) == 1


def test_a_dry_run_ends_with_2_and_a_line_for_each_problem():
    words = ["--name=p", "--type=v5litepod-16", "--dry-run", BASE, "mesh.data=3"]
    done = subprocess.run([sys.executable, "launch/tpu.py", *words], cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and len(lines) == 7
    assert all(line.startswith("launch: ") for line in lines) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:TOKEN@h/x.git", "https://***@h/x.git"),
        ("https://TOKEN@h/x.git", "https://***@h/x.git"),
        ("fatal: 'https://me:TOK/E@N@h/x.git/' not found", "fatal: 'https://***@h/x.git/' not found"),
        ("ssh://git@h/x", "ssh://git@h/x"),
        ("ssh://me:TOKEN@h/x", "ssh://***@h/x"),
        ("git@github.com:a/b", "git@github.com:a/b"),
        ("https://h/x?access_token=TOKEN&a=1", "https://h/x?access_token=***&a=1"),
        ("https://h/x?X-Goog-Signature=TOKEN", "https://h/x?X-Goog-Signature=***"),
        ("--env=WANDB_API_KEY=TOKEN", "--env=WANDB_API_KEY=***"),
        ("AWS_SECRET_ACCESS_KEY=TOKEN", "AWS_SECRET_ACCESS_KEY=***"),
        ("run.hub_token=TOKEN", "run.hub_token=***"),
        ("--env=A=ghp_TOKENTOKENTOKEN1", "--env=A=ghp_***"),
        ("tokenizer.path=vocab.txt", "tokenizer.path=vocab.txt"),
        ("tokenizer={kind: wordpiece}", "tokenizer={kind: wordpiece}"),
        ("expected key.path=value", "expected key.path=value"),
        ("run.checkpoint.keep_best=squad/f1", "run.checkpoint.keep_best=squad/f1"),
    ],
)
def test_secrets_are_not_shown(text, shown):
    assert redact.redact(text) == shown == redact.redact_word(text)
    assert redact.redact_command(["gcloud", f"--command=x '{text}'"]).count("TOKEN") == 0


def test_a_secret_of_several_words_is_hidden_and_the_schema_s_words_are_too():
    assert redact.redact_word("--env=MY_PASSWORD=a b c") == "--env=MY_PASSWORD=***"
    assert redact.redact("ran A_KEY='a b c' B=2 TOKEN=x then") == "ran A_KEY=*** B=2 TOKEN=*** then"
    for name in (
        "api_key", "apikey", "token", "secret", "password", "HF_TOKEN", "AWS_CREDENTIALS", "HF_AUTH", "PGPASS",
        "AWS_SECRET_ACCESS_KEY", "MYSQL_PWD", "GITHUB_PAT", "SSH_PASSPHRASE", "SLACK_WEBHOOK", "private_key",
    ):  # fmt: skip
        assert mask_secrets({name: "x"}) == {name: "***"} and redact.redact(f"{name}=x") == f"{name}=***"


def test_ordinary_keys_are_shown_in_both_places():
    assert redact.redact("bypass=1 encompass=1") == "bypass=1 encompass=1"
    for name in ("path", "tokenizer", "author", "bypass", "compass", "monkey", "passes", "name", "mask_token_prob"):
        assert mask_secrets({name: "x"}) == {name: "x"}, name


@pytest.mark.parametrize(
    "text",
    [
        "git://TOKEN@h/x", "git+https://TOKEN@h/x", "oauth2:TOKEN@h/x/y", "https//me:TOKEN@h/x", "https://h/x#token=TOKEN",
        "--env=GITHUB_PAT=TOKEN", "--env=DB_PASS=TOKEN", "--env=AUTH=TOKEN", "Authorization: Bearer TOKEN.TOKEN",
        "sk-TOKENTOKENTOKEN", "SLACK_WEBHOOK=https://h/TOKEN",
    ],
)  # fmt: skip
def test_secrets_without_the_usual_form_are_hidden_too(text):
    for shown in (redact.redact(text), redact.redact_word(text), redact.redact_command(["x", text])):
        assert "TOKEN" not in shown and "***" in shown
    for plain in ("a_path=x", "passes=3", "10.0.0.2:/share:/mnt", "git+ssh://git@h/x", "author=me", "compat=1"):
        assert redact.redact(plain) == plain


def test_a_folder_beside_the_mount_is_not_in_it():
    assert not WorkerPaths(["/mnt/share/"], "/mnt/share").is_mounted("/mnt/share/../x")
    assert not WorkerPaths(["/mnt/share"], "/mnt/share").is_mounted("../x") and WorkerPaths(["/mnt/share/"]).is_mounted(
        "/mnt/share/a/../b"
    )


def test_two_shares_at_one_mount_are_refused(here):
    found = check(pod(), WorkerPaths(["/mnt/a", "/mnt/a"], "/mnt/a"), "run.root=/mnt/a/runs")
    assert found.problems == ["--nfs: two shares are mounted at /mnt/a; give each its own folder"]


@pytest.mark.parametrize("folder", ["/mnt/share/bert", "models/bert"])
def test_a_model_that_the_workers_alone_have_is_no_mistake(here, folder):
    command = ["configs/finetune/squad_v1.yaml", "run.root=/mnt/share/runs", f"pretrained={folder}"]
    found = checks.check_command(pod(), command, MOUNTED, False)
    assert found.problems == [] and found.notes == [
        "configs/finetune/squad_v1.yaml: mesh, batches and files not checked: "
        f"pretrained {folder} is not on this machine"
    ]
    command[2] = "pretrained=/home/me/bert"
    assert "no such folder" in checks.check_command(pod(), command, MOUNTED, False).problems[0]


@pytest.mark.parametrize("words", [["--poll", "nan"], ["--poll", "0"], ["--ref", ""], ["--ref", "https://me:T@h"]])
def test_options_without_a_meaning_are_refused(words, capsys):
    import tpu

    assert tpu.main(["--name=p", "--type=v5litepod-16", "--dry-run", BASE, *words]) == 2
    assert f"argument {words[0]}: must be a " in capsys.readouterr().err
