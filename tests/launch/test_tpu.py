"""launch/tpu.py against a gcloud that fails as the real one does: what is done, in which order, and how it ends."""

import json
import signal
import subprocess
import time

import pytest

CREATE, DELETE = "queued-resources create", "queued-resources delete"
SCP, SSH = "tpu-vm scp", "tpu-vm ssh"


def steps(said: str) -> list[int]:
    return [int(line.split()[-1]) for line in said.splitlines() if line.startswith("[w0] step")]


def test_from_nothing_to_deleted(cloud):
    cloud.plan(states=["WAITING_FOR_RESOURCES", "PROVISIONING"])
    code, said = cloud.launch("--env", "GREETING=hello 'you'")
    assert code == 0, said
    assert cloud.calls() == [CREATE, SCP, SCP, SSH, SSH, DELETE] and not cloud.there()  # the code, the environment
    assert "my-pod is WAITING_FOR_RESOURCES" in said and "training on 2 workers" in said
    assert steps(said) == list(range(1, 9))
    assert "[w0] start 0 env hello 'you'" in said
    log = cloud.checkout / "runs/launch/my-pod/attempt-001/run-s0-w0.log"
    assert log.read_text().splitlines() == ["start 0 env hello 'you'", *(f"step {k}" for k in range(1, 9))]
    code, said = cloud.launch()
    assert code == 0 and "already finished" in said
    assert len(cloud.calls()) == 6, "nothing is left to do"


def test_variables_are_on_no_command_line(cloud):
    """Command lines can be read by every user of a machine."""
    code, said = cloud.launch("--env", "GREETING", "--doctor", GREETING="s3cret-greeting")
    assert code == 0 and "[w0] start 0 env s3cret-greeting" in said
    sent = [call for call in (cloud.home / "calls.jsonl").read_text().splitlines() if "s3cret" in call]
    assert not sent and not list((cloud.checkout / "runs").rglob("*.env"))
    assert not list(cloud.home.rglob("*.env")), "none is left on the workers"
    code, said = cloud.launch("--env=NOT_SET_HERE")
    assert code == 2 and "NOT_SET_HERE is not set here; give NOT_SET_HERE=VALUE" in said


def test_the_processes_of_a_start_get_a_secret_that_no_command_shows(cloud):
    code, said = cloud.launch("--keep")
    assert code == 0, said
    one, other = ((cloud.shared / f"secret-my-pod-{worker}").read_text() for worker in (0, 1))
    assert one == other and len(one) == 64, "training has it"
    shown = [said, (cloud.home / "calls.jsonl").read_text()]
    shown += [
        path.read_text() for path in (cloud.checkout / "runs/launch").rglob("*") if path.suffix in (".log", ".json")
    ]
    assert not any(one in text for text in shown)


def test_quota_once_then_success(cloud):
    cloud.plan(create=["RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' has been exceeded"])
    code, said = cloud.launch()
    assert code == 0 and cloud.calls()[:2] == [CREATE, CREATE]
    assert "Quota limit" in said and "retry 1 of 50" in said


def test_what_will_not_go_away_ends_at_once(cloud):
    cloud.plan(create=["PERMISSION_DENIED: Permission 'tpu.queuedResources.create' denied"])
    code, said = cloud.launch()
    assert code == 2 and cloud.calls() == [CREATE]
    assert said.splitlines()[-1].endswith("denied") and "Traceback" not in said


def test_preempted_while_training(cloud):
    cloud.plan(ssh_run=["preempt"])
    code, said = cloud.launch("--spot")
    assert code == 0, said
    assert cloud.calls() == [CREATE, SCP, SCP, SSH, SSH, DELETE, CREATE, SCP, SCP, SSH, SSH, DELETE]
    assert "my-pod is SUSPENDED; retry 1 of 50" in said
    assert "[w0] resume" in said, "the run goes on where its folder says, on new machines"
    assert steps(said)[-1] == 8 and (cloud.checkout / "runs/launch/my-pod/attempt-002").is_dir()


def test_preempted_while_waiting(cloud):
    cloud.plan(states=["PROVISIONING", "FAILED"])
    code, said = cloud.launch()
    assert code == 0 and cloud.calls()[:3] == [CREATE, DELETE, CREATE], said


def test_a_dropped_connection_is_made_again_and_no_line_is_lost_or_doubled(cloud):
    cloud.plan(ssh_run=["drop", "rerun", "drop"])
    code, said = cloud.launch()
    assert code == 0, said
    assert cloud.calls().count(CREATE) == 1 and "connecting again" in said
    assert steps(said) == list(range(1, 9)) and said.count("[w0] start") == 1


