"""launch/tpu.py in several zones, with a reservation, through IAP, with changed host keys, logs, a doctor, a status."""

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tpu_pod import checks, gcloud, host_keys, options, redact, run_summary
from tpu_pod.state import State, StateDir

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "launch" / "tpu_pod"))
import worker  # noqa: E402
import worker_setup  # noqa: E402

CREATE, DELETE = "queued-resources create", "queued-resources delete"
SCP, SSH = "tpu-vm scp", "tpu-vm ssh"
STOCKOUT = "RESOURCE_EXHAUSTED: There is no more capacity in the zone"
ZONES = "--zone=us-a1-a,us-b1-b,us-c1-c"


def lines(said: str) -> list[str]:
    return [line.removeprefix("launch: ") for line in said.splitlines() if line.startswith("launch: ")]


def test_everything_at_once(cloud):
    """The second zone refuses the type, the third has capacity; a key has changed; a lock file was left; a doctor."""
    denied = ["PERMISSION_DENIED: Permission denied on 'locations/us-a1-a' (or it may not exist)"] * 9
    refused = {"create_us-a1-a": [STOCKOUT], "create_us-b1-b": ["INVALID_ARGUMENT: no v5litepod here"]}
    cloud.plan(scp=["changed key"], **refused, **{"describe_us-a1-a": denied})
    known, stale = cloud.home / "google_compute_known_hosts", cloud.home / "libtpu_lockfile"
    others = ["tpu.other-1 ssh-ed25519 AAAA", "compute.123 ssh-ed25519 BBBB", "tpu.my-pod-11 ssh-ed25519 CCCC"]
    known.write_text("\n".join([others[0], "tpu.my-pod-1 ssh-ed25519 OLD", *others[1:]]) + "\n")
    stale.touch()
    more = [ZONES, "--valid-until-duration=6h", "--reservation=res-1", "--labels=team=nlp", "--labels=cost=x1"]
    more += ["--tunnel-through-iap", "--internal-ip", "--metadata=motd=a,b", "--metadata=MY_TOKEN=s3cret,x"]
    code, said = cloud.launch(*more, "--doctor", "--logs=gs://bucket/logs/")
    assert code == 0 and not cloud.there(), said
    assert cloud.calls() == [CREATE, CREATE, CREATE, SCP, SCP, SCP, SSH, SSH, SSH, DELETE]

    assert cloud.flags(CREATE, "--zone") == ["us-a1-a", "us-b1-b", "us-c1-c"]
    assert set(cloud.flags(SSH, "--zone")) == set(cloud.flags(DELETE, "--zone")) == {"us-c1-c"}
    assert "launch: creating my-pod in us-c1-c: v5litepod-8, reservation res-1" in said.splitlines()
    assert STOCKOUT in said and "no v5litepod here; not tried again" in said and "retry" not in said

    calls = [json.loads(line) for line in (cloud.home / "calls.jsonl").read_text().splitlines()]
    for create in (words for words in calls if "create" in words):
        assert create[:5] == ["alpha", "compute", "tpus", "queued-resources", "create"]
        assert {"--reservation=res-1", "--internal-ips", "--labels=team=nlp,cost=x1"} <= set(create)
        assert {"--valid-until-duration=21600s", "--metadata=^:^motd=a,b:MY_TOKEN=s3cret,x"} <= set(create)
        assert not {"--spot", "--reserved"} & set(create)
    reached = [words for words in calls if {"ssh", "scp"} & set(words)]
    assert all(words[:4] == ["alpha", "compute", "tpus", "tpu-vm"] for words in reached)
    assert all("--tunnel-through-iap" in words and "--internal-ip" not in words for words in reached)
    kept = [path for path in (cloud.checkout / "runs").rglob("*") if path.is_file()]
    assert not any(b"s3cret" in path.read_bytes() for path in kept)
    assert "--metadata=^:^motd=a,b:MY_TOKEN=***" in (cloud.checkout / "runs/launch/my-pod/launch.log").read_text()

    assert "the host key of tpu.my-pod-1 has changed" in said and known.read_text().splitlines() == others
    assert not stale.exists() and f"launch: removed {stale}, which no process held" in said
    assert re.search(r"^\[w1\] installing with python3.* from launch/requirements-tpu.lock$", said, re.MULTILINE)
    assert said.index("checking the machines with bertjax doctor") < said.index("[w0] ok  sum over all")
    assert said.index("[w0] ok  sum over all") < said.index("[w0] start 0")

    own, there = cloud.checkout / "runs/launch/my-pod/attempt-001", cloud.home / "buckets/bucket/logs"
    uploaded = {path.relative_to(there).as_posix() for path in there.rglob("*.log")}
    assert {f"doctor-001/doctor-s0-w{i}.log" for i in (0, 1)} | {"attempt-001/run-s0-w0.log"} <= uploaded
    lines = (own / "run-s0-w0.log").read_text().splitlines()
    assert (there / "attempt-001/run-s0-w0.log").read_text().splitlines() == lines and "step 8" in lines


