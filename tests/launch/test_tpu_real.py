"""launch/tpu.py with what is real where it is there: gcloud's grammar, training processes, the workers' own steps."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tpu_pod import gcloud, redact
from tpu_pod.gcloud import LaunchError, Pod

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_gcloud_takes_every_command_of_a_dry_run():
    """`gcloud meta lint-gcloud-commands` checks against gcloud's own grammar; it needs no account and no network."""
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed: its grammar is not asked")
    common = ["--project=p", "--nfs=10.0.0.2:/share:/mnt/s", "--env=A=it's", "--internal-ip", "--labels=team=nlp"]
    common += [
        "--labels=cost=x",
        "--valid-until-duration=1d12h",
        "--metadata=a=b,c",
        "--metadata=d=e",
        "--doctor",
        "--cwd=/mnt/s",
    ]
    network = ["--network=n", "--subnetwork=s", "--service-account=a@p.iam.gserviceaccount.com"]
    kinds = [
        ["--type=v5litepod-256", "--spot", "--zone=us-west4-a"],
        ["--type=v5p-128", "--node-count=2", "--reserved", "--zone=us-east5-a"],
        ["--type=v4-8", "--reservation=res-1", "--tunnel-through-iap", "--zone=us-central2-b,us-central2-c"],
    ]
    seen = 0
    for kind in kinds:
        argv = [sys.executable, "launch/tpu.py", "--name=my-pod", *kind, *common, *network, "--dry-run"]
        slices = ["mesh.dcn=2"] if "--node-count=2" in kind else []
        job = ["configs/bert/pretrain_large.yaml", "run.root=/mnt/s/runs", *slices]
        done = subprocess.run([*argv, *job], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("gcloud"):
                seen += 1
                assert lint(line) is None, line
    assert seen == 9 + 14 + 11
    for command in ("cp log gs://b/l/run-s0-w0.log --quiet", "cat gs://b/r/metrics.jsonl --range=-65536"):
        assert lint(f"gcloud storage {command}") is None
    # Not in the commands that are generally available, which the launcher uses otherwise.
    request = "--zone=z --accelerator-type=v4-8 --runtime-version=r --node-id=n"
    assert "gcloud alpha" in str(lint(f"gcloud compute tpus queued-resources create q {request} --reservation=r"))
    assert "gcloud alpha" in str(lint("gcloud compute tpus tpu-vm ssh n --zone=z --tunnel-through-iap"))
    assert "unrecognized" in str(lint("gcloud compute tpus queued-resources delete x --zone=z --forced"))


def lint(command: str) -> str | None:
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={command}"], capture_output=True, text=True,
        env=os.environ | {"CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}, timeout=120,
    )  # fmt: skip
    (found,) = json.loads(done.stdout)
    return None if found["success"] else str(found["error_message"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_training_through_a_preemption(cloud, tiny_project):
    """Two workers that train tiny.yaml together; their pod is taken away; the run ends as one never disturbed."""
    shutil.rmtree(cloud.checkout / "bertjax")
    shutil.copytree(ROOT / "bertjax", cloud.checkout / "bertjax", ignore=shutil.ignore_patterns("__pycache__"))
    for file in tiny_project.iterdir():
        if file.is_file():
            shutil.copy(file, cloud.checkout / ("configs" if file.suffix == ".yaml" else ".") / file.name)
    setup = cloud.checkout / ".ci" / "setup"
    setup.write_text(setup.read_text().replace(" -S ", " "))
    cloud.git("add", ".")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cloud.environment |= {
        "FAKE_JOIN": address, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        # Only the lead would find its programs in a cache, and Gloo waits 30 s at most for one that still compiles.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }  # fmt: skip
    cloud.plan(ssh_run=["preempt at pretrain 6"])
    words = cloud.words("--poll=1", "stages.pretrain.steps=12", "stages.qa.steps=2")
    done = subprocess.run(
        words, cwd=cloud.checkout, env=cloud.environment, text=True, timeout=850,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\[w0\] pretrain \d+ \| resume", done.stdout, re.MULTILINE), done.stdout
    lines = (cloud.shared / "tiny" / "metrics.jsonl").read_text().splitlines()
    train = [(m["stage"], m["step"]) for m in map(json.loads, lines) if m["kind"] == "train"]
    assert train == [("pretrain", k) for k in range(1, 13)] + [("qa", k) for k in (1, 2)]


def test_a_mistyped_key_is_found_before_anything_is_created():
    argv = [
        sys.executable,
        "launch/tpu.py",
        "--name=p",
        "--type=v4-8",
        "configs/debug/cpu.yaml",
        "run.nam=x",
        "--dry-run",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "run.nam" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("kind", "workers"),
    # Cloud TPU's tables of configurations: v5litepod-16 and -256, v5p-128 (64 chips), v4-8, v3-32, v6e-8, v6e-256.
    [("v5litepod-16", 4), ("v5litepod-256", 64), ("v5litepod-8", 1), ("v5p-128", 16), ("v4-8", 1), ("v3-32", 4),
     ("v6e-8", 1), ("v6e-256", 64)],
)  # fmt: skip
def test_workers_by_type(kind, workers):
    assert Pod("p", kind, "r", "p", None).planned_workers() == workers
    assert gcloud.generation(kind) == kind.split("-")[0]


def test_replies_of_gcloud():
    nodes = [{"nodeId": f"p-{i}", "node": {"acceleratorType": "v4-16"}} for i in (0, 1)]
    reply = json.dumps({"name": "projects/x/locations/z/queuedResources/p", "tpu": {"nodeSpec": nodes}, "state": {}})
    assert gcloud.parse_node_names(reply) == ["p-0", "p-1"] and gcloud.parse_type(reply) == "v4-16"
    assert gcloud.parse_state(reply) == "STATE_UNSPECIFIED"
    planned = [{"multisliceParams": {"nodeCount": 2, "nodeIdPrefix": "q"}, "node": {"acceleratorType": "v4-16"}}]
    assert gcloud.parse_node_names(json.dumps({"name": "a/p", "tpu": {"nodeSpec": planned}})) == ["q-0", "q-1"]
    four = {"networkEndpoints": [{"ipAddress": str(i)} for i in range(4)]}
    assert gcloud.parse_worker_count(json.dumps(four)) == 4
    assert gcloud.parse_worker_count(json.dumps(four | {"networkConfigs": [{}, {}]})) == 2
    assert gcloud.error_line("noise\nERROR: (x) bad\n  zone\n") == "ERROR: (x) bad"
    assert gcloud.is_transient("ERROR: code 8 RESOURCE_EXHAUSTED") and not gcloud.is_transient("INVALID_ARGUMENT: type")


def test_a_remote_command_survives_gcloud_and_two_shells():
    """gcloud splits it at blanks, ssh joins the parts with blanks, the worker's shell parses it."""
    words = ["python3", "a b.py", "--env=X=it's  two", '$HOME "q"', "tab\there", ""]
    command = Pod("p", "v4-8", "r", "p", None).ssh("p", words)[-1].removeprefix("--command=")
    assert shlex.split(" ".join(command.split(" "))) == words


def test_values_that_look_secret_are_not_shown():
    shown = redact.redact_command(["gcloud", "--command=x --env=HF_TOKEN=abc123 '--env=MY_PASSWORD=d e' --env=A=1"])
    assert "abc123" not in shown and "--env=A=1" in shown and "d e" not in shown


def test_generation_names_what_was_meant():
    with pytest.raises(LaunchError, match="did you mean v5litepod-16"):
        gcloud.generation("v5e-16")