@pytest.mark.slow
def test_a_worker_that_was_stopped_starts_again_on_the_same_machines_then_on_new_ones(cloud):
    cloud.shared.mkdir()
    (cloud.shared / "fail-1-at-3").write_text("75")
    (cloud.shared / "fail-0-at-6").write_text(str(-signal.SIGABRT))
    for name in ("fail-0-at-3", "fail-1-at-6"):
        (cloud.shared / name).write_text("75")
    code, said = cloud.launch()
    assert code == 0, said
    first, again, new = [SCP, SCP, SSH, SSH], [SCP, SSH, SSH], [SCP, SCP, SSH, SSH]  # the variables are sent each time
    assert cloud.calls() == [CREATE, *first, *again, DELETE, CREATE, *new, DELETE]
    assert said.count("training stopped after saving (75)") == 2


def test_bad_input_ends_it_with_the_reason(cloud):
    cloud.shared.mkdir()
    for worker in (0, 1):
        (cloud.shared / f"fail-{worker}-at-2").write_text("2" if worker else "75")
    code, said = cloud.launch()
    assert code == 2, said
    assert "bad input (exit code 2) on s0 w1: tiny.yaml: something is wrong" in said
    assert cloud.calls() == [CREATE, SCP, SCP, SSH, SSH, DELETE] and not cloud.there()
    code, said = cloud.launch()
    assert code == 0 and "attempt 2: training" in said, "after a repair the same command starts again"


def test_keep_leaves_the_pod(cloud):
    code, said = cloud.launch("--keep")
    assert code == 0 and cloud.there() and DELETE not in cloud.calls()


def test_a_second_call_goes_on_where_an_interrupted_one_stopped(cloud):
    launcher = cloud.start("steps=60")
    for line in launcher.stdout:
        if line.startswith("[w0] step 3"):
            break
    launcher.send_signal(signal.SIGINT)
    said = launcher.communicate(timeout=30)[0]
    assert launcher.returncode == 130 and cloud.there(), said
    assert "training continues if it was started" in said and "gcloud compute tpus queued-resources delete" in said
    reached = int((cloud.shared / "steps-my-pod-0").read_text())
    time.sleep(0.5)
    assert int((cloud.shared / "steps-my-pod-0").read_text()) > reached, "no launcher is needed while it trains"
    code, said = cloud.launch("--env", "OTHER=1", "steps=61")
    assert code == 2 and "still runs" in said
    code, said = cloud.launch("steps=60")
    assert code == 0, said
    assert "is already running: following it" in said and said.count("start 0") == 0
    assert cloud.calls() == [CREATE, SCP, SCP, SSH, SSH, SSH, DELETE]
    log = (cloud.checkout / "runs/launch/my-pod/attempt-001/run-s0-w0.log").read_text().splitlines()
    assert log[1:] == [f"step {k}" for k in range(1, 61)]