# --- zones ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_zones_start_over_and_only_a_round_counts(cloud):
    cloud.plan(**{f"create_us-{zone}": [STOCKOUT] for zone in ("a1-a", "b1-b", "c1-c")})
    code, said = cloud.launch(ZONES)
    assert code == 0 and cloud.flags(CREATE, "--zone") == ["us-a1-a", "us-b1-b", "us-c1-c", "us-a1-a"], said
    assert said.count("retry 1 of 50") == 1 and "retry 2" not in said
    assert "a request may wait in us-a1-a for ever; give --valid-until-duration" in said


@pytest.mark.slow
def test_a_request_that_expires_goes_to_the_next_zone_and_a_preempted_pod_to_the_first(cloud):
    cloud.plan(**{"states_us-a1-a": ["WAITING_FOR_RESOURCES", "FAILED"], "ssh_run": ["preempt"]})
    code, said = cloud.launch(ZONES, "--valid-until-duration=90m", "--spot")
    assert code == 0, said
    assert cloud.flags(CREATE, "--zone") == ["us-a1-a", "us-b1-b", "us-a1-a"]
    assert cloud.flags(DELETE, "--zone") == ["us-a1-a", "us-b1-b", "us-a1-a"] and not cloud.there()


def test_all_zones_that_refuse_for_good_end_it(cloud):
    cloud.plan(create=["PERMISSION_DENIED: denied"] * 3)
    code, said = cloud.launch(ZONES)
    assert code == 2 and cloud.calls() == [CREATE] * 3 and lines(said)[-1].endswith("PERMISSION_DENIED: denied")


@pytest.mark.slow
def test_a_request_whose_answer_was_lost_is_not_left_behind(cloud):
    cloud.plan(**{"create_us-a1-a": ["lost"]})
    code, said = cloud.launch(ZONES)
    assert code == 0 and cloud.flags(CREATE, "--zone") == ["us-a1-a"] and not cloud.there(), said


@pytest.mark.slow
def test_a_pod_is_found_again_in_its_zone(cloud):
    cloud.plan(**{"create_us-a1-a": [STOCKOUT]})
    assert cloud.launch(ZONES, "--keep")[0] == 0
    (cloud.checkout / "runs/launch/my-pod/state.json").unlink()
    code, said = cloud.launch(ZONES)
    assert code == 0 and cloud.calls().count(CREATE) == 2 and not cloud.there(), said
    launcher = cloud.start("--zone=us-b1-b", "steps=60")
    assert any(line.startswith("[w0] step 3") for line in launcher.stdout)
    launcher.terminate()
    launcher.communicate(timeout=30)
    code, said = cloud.launch("--zone=us-a1-a", "steps=60")
    assert code == 2 and "--zone: my-pod was created in us-b1-b; name that zone too" in said
    assert cloud.launch(ZONES, "steps=60")[0] == 0 and not cloud.there()


# --- what is asked for, and how machines are reached ---------------------------------------------------------------


