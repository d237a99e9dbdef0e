"""One run over several processes, started by torchrun."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch

from cpfast import load
from cpfast.cli import main, options
from cpfast.studies import read_results
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.slow

SUPPORT = pathlib.Path(__file__).parent.parent / "support"
# without normalisation by batches, of which each process sees a part
VIT = ("--data", "digits", "--model", "vit-tiny", "--limit", "64", "--epochs", "3", "--batch-size",
       "16", "--eval-every", "3", "--threads", "1", "--no-energy", "--no-plot",
       "--preset", "paper")  # fmt: skip
DIGITS = ("--data", "digits", "--epochs", "6", "--threads", "1", "--no-energy", "--no-plot")
PRUNED = ("--method", "detector+prune", "--criterion", "fixed", "--at", "1")


def cpfast(cwd, *arguments, processes=1, restarts=0, script=("-m", "cpfast"), fails=False):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
                    f"--max-restarts={restarts}"]  # fmt: skip
    out = subprocess.run(
        [*command, *script, *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert fails == (out.returncode != 0), out.stderr
    return out


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(line):
    return {k: v for k, v in line.items() if k not in ("seconds", "criteria", "communication")}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("both")
    for name, processes in (("one", 1), ("two", 2)):
        cpfast(folder, "train", *VIT, *PRUNED, "--policy", "kakurenbo", "--out", name,
               processes=processes)  # fmt: skip
    return folder


def test_two_processes_train_the_run_of_one(both):
    one, two = lines_of(both / "one"), lines_of(both / "two")
    assert len(two) == 3
    for alone, together in zip(one, two, strict=True):
        for key in ("planned_samples", "forward_samples", "backward_samples", "scored_samples",
                    "repeats", "period_end", "lr", "full_samples", "flops"):  # fmt: skip
            assert alone[key] == together[key], key
        for key in ("train_loss", "test_loss", "rotation_mean"):
            assert together[key] == (alone[key] and pytest.approx(alone[key], rel=1e-3)), key


def test_one_sync_an_epoch_of_few_bytes_a_sample(both):
    for line in lines_of(both / "two"):
        sent = line["communication"]
        # kakurenbo records two columns; most policies one, and give 8 bytes a sample
        assert sent["sync_bytes"] == 4 * 3 * 64 + 8 and sent["ranks"] == 2
        steps = line["backward_samples"] // 16
        # gradients; loss, sync and summary
        assert sent["collectives"] == steps + 3 + (line["test_loss"] is not None)
    assert lines_of(both / "one")[0]["communication"] == {
        "ranks": 1, "collectives": 0, "bytes": 0, "sync_bytes": 0,
    }  # fmt: skip


def test_two_processes_add_up_and_average_as_one(tmp_path):
    options = ("--method", "full", "--accumulate", "2", "--ema", "0.9", "--epochs", "1",
               "--eval-every", "1", "--limit", "32", "--limit-test", "50")  # fmt: skip
    train = ("train", *VIT, *options, "--batch-size", "8", "--out")
    assert main([*train, str(tmp_path / "one")]) == 0
    cpfast(tmp_path, *train, "two", processes=2)
    for alone, together in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        assert alone["backward_samples"] == together["backward_samples"] == 96
        for key in ("train_loss", "test_loss", "rotation_mean"):
            assert together[key] == pytest.approx(alone[key], rel=1e-3), key


def test_rank_0_alone_writes_and_speaks(tmp_path):
    out = cpfast(tmp_path, "train", *DIGITS, "--out", "run", processes=2)
    assert out.stdout.count("run folder run") == 1 and "in 2 processes" in out.stdout
    assert "test accuracy" in out.stdout and "between 2 processes" in out.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    assert lines_of(tmp_path / "run")[-1]["epoch"] == 6
    model = load(tmp_path / "run")
    assert (model.epoch, model.test_accuracy) == (
        6,
        lines_of(tmp_path / "run")[-1]["test_accuracy"],
    )
    state = RunFolder(tmp_path / "run").checkpoint()["model"]
    assert all(torch.equal(w, state[name]) for name, w in model.network.state_dict().items())
    # and another number of processes goes on where these stood: that is, it is finished
    again = cpfast(tmp_path, "train", "--resume", "--out", "run", processes=4)
    assert "run folder run, finished" in again.stdout


def test_a_process_that_is_killed_comes_back(tmp_path):
    arguments = ("train", *DIGITS, "--method", "detector+prune", "--criterion", "accuracy50",
                 "--policy", "pdd")  # fmt: skip
    cpfast(tmp_path, *arguments, "--out", "whole", processes=2)
    killed = cpfast(
        tmp_path, "1", "30", *arguments, "--out", "killed",
        processes=2, restarts=1, script=(str(SUPPORT / "killed_training.py"),),
    )  # fmt: skip
    assert "SIGKILL" in killed.stderr or "exitcode: -9" in killed.stderr
    whole, back = lines_of(tmp_path / "whole"), lines_of(tmp_path / "killed")
    assert [without_times(line) for line in back] == [without_times(line) for line in whole]
    assert whole[-1]["period_end"] is not None
    assert any(line["scored_samples"] > 0 for line in whole)  # what is hidden, shared by both


def test_another_number_of_processes_goes_on(tmp_path):
    # whose choice no rounding changes
    arguments = ("train", *VIT, "--method", "prune", "--policy", "random", "--out", "run")
    cpfast(tmp_path, "1", "15", *arguments, processes=2, fails=True,
           script=(str(SUPPORT / "killed_training.py"),))  # fmt: skip
    done = len(lines_of(tmp_path / "run"))
    assert 0 < done < 3
    cpfast(tmp_path, "train", "--resume", "--out", "run", processes=4)
    cpfast(tmp_path, *arguments[:-1], "whole")
    whole, back = lines_of(tmp_path / "whole"), lines_of(tmp_path / "run")
    assert [line["communication"]["ranks"] for line in back] == [2] * done + [4] * (3 - done)
    for alone, together in zip(whole, back, strict=True):
        assert alone["backward_samples"] == together["backward_samples"]
        assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)


def test_a_comparison_is_of_runs_over_all_processes(tmp_path):
    arguments = ("compare", *DIGITS[:2], "--epochs", "4", "--seeds", "1", "--arms",
                 "full,detector,selective_backprop", "--criterion", "fixed", "--at", "2",
                 "--threads", "1", "--no-energy", "--no-plot", "--out", "c")  # fmt: skip
    out = cpfast(tmp_path, *arguments, processes=2)
    results = read_results(tmp_path / "c")
    assert sorted(e["arm"] for e in results["runs"]) == ["detector", "full", "selective_backprop"]
    assert out.stdout.count("seed 0  full") == 1
    for arm in ("full", "selective_backprop"):
        lines = lines_of(tmp_path / "c" / "seed0" / arm)
        assert all(line["communication"]["ranks"] == 2 for line in lines)
    assert {p.name for p in tmp_path.iterdir()} == {"c"}


def test_each_process_has_a_gpu_of_its_own_whichever_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(options.cpfast, "backend", lambda: "cuda")
    assert [options.device_of(name) for name in (None, "cuda", "cuda:1")] == [
        "cuda:0", "cuda:0", "cuda:1",
    ]  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in (None, "cuda", "cuda:0"):
        assert options.device_of(name) == "cuda:1"
    assert options.device_of("cpu") == "cpu"


def test_what_processes_cannot_share_is_refused(tmp_path):
    out = cpfast(tmp_path, "train", *DIGITS, "--batch-size", "33", "--out", "run", processes=2,
                 fails=True)  # fmt: skip
    assert "--batch-size 33: 2 processes cannot share it evenly" in out.stderr
    assert not (tmp_path / "run" / "config.json").exists()
    out = cpfast(tmp_path, "train", *DIGITS, processes=2, restarts=1, fails=True)
    assert "--out: needed with torchrun --max-restarts" in out.stderr