def test_the_command_it_tells_for_stopping_does_stop(cloud):
    launcher = cloud.start("steps=2000")
    for line in launcher.stdout:
        if line.startswith("[w0] step 3"):
            break
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=30)[0]
    stop = next(line.strip() for line in said.splitlines() if "tpu_pod/worker.py stop" in line)
    told = subprocess.run(["bash", "-c", stop], env=cloud.environment, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0 and "stopping attempt-001" in told.stdout, told
    left = sorted(cloud.home.glob("*/bertjax-my-pod/attempt-001/exit"))
    assert [path.read_text() for path in left] == ["75", "75"]


def test_two_launchers_do_not_share_a_pod(cloud):
    launcher = cloud.start("steps=60")
    for line in launcher.stdout:
        if line.startswith("[w0] step"):
            break
    code, said = cloud.launch("steps=60")
    assert code == 2 and "another launch/tpu.py is running for it" in said
    assert launcher.communicate(timeout=60) and launcher.returncode == 0


def test_an_existing_pod_is_adopted_unless_it_is_another_kind(cloud):
    command = "compute tpus queued-resources create my-pod --accelerator-type=v5litepod-8 --node-id=my-pod"
    subprocess.run(["gcloud", *command.split()], env=cloud.environment, check=True)
    code, said = cloud.launch("--type=v4-32")
    assert code == 2 and "already exists, as v5litepod-8" in said and cloud.there()
    code, said = cloud.launch()
    assert code == 0 and cloud.calls() == [CREATE, SCP, SCP, SSH, SSH, DELETE], said


def test_a_pod_never_reached_is_not_thrown_away(cloud):
    cloud.plan(ssh_setup=["unreachable"] * 9)
    code, said = cloud.launch()
    assert code == 2 and cloud.there() and DELETE not in cloud.calls()
    assert "SSH Key is not present in the SSH agent" in said and "my-pod is kept" in said


@pytest.mark.slow
def test_retries_end(cloud):
    cloud.plan(ssh_run=["preempt"] * 9)
    code, said = cloud.launch("--max-retries=1", "steps=40")
    assert code == 75 and not cloud.there(), said
    assert "gave up after 1 retries" in said
    cloud.plan()
    code, said = cloud.launch("steps=40")
    assert code == 0 and steps(said)[-1] == 40, said


def test_several_slices(cloud):
    code, said = cloud.launch("--node-count=3", "--type=v5litepod-16", "steps=20")
    assert code == 0, said
    assert "training on 6 workers" in said
    assert cloud.calls() == [CREATE, *[SCP] * 6, *[SSH] * 6, DELETE]
    assert {f"my-pod-{i}-{j}" for i in range(3) for j in range(2)} <= {p.name for p in cloud.home.iterdir()}
    logs = sorted(p.name for p in (cloud.checkout / "runs/launch/my-pod/attempt-001").glob("run-*"))
    assert logs[0] == "run-s0-w0.log" and all("step 20" in line for line in said.splitlines() if "] step 20" in line)


def test_changes_that_are_not_committed_go_along_and_the_checkout_stays(cloud):
    (cloud.checkout / "README.md").write_text("changed\n")
    before = cloud.git("status", "--porcelain", "--untracked-files=no"), cloud.git("stash", "list")
    code, said = cloud.launch("--keep")
    assert code == 0, said
    assert (cloud.git("status", "--porcelain", "--untracked-files=no"), cloud.git("stash", "list")) == before
    sent = list(cloud.home.glob("my-pod-0/bertjax-my-pod/code-*/README.md"))
    assert [path.read_text() for path in sent] == ["changed\n"]


def test_code_from_a_repository(cloud):
    revision = cloud.git("rev-parse", "HEAD")
    mounted = f"--nfs=10.0.0.2:/share:{cloud.checkout.parent}"
    code, said = cloud.launch(f"--repo={cloud.checkout}", "--keep", mounted)
    assert code == 0, said
    assert cloud.calls().count(SCP) == 1, "only the variables are sent"
    cloned = cloud.home / "my-pod-1" / "bertjax-my-pod" / f"code-{revision[:12]}"
    assert subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=cloned, text=True).strip() == revision
    code, said = cloud.launch(f"--repo={cloud.checkout}", "--ref=nowhere", "--name=other", mounted)
    assert code == 2 and "has no 'nowhere'" in said


def test_a_token_in_the_url_of_the_code_reaches_git_and_nothing_else(cloud):
    """git takes only the URL with its token for that of the checkout, so both the laptop's and the workers' had it."""
    url = "https://me:TOKEN/123@host.example/owner/name.git"
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{cloud.checkout}.insteadOf", "GIT_CONFIG_VALUE_0": url}
    said = [cloud.launch(f"--repo={url}", "--keep", *more, **git) for more in (["--dry-run"], ["steps=8"])]
    assert [code for code, _ in said] == [0, 0], said
    assert "https://***@host.example/owner/name.git" in said[0][1] and "git clone" in said[0][1]
    asked = [f"--repo={url}x", "--ref=nowhere", "--name=b"], [f"--repo={url}", "--ref=no", "--name=c"], [f"--rpo={url}"]
    for words in asked:
        code, line = cloud.launch(*words, **git)
        assert code == 2
        said.append((code, line))
    code, line = cloud.launch("--keep", "steps=8")
    assert code == 2 and "its password is not saved, so give the same --repo again" in line
    assert cloud.launch(f"--repo={url}", "--keep", "steps=8", **git)[0] == 0
    assert not any("TOKEN" in text or "123" in text for _, text in said)
    kept = [path for path in (cloud.checkout / "runs").rglob("*") if path.is_file()]
    assert len(kept) > 5 and not any(b"TOKEN" in path.read_bytes() for path in kept)
    clone = cloud.home / "my-pod-0" / "bertjax-my-pod"
    assert not any(b"TOKEN" in path.read_bytes() for path in clone.rglob("config"))
    assert any("TOKEN" in line for line in (cloud.home / "calls.jsonl").read_text().splitlines()), "what gcloud got"