def test_durations_and_pairs():
    assert [options._duration(word) for word in ("90m", "1d12h", "45s")] == ["5400s", "129600s", "45s"]
    assert gcloud.join_pairs([]) == "" and gcloud.join_pairs(["a=1", "b=2"]) == "a=1,b=2"
    assert gcloud.join_pairs(["a=1,2:3", "b=;"]) == "^|^a=1,2:3|b=;"
    assert redact.redact_word("--metadata=a=1,API_KEY=x") == "--metadata=a=1,API_KEY=***"
    assert redact.redact_word("--metadata=a=1") == "--metadata=a=1"


@pytest.mark.slow
def test_a_changed_host_key_of_machines_in_use_is_not_accepted(cloud):
    known = cloud.home / "google_compute_known_hosts"
    known.write_text("tpu.my-pod-1 ssh-ed25519 OLD\n")
    cloud.plan(ssh_run=["changed key"] * 4)
    code, said = cloud.launch()
    assert code == 0 and "has changed" not in said, said
    assert known.read_text() == "tpu.my-pod-1 ssh-ed25519 OLD\n"
    assert "no answer from my-pod: Host key verification failed." in said and cloud.calls().count(CREATE) == 2


def test_only_entries_of_tpus_in_gcloud_s_own_file_are_forgotten(tmp_path):
    said = "Offending ED25519 key in {}:1\nHost key for {} has changed and you have requested strict checking.\n"
    for name, alias in (("known_hosts", "tpu.1-0"), ("google_compute_known_hosts", "compute.1")):
        file = tmp_path / name
        file.write_text(f"{alias} ssh-ed25519 A\n")
        assert host_keys.forget_changed(said.format(file, alias)) == [] and file.read_text()
    file = tmp_path / "google_compute_known_hosts"
    file.write_text("tpu.1-0 ssh-ed25519 A\ntpu.1-0 ssh-rsa B\ntpu.1-1 ssh-rsa C\n")
    first, second = said.format(file, "tpu.1-0").splitlines(), said.format(file, "tpu.1-9").splitlines()
    both = "\n".join([first[0], second[0], second[1], first[1]])  # of workers that speak at once
    assert host_keys.forget_changed(both) == ["tpu.1-0"] and file.read_text() == "tpu.1-1 ssh-rsa C\n"
    assert file.stat().st_mode & 0o777 == 0o600
    file.unlink()
    assert host_keys.forget_changed(both) == []


# --- on the workers ------------------------------------------------------------------------------------------------


def test_a_lock_file_of_the_tpu_goes_only_if_no_process_holds_it(tmp_path):
    lock = tmp_path / "libtpu_lockfile"
    assert worker_setup.free_tpu(lock) == ""
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-uc", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        (found,) = worker_setup._lock_holders(lock.stat())
        assert found == process.pid, "as libtpu holds it, seen for the processes of all users"
        said = worker_setup.free_tpu(lock)
        assert lock.exists() and said.startswith(f"launch: {lock} is held by process {process.pid} (")
        process.stdin.close()
    assert worker_setup.free_tpu(lock) == f"launch: removed {lock}, which no process held"
    assert not lock.exists()
    with open(lock, "w") as file:  # open without a lock
        assert "is held by process" in worker_setup.free_tpu(lock)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is held by process" in worker_setup.free_tpu(lock) and lock.exists()


