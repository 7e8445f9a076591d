"""A checkout with a trainer that learns nothing, and a fake gcloud: what the launchers are tried on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "launch"), str(HERE)]

# Trains in no time: its steps are in a file in run.root, which outlives the machines; worker 0 tells of them.
TRAINER = """\
import os, signal, sys, time
from pathlib import Path
if sys.argv[1:] == ["doctor", "--cluster"]:
    fails = Path(os.environ.get("DOCTOR", "none"))
    code = int(fails.read_text()) if fails.exists() else 0
    print("BAD sum over all" if code else "ok  sum over all")
    fails.unlink(missing_ok=True)
    sys.exit(code)
assert sys.argv[1] == "train", sys.argv
settings = dict(word.split("=", 1) for word in sys.argv[3:])
assert Path(sys.argv[2]).read_text() == "steps: 8\\n"
root, worker = Path(settings["run.root"]), os.environ["TPU_WORKER_ID"]
root.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(root / f"secret-{Path.home().name}").write_text(os.environ.get("BERTJAX_SECRET", ""))
reached = root / f"steps-{Path.home().name}"
step = int(reached.read_text()) if reached.exists() else 0
if worker == "0":
    print("resume" if step else "start", step, "env", os.environ.get("GREETING"))
while step < int(settings.get("steps", 8)):
    time.sleep(0.05)
    step += 1
    reached.with_suffix(".new").write_text(str(step))
    reached.with_suffix(".new").rename(reached)
    if worker == "0":
        print("step", step)
    fails = root / f"fail-{worker}-at-{step}"
    if fails.exists():
        code = int(fails.read_text())
        fails.unlink()
        print("tiny.yaml: something is wrong", file=sys.stderr)
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
"""
# Stands for .ci/setup and uv, which the tests of the set-up itself run for real elsewhere.
SETUP = """\
#!/bin/sh
set -eu
echo "installing with $1 from $2"
mkdir -p .venv/bin .tools/bin
printf '#!/bin/sh\\nPYTHONPATH="%s" exec "%s" -S "$@"\\n' "$PWD" "$REAL_PYTHON" >.venv/bin/python
printf '#!/bin/sh\\necho "uv $*"\\n' >.tools/bin/uv
chmod +x .venv/bin/python .tools/bin/uv
"""


class Cloud:
    """A checkout, a fake gcloud before the real one, and the launcher run on both."""

    def __init__(self, home: Path) -> None:
        self.home, self.checkout, self.shared = home / "cloud", home / "checkout", home / "shared"
        self.home.mkdir()
        self._make_checkout()
        bin_ = home / "bin"
        bin_.mkdir()
        # Without site packages, since many short processes are started.
        programs = {"gcloud": f'-I "{HERE / "fake_gcloud.py"}"', "python3": "", "python3.12": ""}
        for name, words in programs.items():
            (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -S {words} "$@"\n')
            (bin_ / name).chmod(0o755)
        (bin_ / "sudo").write_text(f'#!/bin/sh\necho "$*" >>"{self.home}/sudo"\n')
        (bin_ / "sudo").chmod(0o755)
        path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {
            "PATH": path, "FAKE_GCLOUD": str(self.home), "REAL_PYTHON": sys.executable, "PYTHONPATH": "",
        }  # fmt: skip

    def _make_checkout(self) -> None:
        (self.checkout / "configs" / "bert").mkdir(parents=True)
        (self.checkout / ".ci").mkdir()
        (self.checkout / "bertjax").mkdir()
        shutil.copytree(ROOT / "launch", self.checkout / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        setup = self.checkout / "launch" / "tpu_pod" / "worker_setup.py"  # not the lock file of this machine
        setup.write_text(setup.read_text().replace("/tmp/libtpu_lockfile", str(self.home / "libtpu_lockfile")))
        files = {
            "configs/tiny.yaml": "steps: 8\n",
            "configs/bert/pretrain_base.yaml": "steps: 8\n",
            "configs/bert/pretrain_large.yaml": "steps: 8\n",
            "bertjax/__init__.py": "",
            "bertjax/__main__.py": TRAINER,
            ".ci/setup": SETUP,
            "requirements.lock": "",
            "README.md": "as committed\n",
        }
        for name, text in files.items():
            (self.checkout / name).write_text(text)
        (self.checkout / ".ci" / "setup").chmod(0o755)
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "all")

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.checkout, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def plan(self, **events: list[str]) -> None:
        """What is to fail: create, describe, states, delete, scp, `ssh_setup`, `ssh_run`; see fake_gcloud.py."""
        words = {name.replace("_", " ", 1): list(what) for name, what in events.items()}
        (self.home / "plan.json").write_text(json.dumps(words))

    def words(self, *more: str) -> list[str]:
        own = ["--name=my-pod", "--type=v5litepod-8", "--poll=0.1", "--root-is-shared", "configs/tiny.yaml"]
        return [sys.executable, "-S", "launch/tpu.py", *own, f"run.root={self.shared}", *more]

    def start(self, *more: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.words(*more), cwd=self.checkout, env=self.environment | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def launch(self, *more: str, **environment: str) -> tuple[int, str]:
        """(exit code, output) of one call of launch/tpu.py."""
        process = self.start(*more, **environment)
        out, _ = process.communicate(timeout=100)
        return process.returncode, out

    def calls(self) -> list[str]:
        """The commands gcloud was called with, as `queued-resources create`, in order; looks at states left out."""
        path = self.home / "calls.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        short = [" ".join(words[words[0] == "alpha" :][2:4]) for words in lines if words[0] != "storage"]
        return [name for name in short if "describe" not in name]

    def flags(self, command: str, flag: str) -> list[str]:
        """The values of a flag in the calls of a command, such as `queued-resources create`; "" where it has none."""
        lines = [json.loads(line) for line in (self.home / "calls.jsonl").read_text().splitlines()]
        calls = [words for words in lines if command in " ".join(words[:5])]
        return [next((w.partition("=")[2] or w for w in words if w.split("=")[0] == flag), "") for words in calls]

    def there(self) -> bool:
        """Whether the queued resource exists, and costs."""
        return any(self.home.glob("resource*.json"))

    def close(self) -> None:
        for pid in self.home.glob("*/bertjax-*/attempt-*/pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass


@pytest.fixture
def cloud(tmp_path):
    # A shell's background jobs, these tests among them, are deaf to SIGINT, and so are their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Cloud(tmp_path)
    yield made
    made.close()
    signal.signal(signal.SIGINT, before)
