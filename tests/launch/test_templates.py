"""What launch/ has for other launchers: the Slurm script, JobSet, SkyPilot, the image, the GPU check."""

import ast
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jobset_fields import JOBSET, problems
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TERMINAL = {2, 3, 4, 70}


# --- Slurm ---------------------------------------------------------------------------------------------------------

# Runs the tasks of a step as srun does: Slurm's variables for each, the highest exit code for all.
SRUN = """\
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    assert words.pop(0) in ("--kill-on-bad-exit=0", "--label")
count = int(os.environ["TASKS"])
own = lambda i: os.environ | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NTASKS": str(count),
    "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
tasks = [subprocess.Popen(words, env=own(i)) for i in range(count)]
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""


class Slurm:
    def __init__(self, home: Path) -> None:
        self.home, bin_ = home, home / "bin"
        bin_.mkdir()
        (home / "srun.py").write_text(SRUN)
        programs = {
            "srun": f'exec "{sys.executable}" "{home}/srun.py" "$@"',
            "scontrol": f'echo "$*" >>"{home}/scontrol"',
            "trainer": f'echo "trains $*"; echo "$BERTJAX_SECRET" >>"{home}/secrets"; '
            f'exit "$(cat "{home}/ends-$SLURM_PROCID")"',
        }
        for name, text in programs.items():
            (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
            (bin_ / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "PYTHON": "trainer", "SLURM_JOB_ID": "4711",
            "SLURM_SUBMIT_DIR": str(home), "TASKS": "2",
        }  # fmt: skip

    def run(
        self, *words: str, ends: tuple[int, ...] = (), cwd: Path | None = None, **environment: str
    ) -> tuple[int, str]:
        for index, code in enumerate(ends):
            (self.home / f"ends-{index}").write_text(str(code))
        argv = ["bash", str(LAUNCH / "slurm.sbatch"), *words]
        done = subprocess.run(
            argv, cwd=cwd or self.home, env=self.environment | environment, text=True, timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def requeued(self) -> bool:
        path = self.home / "scontrol"
        found = path.exists() and path.read_text() == "requeue 4711\n"
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


@pytest.mark.parametrize(
    ("ends", "expected", "again"),
    [((0, 0), 0, False), ((75, 75), 75, True), ((0, 134), 75, True), ((75, 2), 2, False), ((2, 134), 2, False),
     ((70, 75), 70, False), ((1, 1), 1, False)],
)  # fmt: skip
def test_slurm_requeues_what_is_to_be_run_again(slurm, ends, expected, again):
    code, said = slurm.run("a.yaml", "run.name=x y", ends=ends)
    assert (code, slurm.requeued()) == (expected, again), said
    assert said.count("trains -P -m bertjax train a.yaml run.name=x y") == 2
    assert not list(slurm.home.glob(".bertjax-*"))


def test_slurm_gives_one_secret_to_all_tasks_of_a_start(slurm):
    for _ in range(2):
        slurm.run("a.yaml", ends=(0, 0))
    found = (slurm.home / "secrets").read_text().split()
    assert len(found) == 4 and len(set(found)) == 2 and all(len(secret) == 64 for secret in found)
    slurm.run("a.yaml", ends=(0, 0), BERTJAX_SECRET="my own")
    assert (slurm.home / "secrets").read_text().splitlines()[-2:] == ["my own"] * 2


def test_slurm_gives_up_and_says_what_is_missing(slurm):
    code, said = slurm.run("a.yaml", ends=(75, 75), SLURM_RESTART_COUNT="50")
    assert code == 75 and not slurm.requeued() and "gave up" in said
    assert slurm.run()[0] == 2
    code, said = slurm.run("a.yaml", PYTHON="nowhere")
    assert code == 2 and "no nowhere here" in said


def test_slurm_signals_before_the_time_limit_and_lets_every_task_see_all_gpus():
    options = re.findall(r"^#SBATCH (--[\w-]+)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal", "--gpus-per-node", "--ntasks-per-node"} <= set(options)
    assert not {"--gpus-per-task", "--gpu-bind"} & set(options), "jax picks a GPU by SLURM_LOCALID among all of them"


@pytest.mark.slow
def test_processes_under_slurm_find_each_other(slurm, tiny_project, tmp_path):
    """Real training by two tasks, joined by jax's own detection of Slurm."""
    with socket.socket() as free:  # a port jax derives from the job's number, and that is free
        while True:
            number = int.from_bytes(os.urandom(2), "big")
            if free.connect_ex(("127.0.0.1", number % 4096 + 61440)):
                break
    environment = {
        "PYTHON": sys.executable, "SLURM_JOB_ID": str(number), "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }  # fmt: skip
    overrides = [f"run.root={tmp_path}/runs", "stages.pretrain.steps=2", "stages.qa.steps=2"]
    code, said = slurm.run("tiny.yaml", *overrides, cwd=tiny_project, **environment)
    assert code == 0, said
    assert said.count("qa 2 | stage end") == 1, "one of the two speaks"


# --- GKE and SkyPilot ----------------------------------------------------------------------------------------------


def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_jobset_has_only_fields_of_the_api():
    assert problems(jobset(), JOBSET) == []


def test_a_wrong_jobset_is_found():
    wrong = jobset()
    wrong["spec"]["failurePolicy"]["maxRestart"] = 3
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    wrong["metadata"]["labels"]["a"] = 1
    assert len(problems(wrong, JOBSET)) == 3


def test_jobset_restarts_on_75_fails_on_a_reason_and_does_not_count_preemptions():
    spec = jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    rule, disrupted = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and set(rule["onExitCodes"]["values"]) == TERMINAL
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert disrupted["action"] == "FailJob"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # The messages of Kubernetes' Job controller (its own tests have them); both have the reason PodFailurePolicy.
    messages = {
        "FailJobSet": "Container train for pod default/bert-large-slice-0-3 failed with exit code 70 matching FailJob "
        "rule at index 0",
        "RestartJobSetAndIgnoreMaxRestarts": "Pod default/bert-large-slice-0-3 has condition DisruptionTarget matching "
        "FailJob rule at index 1",
    }
    rules = spec["failurePolicy"]["rules"]
    assert [found["action"] for found in rules] == list(messages)
    for found in rules:
        assert found["onJobFailureReasons"] == ["PodFailurePolicy"]
        (pattern,) = found["onJobFailureMessagePatterns"]
        assert [name for name, said in messages.items() if re.search(pattern, said)] == [found["action"]]
    assert spec["failurePolicy"]["maxRestarts"] > 0 and job["backoffLimit"] == 0
    assert "kueue.x-k8s.io/queue-name" in jobset()["metadata"]["labels"]


def test_jobset_asks_for_the_whole_slice():
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, topology.split("x"))
    assert rows * columns == job["parallelism"] * chips and job["parallelism"] == job["completions"]
    assert (ROOT / pod["containers"][0]["args"][1].removeprefix("/bertjax/")).is_file()
    assert "WORKDIR /bertjax\n" in (LAUNCH / "Dockerfile").read_text()
    mounted = {m["name"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_skypilot_takes_the_file():
    found = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    again = set(found["resources"]["job_recovery"]["recover_on_exit_codes"])
    assert 75 in again and not again & TERMINAL and (ROOT / found["envs"]["CONFIG"]).is_file()
    if importlib.util.find_spec("sky") is None:
        known = {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
        assert found.keys() <= known
        pytest.skip("skypilot is not installed: only the structure was looked at")
    task = importlib.import_module("sky").Task.from_yaml(str(LAUNCH / "skypilot.yaml"))
    assert task.num_nodes == 2


@pytest.mark.parametrize("nodes", [1, 2])
def test_skypilot_runs_one_process_for_each_node(tmp_path, nodes):
    run = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\necho "$*"; env | grep ^BERTJAX_ | sort; exit 75\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"], "CONFIG": "c.yaml", "SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True)
    joined = ["BERTJAX_COORDINATOR=10.0.0.1:8476", "BERTJAX_NUM_PROCESSES=2", "BERTJAX_PROCESS_ID=1"]
    command = "-P -m bertjax train c.yaml run.root=/shared/runs"
    assert done.returncode == 75 and done.stdout.splitlines() == [command, *(joined if nodes > 1 else [])]


# --- the image and the GPU check -----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [tuple(line.split(" ", 1)) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def test_the_image_copies_what_is_there_and_not_ignored():
    kept = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for name, words in instructions() if name == "COPY" for word in words.split()[:-1]]
    assert {"bertjax", "configs", "requirements.lock", "pyproject.toml"} <= set(sources) == kept
    assert all((ROOT / source).exists() for source in sources)
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} <= known
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", "--ignore", "DL3042", str(LAUNCH / "Dockerfile")], check=True)