def test_a_lock_file_of_another_user_is_removed_by_root_or_named(tmp_path, monkeypatch):
    lock = tmp_path / "libtpu_lockfile"
    lock.touch()

    def refuse(self: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(worker_setup.Path, "unlink", refuse)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for script, expected in (
        ("echo no password >&2; exit 1", "could not be removed: no password"),
        ('shift; exec "$@"', "removed"),
    ):
        (tmp_path / "sudo").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sudo").chmod(0o755)
        assert expected in worker_setup.free_tpu(lock)
    assert not lock.exists()


def test_apt_waits_for_its_locks_and_tries_again(tmp_path, monkeypatch):
    (tmp_path / "sudo").write_text('#!/bin/sh\necho "$*" >>"$0.log"\n[ -e "$0.ok" ] || { : >"$0.ok"; exit 100; }\n')
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(worker_setup, "APT_PAUSE", 0.01)
    said: list[str] = []
    monkeypatch.setattr(worker_setup, "print_line", said.append)
    assert worker_setup.apt_install("nfs-common") == 0
    own = "apt-get -o DPkg::Lock::Timeout=300 --yes --quiet"
    assert (tmp_path / "sudo.log").read_text().splitlines() == [
        f"{own} install nfs-common", f"{own} update", f"{own} install nfs-common"
    ]  # fmt: skip
    assert said == ["launch: trying again in 0.01 s to install nfs-common"]


SETUP_TOOLS = {  # a Python whose pip installs a uv that fails or not, and shows its words
    "python3.12": 'case "$*" in *version_info*-c*|*"-c"*"sys.version_info["*) echo 3.12;; "-c "*) ;; '
    '"-m pip --version") ;; *"--target .tools"*) mkdir -p .tools/bin; cp "$UV" .tools/bin/uv;; '
    '*) echo "pip $*";; esac',
    "fake-uv": '[ -z "$NO_UV" ] || exit 1; echo "uv $*"',
}


@pytest.mark.parametrize("no_uv", ["", "1"])
def test_the_set_up_installs_by_hash_with_uv_or_else_with_pip(tmp_path, no_uv):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "setup").write_bytes((ROOT / ".ci" / "setup").read_bytes())
    (tmp_path / "requirements.lock").write_text("uv==1 \\\n    --hash=sha256:00\n")
    for name, text in SETUP_TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "UV": str(tmp_path / "fake-uv"),
        "NO_UV": no_uv,
    }
    argv = ["sh", ".ci/setup", "python3.12", worker_setup.PACKAGES]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installs = [line for line in done.stdout.splitlines() if " install " in line]
    assert len(installs) == 2 and all(line.startswith("pip " if no_uv else "uv pip") for line in installs), done.stdout
    assert installs[0].endswith("--require-hashes -r launch/requirements-tpu.lock")
    assert installs[1].endswith("--no-deps --no-build-isolation -e .")
    assert ("trying again with pip" in done.stderr) == bool(no_uv)


# --- logs ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_output_that_cannot_be_uploaded_is_said_once_and_stops_nothing(cloud):
    cloud.plan(storage_cp=["PERMISSION_DENIED: storage.objects.create denied"] * 9)
    code, said = cloud.launch("--logs=gs://bucket/logs")
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if line.startswith("[w0]") and "the output is not in" in line]
    assert "gs://bucket/logs/attempt-001/run-s0-w0.log: ERROR: (gcloud.storage.cp) PERMISSION_DENIED" in line


def test_uploads_are_seldom_and_only_of_what_has_grown(tmp_path, monkeypatch):
    ran = []
    done = subprocess.CompletedProcess([], 0, b"", b"")
    monkeypatch.setattr(worker.subprocess, "run", lambda argv, **_: ran.append(argv) or done)
    log = tmp_path / "log"
    log.write_bytes(b"x" * 200)
    upload = worker.Upload(log, "gs://b/log")
    upload.run()
    upload.run()
    assert ran == [["gcloud", "storage", "cp", str(log), "gs://b/log", "--quiet"]] and upload.pause() == 60
    with open(log, "ab") as file:
        file.truncate(300_000_000)
    upload.run()
    assert len(ran) == 2 and upload.pause() == 300
    worker.Upload(log, None).run()
    assert len(ran) == 2


def test_output_goes_beside_runs_that_are_in_a_bucket():
    assert checks.log_folder("gs://b/runs/", "my-pod") == "gs://b/runs/launch/my-pod"
    assert checks.log_folder("/mnt/share/runs", "my-pod") is None and checks.log_folder(None, "my-pod") is None


