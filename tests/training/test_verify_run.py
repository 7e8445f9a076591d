"""`bertjax verify-run`: every damaged checkpoint and file of a run is named, and nothing else; nothing is changed."""

import json
import random
import shutil
from pathlib import Path

import pytest
from checkpoint_trees import abstract_of, assert_same, make_tree, save_steps

from bertjax.cli.main import main
from bertjax.config.schema.run import CheckpointPolicy
from bertjax.training.checkpoint import reader as checkpoint_reader
from bertjax.training.checkpoint.reader import CheckpointReader


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage with three steps, outside a run; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "00-pretrain"
    save_steps(folder, 1, 2, 3, policy=CheckpointPolicy(keep_last=9))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_good_checkpoints(saved, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "VERIFY_BYTES", 1000)  # several groups of arrays
    before = contents(saved)
    assert main(["verify-run", str(saved)]) == 0
    *steps, last = capsys.readouterr().out.splitlines()
    assert last == "3 checkpoints: all good"
    assert [line.split(" (")[0] for line in steps] == [f"{saved / step}: good" for step in ("1", "2", "3")]
    assert all("(8 arrays, " in line for line in steps)
    assert main(["verify-run", str(saved / "2")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 checkpoint: all good"
    assert contents(saved) == before


def test_no_flipped_bit_is_silent_and_nothing_is_moved(saved, tmp_path, capsys):
    """A bit that nothing reads, as between two arrays, changes no value and is no damage."""
    rng, found = random.Random(0), 0
    for trial in range(20):
        folder = tmp_path / str(trial)
        shutil.copytree(saved, folder)
        arrays = [path for path in (folder / "2").rglob("d/*") if path.is_file()]
        path = rng.choices(arrays, [path.stat().st_size for path in arrays])[0]
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        before = contents(folder)
        code = main(["verify-run", str(folder)])
        out = capsys.readouterr().out.splitlines()
        assert contents(folder) == before and "good" in out[0] and "good" in out[2]
        if code == 0:
            assert_same(CheckpointReader(folder).restore(abstract_of(make_tree(2)), 2)[1], make_tree(2))
            continue
        assert code == 4 and out[-1] == "3 checkpoints: 1 DAMAGED"
        assert out[1].startswith(f"{folder / '2'}: DAMAGED: ")
        found += 1
    assert found  # of 20; most bytes of so small a checkpoint are read by nothing


def test_the_small_files_of_a_run(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert main(["verify-run", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    steps = sum(len(CheckpointReader(stage).committed_steps()) for stage in (run / "checkpoints").iterdir())
    assert len(found) == steps + 3 and not any(one["problem"] for one in found)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("hidden_dropout_prob: 0.1", "hidden_dropout_prob: 0.3"))
    tokenizer = run / "tokenizer" / "vocab.txt"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"##e", b"##d", 1))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    assert main(["verify-run", str(run)]) == 4
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{steps} checkpoints and 3 files: 3 DAMAGED"
    said = "\n".join(lines)
    changed = "not what the checkpoints were made with (model.hidden_dropout_prob: 0.1 -> 0.3)"
    assert f"config.yaml: DAMAGED: {changed}" in said
    assert "tokenizer: DAMAGED: its files are not what was saved" in said
    assert "metrics.jsonl: DAMAGED: 1 of " in said


def test_no_checkpoints(tmp_path, capsys):
    (tmp_path / "checkpoints" / "00-pretrain").mkdir(parents=True)
    assert main(["verify-run", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert main(["verify-run", str(tmp_path / "none")]) == 2