def test_the_image_is_not_root_and_its_base_has_a_full_version():
    found = instructions()
    assert found[:2] == [("ARG", "BASE=python:3.11.13-slim-bookworm"), ("FROM", "$BASE")]
    names = [name for name, _ in found]
    assert dict(found)["USER"] == "bertjax" and names.index("USER") > max(i for i, n in enumerate(names) if n == "RUN")
    assert ("RUN", "useradd --create-home --uid 1000 bertjax") in found
    pod = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
    assert pod["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False}


def test_the_image_holds_extras_to_the_lock_and_takes_known_ones_only(tmp_path):
    """The last RUN, by a shell, with a pip that shows its words and constraints."""
    step = [words for name, words in instructions() if name == "RUN"][-1]
    (tmp_path / "pip").write_text('#!/bin/sh\necho "pip $*"; cat "$3"\n')
    (tmp_path / "pip").chmod(0o755)
    step = step.replace("/tmp/pins.txt", str(tmp_path / "pins.txt"))

    def build(extra: str) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "EXTRA": extra}
        return subprocess.run(["sh", "-c", step], cwd=ROOT, env=environment, capture_output=True, text=True)

    said, *pins = build("tpu").stdout.splitlines()
    assert said.endswith(".[tpu,gcs]")
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pins) == len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE)) > 50
    assert all(Requirement(pin).specifier for pin in pins)
    assert build("cpu").stdout == "" and build("cpu").returncode == 0
    assert build("rocm").returncode == 2