# --- doctor --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_doctor_sees_new_machines_once(cloud):
    cloud.plan(ssh_run=["preempt"])
    code, said = cloud.launch("--doctor")
    assert code == 0, said
    assert cloud.calls() == [CREATE, SCP, SSH, SSH, SSH, DELETE, CREATE, SCP, SSH, SSH, SSH, DELETE]
    assert said.count("checking the machines with bertjax doctor --cluster") == 2
    assert said.index("[w0] ok  sum over all") < said.index("[w0] start 0")


@pytest.mark.slow
def test_a_dropped_connection_repeats_nothing_of_the_doctor(cloud):
    cloud.plan(ssh_doctor=["drop at ok ", "rerun"])
    code, said = cloud.launch("--doctor")
    assert code == 0 and said.count("[w0] ok  sum over all") == 1, said


@pytest.mark.slow
def test_what_the_doctor_finds_keeps_the_pod_and_the_same_command_asks_again(cloud):
    fails = cloud.home / "doctor"
    fails.write_text("2")
    code, said = cloud.launch("--doctor", f"--env=DOCTOR={fails}")
    assert code == 2 and "bertjax doctor: bad input (exit code 2) on s0 w" in said and "my-pod is kept" in said, said
    assert cloud.there() and DELETE not in cloud.calls() and "training on" not in said
    code, said = cloud.launch("--doctor", f"--env=DOCTOR={fails}")
    assert code == 0 and said.count("checking the machines") == 1 and not cloud.there(), said


@pytest.mark.slow
def test_machines_that_the_doctor_loses_are_replaced(cloud):
    fails = cloud.home / "doctor"
    fails.write_text("75")
    code, said = cloud.launch("--doctor", f"--env=DOCTOR={fails}")
    assert code == 0 and cloud.calls().count(CREATE) == 2, said
    assert "bertjax doctor lost a process (75); retry 1 of 50" in said


# --- status --------------------------------------------------------------------------------------------------------