def test_training_starts_in_a_folder_of_the_workers(cloud):
    cloud.shared.mkdir()
    (cloud.shared / "text.txt").write_text("x")
    (cloud.checkout / "bertjax" / "__main__.py").write_text(
        'import sys; print("in", sys.argv[1:], open("text.txt").read())\n'
    )
    code, said = cloud.launch(f"--cwd={cloud.shared}/", "x.y=" + "z" * 300)
    assert code == 0 and f"/configs/tiny.yaml', 'run.root={cloud.shared}'" in said, said
    code, said = cloud.launch("--cwd=data")
    assert code == 2 and "must be an absolute path on the workers" in said


def test_a_dry_run_calls_nothing_and_shows_what_a_run_does(cloud):
    code, said = cloud.launch("--dry-run", "--env=WANDB_API_KEY=abc123", "--nfs=10.0.0.2:/share:/mnt/share")
    assert code == 0 and not (cloud.home / "calls.jsonl").exists() and not (cloud.checkout / "runs").exists()
    assert "abc123" not in said
    shown = [line for line in said.splitlines() if line.startswith("gcloud")]
    assert cloud.launch("--env=WANDB_API_KEY=abc123")[0] == 0
    log = (cloud.checkout / "runs/launch/my-pod/launch.log").read_text()
    assert "abc123" not in log
    ran = [json.loads(line) for line in (cloud.home / "calls.jsonl").read_text().splitlines()]
    verbs = [" ".join(words[2:4]) for words in ran]
    once = [v for i, v in enumerate(verbs) if i == 0 or v != verbs[i - 1]]
    described = [" ".join(line.split()[3:5]) for line in shown]
    assert [v for v in described if "describe" not in v] == [v for v in verbs if "describe" not in v]
    assert set(described) == set(once)


def test_a_dry_run_of_which_only_the_beginning_is_read(cloud):
    process = cloud.start("--dry-run", PYTHONUNBUFFERED="1")
    assert any(line.startswith("#") for line in process.stdout)
    process.stdout.close()
    assert process.wait(30) == 0
    assert cloud.calls() == []


def test_words_it_does_not_take(cloud):
    wrong = {
        "--type=v5e-256": "did you mean v5litepod-256",
        "--name=My_pod": "lower-case letters",
        "--env=novalue": "novalue is not set here; give novalue=VALUE",
        "--env=no-name=x": "must be KEY=VALUE or KEY",
        "--nfs=/mnt": "must be HOST:/SHARE:/MOUNT",
        "--state-dir=gs://b/x": "must be a local folder",
        "--zone=us-west4": "is a region; name a zone of it, such as us-west4-a",
        "--zone=us-west4-a,us-west4": "is a region; name a zone of it, such as us-west4-a",
        "--zone=us-west4-a,us-west4-a": "names a zone twice",
        "--valid-until-duration=6": "must be a duration such as 90m, 6h or 1d12h",
        "--reservation=a b": "must be a name or projects/PROJECT/reservations/NAME",
        "--labels=Team=x": "must be KEY=VALUE of lower-case letters",
        "--metadata=novalue": "must be KEY=VALUE",
        "--logs=/tmp/x": "must be gs://BUCKET/FOLDER",
        "--type=v5litepod-9": "there is no v5litepod-9; did you mean v5litepod-8 or v5litepod-16?",
        "--node-count=1": "must be an integer of at least 2",
        "nonsense": "expected key.path=value",
        "--max-retry=3": "unrecognized arguments",
    }
    for word, expected in wrong.items():
        code, said = cloud.launch(word)
        assert code == 2 and expected in said and "Traceback" not in said, (word, said)
    for both in (["--node-id=a", "--node-count=2"], ["--spot", "--reservation=r"]):
        code, said = cloud.launch(*both)
        assert code == 2 and "not allowed with" in said
    (cloud.checkout / "configs" / "new.yaml").write_text("steps: 8\n")
    command = [word.replace("tiny", "new") for word in cloud.words()]
    done = subprocess.run(command, cwd=cloud.checkout, env=cloud.environment, capture_output=True, text=True)
    assert done.returncode == 2 and "`git add` it" in done.stderr
    assert not (cloud.home / "calls.jsonl").exists()