def debug(tmp_path: Path, programs: dict[str, str], *words: str) -> tuple[int, str]:
    bin_ = tmp_path / "bin"
    bin_.mkdir(exist_ok=True)
    for name, text in programs.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)
    for tool in ("bash", "dirname", "env"):
        (bin_ / tool).exists() or (bin_ / tool).symlink_to(shutil.which(tool))
    environment = {"PATH": str(bin_), "PYTHON": "fake-python"}
    done = subprocess.run(
        [str(LAUNCH / "gpu_debug.sh"), *words], env=environment, text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_gpu_check_says_what_it_does_and_what_is_wrong(tmp_path):
    python = 'case "$1" in -c) exit "${NO_GPU:-0}";; esac; echo "ran $* on $CUDA_VISIBLE_DEVICES"'
    assert debug(tmp_path, {"fake-python": python})[1].startswith("gpu_debug: nvidia-smi not found")
    code, said = debug(tmp_path, {"nvidia-smi": "exit 9"})
    assert code == 2 and "the driver is not loaded" in said
    code, said = debug(tmp_path, {"nvidia-smi": "echo H100"}, "run.name=x")
    assert code == 0, said
    ran = [line for line in said.splitlines() if line.startswith("ran")]
    configs = [f"ran -P -m bertjax train configs/debug/{name}.yaml run.name=x on 0" for name in ("gpu", "t5_gpu")]
    assert ran == ["ran -P -m bertjax doctor on 0", *configs]
    assert "+ fake-python -P -m bertjax train configs/debug/gpu.yaml run.name=x" in said
    failing = python.replace('echo "ran', '[ "$3" = train ] || [ "$2" = doctor ] || exit 3; echo "ran')
    assert debug(tmp_path, {"fake-python": failing})[0] == 3, "the code of what failed"
    code, said = debug(tmp_path, {"fake-python": python.replace(":-0", ":-1")})
    assert code == 2 and "pip install '.[cuda13]'" in said


def test_shell_files_pass_shellcheck_and_configurations_are_there():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = [LAUNCH / "gpu_debug.sh", LAUNCH / "slurm.sbatch"]
    if shellcheck.exists():
        done = subprocess.run([shellcheck, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    named = re.findall(
        r"configs/[\w/]+\.yaml", "".join(path.read_text() for path in LAUNCH.iterdir() if path.is_file())
    )
    assert named and all((ROOT / name).is_file() for name in named)


def test_launchers_need_an_old_python_and_nothing_else():
    own = {path.stem for path in LAUNCH.glob("*.py")} | {"tpu_pod"}
    on_workers = {"worker", "worker_output", "worker_setup", "run_summary"}
    for path in LAUNCH.rglob("*.py"):
        remote = path.stem in on_workers
        tree = ast.parse(path.read_text(), feature_version=(3, 8) if remote else (3, 9))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert foreign <= (on_workers if remote else own), (path, names)
    assert signal.SIGABRT == 6  # the 134 of the shell scripts