def status(cloud, name: str = "my-pod") -> tuple[int, list[str]]:
    argv = [sys.executable, "-S", "launch/tpu.py", "--status", name]
    done = subprocess.run(
        argv, cwd=cloud.checkout, env=cloud.environment, text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


def add_summary(cloud, folder: Path) -> None:
    """A run with metrics, and a package that sums up its goodput."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": 3.5}\n{"step": ')
    (folder / "goodput.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    package = cloud.checkout / "bertjax" / "training" / "monitor"
    package.mkdir(parents=True)
    for path in (package, package.parent):
        (path / "__init__.py").touch()
    (package / "goodput.py").write_text("def summarize(lines): return f'goodput of {len(lines)} lines'\n")
    cloud.git("add", ".")
    cloud.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "more")


def test_status_of_a_pod_from_start_to_end(cloud):
    code, said = status(cloud)
    assert code == 2 and said == [
        "launch: --status: no launch in runs/launch/my-pod; give the --name and --state-dir of one"
    ]
    add_summary(cloud, cloud.shared / "tiny")
    launcher = cloud.start("--zone=us-a1-a", "--spot", "run.name=tiny", "steps=100", "--tunnel-through-iap")
    assert any(line.startswith("[w0] step 3") for line in launcher.stdout)
    code, said = status(cloud)
    assert code == 0, said
    command = f"command configs/tiny.yaml run.root={cloud.shared} run.name=tiny steps=100"
    assert said == [
        "job running, attempt 1, 0 retries", command, "my-pod is ACTIVE in us-a1-a: v5litepod-8, spot",
        "my-pod: READY, HEALTHY, 2 workers", f"run {cloud.shared}/tiny", "attempt-001 is running",
        'last metrics: {"step": 2, "loss": 3.5}', "goodput of 2 lines",
    ]  # fmt: skip
    assert cloud.flags("tpu-vm ssh", "--worker")[-1] == "0"
    assert launcher.communicate(timeout=120) and launcher.returncode == 0, "a look does not disturb it"
    code, said = status(cloud)
    assert code == 0 and said[0] == "job finished, attempt 1, 0 retries"
    assert said[2] == "my-pod does not exist in us-a1-a"
    assert said[-1] == "last line of runs/launch/my-pod/attempt-001/run-s0-w0.log: step 100"


@pytest.mark.slow
def test_status_reads_a_run_in_a_bucket_when_the_pod_is_gone(cloud):
    assert cloud.launch("run.name=tiny")[0] == 0
    add_summary(cloud, cloud.home / "buckets/bucket/runs/tiny")
    file = cloud.checkout / "runs/launch/my-pod/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run": "gs://bucket/runs/tiny"}))
    code, said = status(cloud)
    assert code == 0 and said[-2:] == ['last metrics: {"step": 2, "loss": 3.5}', "goodput of 2 lines"], said


@pytest.mark.slow
def test_status_says_what_it_does_not_know(cloud):
    cloud.plan(create=["PERMISSION_DENIED: denied"])
    assert cloud.launch("--name=new")[0] == 2
    code, said = status(cloud, "new")
    assert code == 0 and said[2:] == ["new does not exist", "run unknown"]
    cloud.plan(states=["PROVISIONING"] * 50)
    launcher = cloud.start("--name=slow")
    assert any("PROVISIONING" in line for line in launcher.stdout)
    code, said = status(cloud, "slow")
    assert code == 0 and said[2] == "slow is PROVISIONING: v5litepod-8, on-demand"
    assert launcher.communicate(timeout=60) and launcher.returncode == 0


def test_a_state_of_an_earlier_version_is_read(tmp_path):
    folder = StateDir(tmp_path, "p")
    folder.path.mkdir()
    folder.save(State(["c.yaml"], {"revision": "r"}, "running", 3))
    kept = json.loads(folder.state_file.read_text())
    added = ("pod", "run", "checks", "checked")
    folder.state_file.write_text(json.dumps({name: kept[name] for name in kept if name not in added}))
    assert folder.load() == State(["c.yaml"], {"revision": "r"}, "running", 3)
    folder.state_file.write_text(json.dumps({name: kept[name] for name in kept if name != "attempt"}))
    with pytest.raises(gcloud.LaunchError, match="not a state of launch/tpu.py"):
        folder.load()


def test_goodput_is_the_package_s_own(tmp_path):
    seconds = {"step": 10.0, "startup": 5.0}
    line = {"life": "a", "started": 0.0, "time": 15.0, "stage": 0, "step": 0, "resumed": True, "settled": False}
    more = line | {"step": 4, "resumed": False, "seconds": seconds}
    text = "".join(json.dumps(one) + "\n" for one in (line | {"time": 5.0, "seconds": seconds | {"step": 0.0}}, more))
    (tmp_path / "goodput.jsonl").write_text(text)
    found = list(run_summary.summary_lines(str(tmp_path), ROOT, sys.executable))
    assert found[0] == f"no metrics in {tmp_path} yet"
    assert found[1].startswith("goodput ") and "training steps 10" in found[1], found
    assert list(run_summary.summary_lines(str(tmp_path / "none"), ROOT, sys.executable))[1] == "no goodput yet"


# --- a dry run -----------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_every_zone_the_doctor_and_where_the_output_goes(cloud):
    code, said = cloud.launch(
        ZONES, "--dry-run", "--doctor", "--logs=gs://b/l", "--reservation=r", "--metadata=A_KEY=x1y"
    )
    assert code == 0 and not (cloud.home / "calls.jsonl").exists(), said
    shown = [line for line in said.splitlines() if line.startswith("gcloud")]
    creates = [line for line in shown if CREATE in line]
    assert len(creates) == 3 and all(
        "--reservation=r --metadata='A_KEY=***'" in line or "A_KEY=***" in line for line in creates
    )
    assert (
        "# create it, in the first zone that accepts it" in said
        and "# the rest in that zone, shown for us-a1-a" in said
    )
    assert any("worker.py doctor" in line and "doctor --cluster" in line for line in shown)
    assert any("worker.py run" in line and "--logs=gs://b/l" in line for line in shown) and "x1y" not in said
