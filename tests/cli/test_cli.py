"""The command line, end to end: exit codes, messages, files, stops."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cpfast import cli
from cpfast.cli import list as list_command
from cpfast.train import data, report
from cpfast.train.config import Config
from cpfast.train.runfolder import RunFolder

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
QUICK = ["--model", "cnn", "--batch-size", "8", "--lr", "0.05", "--threads", "1", "--no-energy"]


@pytest.fixture
def npz(tmp_path, monkeypatch):
    """A toy data set, in an empty working directory."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 150, (count, 9, 9), dtype=np.uint8)
        for label in range(3):
            images[labels == label, 3 * label : 3 * label + 3] += 105
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images, labels
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(path)


def fails(capsys, *arguments):
    """The one-line message of a command that must fail, below notes of what is not installed."""
    assert cli.main(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = [x for x in output.err.splitlines() if not x.startswith("cpfast: note: ")]
    assert len(lines) == 1 and lines[0].startswith("cpfast: error: "), output.err
    return lines[0].removeprefix("cpfast: error: ")


def spawn(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cpfast", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(process, folder, count, seconds=120):
    """Until so many epochs are stored."""
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") > count:
            return
        time.sleep(0.02)


def same_models(a, b):
    first, second = RunFolder(a).checkpoint(), RunFolder(b).checkpoint()
    assert first["epoch"] == second["epoch"]
    return all(torch.equal(w, second["model"][name]) for name, w in first["model"].items())


@pytest.mark.needs("codecarbon")
@pytest.mark.needs("matplotlib")
def test_train_end_to_end(npz, tmp_path):
    process = spawn("train", "--data", npz, *QUICK[:-1], "--epochs", "7", "--seed", "3",
                    "--criterion", "fixed", "--at", "3", "--country", "BRA",
                    "--price-hour", "2")  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    # matplotlib may say that it builds its font cache
    assert [line for line in err.splitlines() if "font cache" not in line] == []
    folder = tmp_path / "work" / "runs" / "toy.npz-cnn-fast-1"
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        "config.json", "config.toml", "energy.json", "last.pt", "metrics.jsonl", "model.json",
        "model.safetensors", "rotation.png", "summary.json",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == 3 and config["epochs"] == 7 and config["data"] == npz
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    samples = sum(line["forward_samples"] for line in lines)
    table = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines() if "  " in line)
    accuracy = 100 * lines[-1]["test_accuracy"]
    assert table["test accuracy"] == f"{accuracy:.2f} % at epoch 7 (the last)"
    assert table["critical period"].startswith("ended after epoch 3 (fixed")
    assert table["samples processed"].startswith(f"{samples:,} of the full recipe's 168 (k = 1)")
    flops = sum(line["flops"] for line in lines)
    assert table["computation"] == report.flops_text(flops) and flops > 0
    assert "Wh, evaluation included (CPU " in table["energy"]
    assert "RAM " in table["energy"] and "estimated" in table["energy"]
    assert re.fullmatch(r"estimated \S+ g \(\d+ g a kWh, the mean of BRA\)", table["CO2e"])
    assert re.fullmatch(r"measured \S+, evaluation included \(2 an hour\)", table["cost"])
    for part in ("detection", "scoring", "selection"):
        assert re.match(r"\d+\.\d\d % of the training time", table[part])
    assert table["picture"] == "runs/toy.npz-cnn-fast-1/rotation.png"
    assert (folder / "rotation.png").stat().st_size > 20_000


def test_kill_loses_the_epoch_under_way_only(npz, tmp_path):
    options = ["--data", npz, *QUICK, "--no-plot", "--epochs", "60", "--criterion", "fixed",
               "--at", "4"]  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = spawn("train", *options, "--out", str(killed))
    wait_for_epochs(process, killed, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = RunFolder(killed).checkpoint()["epoch"]
    assert 5 <= stored < 60
    assert cli.main(["train", "--resume", "--out", str(killed)]) == 0
    assert cli.main(["train", *options, "--out", str(whole)]) == 0
    assert same_models(killed, whole)


def test_criteria_are_watched_beside_the_one_that_drives(npz, tmp_path, capsys):
    out = tmp_path / "watched"
    options = ["--epochs", "6", "--criterion", "slope45", "--watch", "fisher,accuracy50",
               "--patience", "2", "--not-before", "3", "--out", str(out)]  # fmt: skip
    assert cli.main(["train", "--data", npz, *QUICK, "--no-plot", *options]) == 0
    table = capsys.readouterr().out
    for name in ("fisher", "accuracy50"):
        assert re.search(rf"watched: {name} +(did not end|ended after epoch [4-6])", table)
    lines = RunFolder(out).metrics()
    assert [list(line["criteria"]) for line in lines] == [["slope45", "fisher", "accuracy50"]] * 6
    spent = [line["measured_samples"] for line in lines]
    assert all(spent[:4]) and sum(spent) % spent[0] == 0
    ends = [found["period_end"] for found in lines[-1]["criteria"].values()]
    assert all(end is None or end >= 4 for end in ends) and any(ends)
    message = fails(capsys, "train", "--resume", "--watch", "all", "--out", str(out))
    assert message.endswith("cannot change --watch all (the run has fisher,accuracy50)")
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0


def test_a_guarded_run_says_what_it_compares_and_what_that_cost(npz, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--data", npz, *QUICK, "--no-plot", "--method", "detector", "--criterion", "fixed",
               "--at", "1", "--epochs", "3", "--guard-share", "0.3", "--out", str(out)]  # fmt: skip
    message = fails(capsys, "train", *options[:-4], "--guard", "1", "--guard-share", "0.1")
    assert message.startswith("--guard: it would hold out 2 of 24 training samples of 3 classes")
    assert cli.main(["train", *options, "--guard", "0.5"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("toy: 17 training and 12 test images ")
    assert "; 7 more are held out for --guard" in said[0]
    told = [line for line in said if line.startswith("guard")]
    assert told[0].startswith("guard: 7 samples are held out of the training, to tell whether ")
    assert told[1].startswith("guard: the critical period ended after epoch 1; from here ")
    assert told[2].startswith("guard: undecided after epoch 3 (the saving costs ")
    assert told[3].split()[1] == "undecided" and told[3].endswith("; the run that saves is kept")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["guard"]["verdict"] == "undecided" and summary["guard"]["samples"] > 0
    used = summary["backward_samples"]
    lines = RunFolder(out).metrics()
    own = sum(line["backward_samples"] for line in lines)
    assert used == own + summary["guard"]["samples"]
    # the data are all of them
    assert cli.main(["eval", str(out)]) == 0
    assert "changed since" not in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", str(out), "--epochs", "4"]) == 0
    again = capsys.readouterr().out
    assert "extended from 3 to 4" in again and len(RunFolder(out).metrics()) == 4
    message = fails(capsys, "train", "--resume", "--out", str(out), "--guard", "1")
    assert message.endswith("cannot change --guard 1.0 (the run has 0.5)")


def test_interrupt_says_how_to_go_on(npz, tmp_path, capsys):
    out = tmp_path / "a run"
    process = spawn("train", "--data", npz, *QUICK, "--epochs", "50000", "--out", str(out))
    wait_for_epochs(process, out, 2)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # one that goes on would do so for hours
    assert process.returncode == 130
    message = err.strip().splitlines()[-1]
    assert "Traceback" not in err
    found = re.fullmatch(
        r"cpfast: interrupted after epoch (\d+) of 50000; continue with: "
        rf"cpfast train --resume --out '{re.escape(str(out))}'",
        message,
    )
    assert found and RunFolder(out).checkpoint()["epoch"] == int(found[1])
    # and the lock is gone
    with RunFolder(out).locked():
        pass


def test_a_disk_that_fills_up_is_named_and_nothing_stored_is_lost(npz, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--data", npz, *QUICK, "--no-plot", "--epochs", "4", "--out", str(out)]
    assert cli.main(["train", *options]) == 0
    last, metrics = (out / "last.pt").read_bytes(), (out / "metrics.jsonl").read_text()
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "epochs": 6}))
    state = RunFolder(out).checkpoint()
    state["config"]["epochs"] = state["pruner"]["num_epochs"] = 6
    RunFolder(out).save_checkpoint(state)

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(last) // 2,) * 2)

    command = [sys.executable, "-m", "cpfast", "train", "--resume", "--out", str(out)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=no_room
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"cpfast: error: {out}/last.pt: File too large"
    assert RunFolder(out).epochs() == 4
    assert cli.main(command[3:]) == 0
    assert (out / "metrics.jsonl").read_text().startswith(metrics)
    assert RunFolder(out).epochs() == 6


def test_what_cannot_be_trained_leaves_no_folder_behind(npz, tmp_path, capsys):
    out = tmp_path / "run"
    for wrong in (["--batch-size", "25"], ["--model", "vit-tiny"]):
        message = fails(capsys, "train", "--data", npz, *QUICK, "--out", str(out), *wrong)
        assert wrong[-1] in message and not out.exists()


@pytest.mark.parametrize("stop", [1, 3])
def test_interrupt_between_metrics_and_checkpoint(npz, tmp_path, capsys, monkeypatch, stop):
    real, calls = RunFolder.save_checkpoint, []

    def save(self, state):
        calls.append(state["epoch"])
        if state["epoch"] == stop and calls.count(stop) == 1:
            raise KeyboardInterrupt
        real(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    out = tmp_path / "run"
    options = ["--data", npz, *QUICK, "--no-plot", "--epochs", "4", "--out", str(out)]
    assert cli.main(["train", *options]) == 130
    assert len(RunFolder(out).metrics()) == stop
    assert f"interrupted after epoch {stop - 1} of 4;" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    shown = f", after epoch {stop - 1}\n" if stop > 1 else "\n"
    assert f"run folder {out}{shown}" in capsys.readouterr().out
    assert calls == [*range(stop + 1), *range(stop, 5)]


def test_resume_without_its_checkpoint(npz, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--data", npz, *QUICK, "--no-plot", "--epochs", "2", "--out", str(out)]
    assert cli.main(["train", *options]) == 0
    (out / "last.pt").unlink()
    before = (out / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--out", str(out)]) == 2
    assert f"{out}/last.pt: missing, though 2 of 2" in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_reader_that_has_gone_is_no_error(npz, tmp_path):
    out = str(tmp_path / "run")
    arguments = ["--data", npz, *QUICK, "--no-plot", "--epochs", "1", "--out", out]
    assert cli.main(["train", *arguments]) == 0
    process = spawn("report", out, "--no-plot")
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, "")
    process.stderr.close()


def test_out_of_memory_is_one_line(npz, tmp_path, capsys, monkeypatch):
    def load(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(data, "load", load)
    assert fails(capsys, "train", "--data", npz, *QUICK).startswith("out of memory: use a smaller")


def test_folder_in_use(npz, tmp_path, capsys):
    out = tmp_path / "run"
    process = spawn("train", "--data", npz, *QUICK, "--epochs", "5000", "--out", str(out))
    try:
        wait_for_epochs(process, out, 1)
        for extra in (["--resume"], ["--data", npz, *QUICK]):
            message = fails(capsys, "train", "--out", str(out), *extra)
            assert message == f"{out}: in use by process {process.pid}"
    finally:
        process.kill()
        process.communicate()


def test_a_finished_run_is_shown_again_but_not_overwritten(npz, tmp_path, capsys):
    out = str(tmp_path / "run")
    options = ["train", "--data", npz, *QUICK, "--no-plot", "--epochs", "2", "--out", out]
    assert cli.main(options) == 0
    first = capsys.readouterr().out.split("\n\n")[-1]
    before = (tmp_path / "run" / "last.pt").read_bytes()
    assert "holds a run already; continue it with --resume" in fails(capsys, *options)
    assert cli.main(["train", "--resume", "--out", out]) == 0
    assert capsys.readouterr().out.split("\n\n")[-1] == first
    assert cli.main(["report", out, "--no-plot"]) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    message = fails(capsys, "train", "--resume", "--out", out, "--lr", "0.7", "--keep", "0.7")
    assert message == (
        f"--resume {out}: cannot change --lr 0.7 (the run has 0.05); --keep 0.7 (the run has None)"
    )


def test_default_folders_do_not_collide(npz, tmp_path):
    for _ in range(2):
        assert cli.main(["train", "--data", npz, *QUICK, "--no-plot", "--epochs", "1"]) == 0
    runs = sorted(p.name for p in (tmp_path / "work" / "runs").iterdir())
    assert runs == [f"toy.npz-cnn-fast-{n}" for n in (1, 2)]


@pytest.mark.needs("scipy")
@pytest.mark.needs("matplotlib")
def test_compare_end_to_end(npz, tmp_path, capsys):
    command = ["compare", "--data", npz, *QUICK, "--epochs", "4", "--seeds", "2",
               "--criterion", "fixed", "--at", "1"]  # fmt: skip
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^seed \d  ", out, flags=re.MULTILINE)) == 10
    assert "The best of them is" in out and "digits" not in out
    (folder,) = (tmp_path / "work" / "runs").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert len(results["runs"]) == 10
    assert (folder / "table.md").read_text().startswith("# toy.npz, cnn, 4 epochs, k = 3\n")
    assert (folder / "rotation.png").stat().st_size > 20_000
    assert (folder / "accuracy.png").stat().st_size > 20_000
    # the same command finds all done
    assert cli.main(command) == 0
    again = capsys.readouterr().out
    assert "10 of 10 runs done" in again and "seed 0  full" not in again
    assert json.loads((folder / "results.json").read_text()) == results
    # a report of both kinds at once
    assert cli.main(["report", str(folder), str(folder / "seed0" / "detector")]) == 0
    both = capsys.readouterr().out
    assert "k1_matched" in both and "ended after epoch 1" in both
    assert (folder / "seed0" / "detector" / "rotation.png").exists()


@pytest.mark.needs("scipy")
@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize(
    ("kind", "options", "runs", "picture"),
    [
        ("falsify", ["--batch-factors", "1", "--decay-factors", "1", "--epoch-factors", "1", "2"],
         4, "falsify.png"),
        ("oracle", ["--oracle-settings", "base", "--switch-epochs", "2"], 3, "oracle.png"),
        ("deficit", ["--deficits", "blur", "--removals", "2", "--onsets", "1", "--window", "1"], 3,
         "deficit.png"),
        ("warm-start", ["--shrinks", "0.4"], 4, "warm-start.png"),
        ("window", ["--regularisers", "decay", "--switches", "2"], 6, "window.png"),
        ("early-phase", ["--perturbations", "layer", "--rewinds", "1", "--iterations", "3"], 2,
         "early-phase.png"),
        ("enlightenment", ["--strategies", "removal", "--lengths", "2"], 3, "enlightenment.png"),
    ],
)  # fmt: skip
def test_studies_end_to_end(npz, tmp_path, capsys, kind, options, runs, picture):
    out = tmp_path / "out"
    command = ["study", kind, *options, "--data", npz, *QUICK, "--epochs", "4", "--seeds", "1",
               "--out", str(out)]  # fmt: skip
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^seed 0  ", shown, flags=re.MULTILINE)) == runs
    assert (out / picture).stat().st_size > 20_000 and (out / "table.md").exists()
    assert cli.main(["report", str(out), "--no-plot"]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[:-1] == shown.split("\n\n", 1)[1].splitlines()[:-2]
    message = fails(capsys, "compare", "--data", npz, *QUICK, "--out", str(out))
    assert f"kind arms (it has {kind})" in message


def test_compare_interrupted_or_out_of_space(npz, tmp_path, capsys, monkeypatch):
    real, calls = RunFolder.save_checkpoint, []
    errors = {3: KeyboardInterrupt(), 7: OSError(errno.ENOSPC, "No space left on device", "x/last")}

    def save(self, state):
        calls.append(state["epoch"])
        if len(calls) in errors:
            raise errors[len(calls)]
        real(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    out = str(tmp_path / "out")
    command = ["compare", "--data", npz, *QUICK, "--no-plot", "--epochs", "2", "--seeds", "1",
               "--criterion", "fixed", "--at", "1", "--arms", "k1,fixed", "--out", out]  # fmt: skip
    assert cli.main(command) == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        "cpfast: interrupted; what is done is kept; continue with the same command: "
        f"cpfast {' '.join(command)}"
    )
    assert cli.main(command) == 2
    assert "cpfast: error: x/last: No space left on device" in capsys.readouterr().err
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert 1 <= len(kept) < 3
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"][: len(kept)] == kept


def test_list_names_everything_with_its_line_and_source(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    sections = dict(section.split("\n", 1) for section in out.split("\n\n"))
    assert sections.keys() == list_command.KINDS.keys()
    for kind, registry in list_command.KINDS.items():
        lines = sections[kind].splitlines()
        assert len(lines) == len(registry) >= 2
        for line, (name, entry) in zip(lines, registry.items(), strict=True):
            assert line.split()[0] == name
            assert line.endswith(f"  {entry.line.rstrip('.')} ({entry.source})")
    assert cli.main(["list", "studies"]) == 0
    one = capsys.readouterr().out
    assert one.splitlines()[0] == "studies" and "slope45" not in one


def test_env(capsys):
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "cpfast", "numpy", "backend"):
        assert re.search(rf"^{name} +\S", out, flags=re.MULTILINE)
    assert torch.__version__ in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["train", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["train", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["train", "--keep", "2"], "--keep must be in (0, 1], got 2.0"),
        (["train", "--data", "/nowhere"], "--data /nowhere: no such folder or file"),
        pytest.param(
            ["train", "--limit", "3"], "--limit must be in 10 (classes) .. 256",
            marks=pytest.mark.needs("sklearn"),
        ),
        pytest.param(
            ["train", "--country", "BR"], "--country BR: codecarbon has no data for it",
            marks=pytest.mark.needs("codecarbon"),
        ),
        (
            ["train", "--epoch", "3"],
            "unrecognized arguments: --epoch 3; did you mean --epochs? (see cpfast train --help)",
        ),
        (["compare", "--resume"], "unrecognized arguments: --resume (see cpfast compare --help)"),
        (["train", "--data", ""], "--data: an empty name"),
        (["train", "--price-hour", "inf"], "--price-hour must be finite and not negative, got inf"),
        (["train", "--price-kwh", "-1"], "--price-kwh must be finite and not negative, got -1.0"),
        (["train", "--resume"], "--resume needs --out RUN"),
        (["train", "--guard", "0"], "--guard must be in (0, 100), in points of accuracy, got 0.0"),
        (["train", "--guard", "1", "--method", "full"], "--guard: --method full saves nothing "),
        (["train", "--guard-share", "0.2"], "--guard-share goes with --guard"),
        (["train", "--watch", "fisher,metals"], "--watch must be one of all, accordion, "),
        (["train", "--patience", "0"], "--patience must be at least 1, got 0"),
        (["train", "--data", "python-docs", "--criterion", "early_bird"],
         "--criterion early_bird: needs batch normalisation with scales, and "),
        (["train", "--resume", "--out", "/nowhere"], "/nowhere: no run here"),
        (["train", "--device", "tpu"], "--device must be cpu, cuda or cuda:N; got 'tpu'"),
        (["train", "--precision", "fp16", "--device", "cpu"], "use bf16 or fp32"),
        (["compare", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["compare", "--seed", "4294967295", "--seeds", "2"], "they leave 0 .. 2**32 - 1"),
        (["report", "/nowhere"], "/nowhere: no run and no comparison here"),
        (["report"], "the following arguments are required: RUN"),
        (["study"], "the following arguments are required: NAME"),
        (["study", "oracles"], "invalid choice: 'oracles'"),
        (["study", "falsify", "--at", "3"], "unrecognized arguments: --at 3 (see cpfast study fal"),
        (["compare", "--falsify"], "--falsify is a study of its own: cpfast study falsify"),
        (["compare", "--seeds", "2", "--oracle", "--switch-epochs", "3"], "cpfast study oracle"),
        (["compare", "--switch-epochs", "3"], "unrecognized arguments: --switch-epochs 3"),
        (["list", "metals"], "invalid choice: 'metals'"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "1", "--repeats", "1", "--batch-size", "24"],
        ["--epochs", "2", "--batch-size", "1", "--limit", "3", "--criterion", "fixed", "--at", "1"],
        ["--epochs", "3", "--method", "prune", "--anneal", "0", "--policy", "random"],
        ["--epochs", "3", "--method", "detector+prune", "--anneal", "1", "--keep", "1"],
        ["--epochs", "2", "--precision", "bf16", "--schedule", "cosine", "--flip"],
    ],
)
def test_settings_at_their_edges(npz, options, capsys):
    assert cli.main(["train", "--data", npz, *QUICK, "--no-plot", *options]) == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpu_is_an_error_that_names_the_fix(capsys):
    message = fails(capsys, "train", "--device", "cuda")
    assert message.startswith("--device cuda: torch") and message.endswith("or use --device cpu")


def test_truncated_checkpoint_is_named_and_kept(npz, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--data", npz, *QUICK, "--no-plot", "--epochs", "2", "--out", str(out)]
    assert cli.main(["train", *options]) == 0
    whole = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(whole[:5000])
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message == (
        f"cpfast: error: {out}/last.pt: truncated, or not a checkpoint of this version "
        "(no checksum at its end)\n"
    )
    assert (out / "last.pt").read_bytes() == whole[:5000]


def test_divergence_is_one_line(npz, tmp_path, capsys):
    arguments = ["train", "--data", npz, *QUICK, "--lr", "1e30", "--epochs", "3", "--no-plot"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"cpfast: error: training diverged: .* of epoch 1 is .*\n", error)


@pytest.fixture
def bare(monkeypatch):
    """A machine with none of the libraries that only add to a training."""
    for library in ("codecarbon", "matplotlib", "tqdm"):
        monkeypatch.setitem(sys.modules, library, None)


NOT_METERED = "energy is not metered: measuring energy needs codecarbon"
NOT_DRAWN = "nothing is drawn: a picture needs matplotlib"


def notes(capsys):
    """Without what is said of how to mend it."""
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert all("install the extra cpfast[train], by pip install" in line for line in lines)
    return out, [line.removeprefix("cpfast: note: ").partition(",")[0] for line in lines]


@pytest.mark.usefixtures("bare")
def test_without_optional_libraries_a_run_trains_and_says_what_is_left_out(npz, tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--data", npz, *QUICK[:-1], "--epochs", "2", "--price-hour", "2"]
    assert cli.main(["train", *options, "--out", str(folder)]) == 0
    out, told = notes(capsys)
    assert told == [NOT_METERED, NOT_DRAWN]
    assert re.search("^energy +not measured$", out, flags=re.MULTILINE)
    assert re.search(r"^cost +measured .*\(2 an hour\)$", out, flags=re.MULTILINE)
    assert not list(folder.glob("*.png")) and len(RunFolder(folder).metrics()) == 2
    assert cli.main(["report", str(folder)]) == 0
    assert notes(capsys)[1] == [NOT_DRAWN]
    # it goes on without a word where that was chosen
    assert cli.main(["train", "--resume", "--out", str(folder)]) == 0
    assert notes(capsys)[1] == []


@pytest.mark.usefixtures("bare")
def test_a_metered_run_goes_on_without_the_meter(npz, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    config = Config.from_options({"data": npz, "model": "cnn", "epochs": 1, "batch_size": 8})
    assert config.energy and config.plot
    folder.create(config)
    assert cli.main(["train", "--resume", "--out", str(folder.path)]) == 0
    assert notes(capsys)[1] == [NOT_METERED, NOT_DRAWN]
    assert folder.epochs() == 1 and folder.energy()["kwh"] is None


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (["compare", "--arms", "full,k1"], [NOT_METERED, NOT_DRAWN]),
        (["study", "oracle", "--oracle-settings", "base", "--switch-epochs", "1"], [NOT_DRAWN]),
    ],
)
def test_a_comparison_runs_without_optional_libraries(npz, tmp_path, capsys, kind, told):
    options = ["--data", npz, *QUICK[:-1], "--epochs", "2", "--seeds", "1"]
    assert cli.main([*kind, *options, "--out", str(tmp_path / "runs")]) == 0
    assert notes(capsys)[1] == told
    assert not list((tmp_path / "runs").glob("*.png"))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("asked", [["--country", "BRA"], ["--price-kwh", "0.2"]])
def test_what_is_asked_for_and_cannot_be_done_is_an_error(command, asked, capsys, tmp_path):
    message = fails(capsys, command, *asked)
    assert message.startswith("measuring energy needs codecarbon")
    assert "pip install '.[train]'" in message and message.endswith("or pass --no-energy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", [["compare", "--seeds", "2"], ["study", "falsify", "--seeds", "1"]]
)
def test_what_the_table_needs_is_asked_for_before_the_runs(
    npz, tmp_path, monkeypatch, capsys, kind
):
    monkeypatch.setitem(sys.modules, "scipy", None)
    message = fails(capsys, *kind, "--data", npz, "--out", str(tmp_path / "out"))
    assert message.startswith("this study needs scipy")
    assert "pip install '.[train]'" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "repeats", "end", "change"),
    [("detector", 3, 5, "\nk = 3 to 1"), ("detector+prune", 2, 5, "\nk = 2 to 1, pruning on"),
     ("detector+prune", 1, 5, "\npruning on"), ("detector", 1, 5, ""), ("prune", 3, 5, ""),
     ("detector", 3, 20, "")],
)  # fmt: skip
def test_a_picture_says_what_the_end_of_the_period_brings(method, repeats, end, change):
    from cpfast.train.config import Config
    from cpfast.train.plots import run

    config = Config.from_options({"method": method, "repeats": repeats, "epochs": 20})
    assert run._change(config, end) == change


@pytest.mark.needs("matplotlib")
def test_a_picture_of_many_layers_and_of_a_period_that_goes_on(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    from cpfast.train import plots

    names = [f"layer{i}.weight" for i in range(30)]
    metrics = [
        {
            "epoch": epoch,
            "rotation": {name: epoch * (i + 1) / 300 for i, name in enumerate(names)},
            "rotation_mean": epoch * 15.5 / 300,
            "slope": None if epoch < 5 else 3.0,
            "test_accuracy": None if epoch % 2 else 0.1 * epoch,
            "train_loss": 2.0 / epoch,
        }
        for epoch in range(1, 9)
    ]
    summary = {
        "config": Config.from_options({"epochs": 20}), "metrics": metrics, "period_end": None,
        "test_accuracy": None,
    }  # fmt: skip
    plots.draw_run(summary, tmp_path / "a.png")
    plots.draw_run({**summary, "period_end": 6}, tmp_path / "b.png")
    orange = tuple(bytes.fromhex("D55E00"))
    found = []
    for name in "ab":
        image = image_module.open(tmp_path / f"{name}.png").convert("RGB")
        assert image.width > 600 and image.height > 600
        colours = {colour: count for count, colour in image.getcolors(1 << 20)}
        assert len(colours) > 100
        found.append(colours.get(orange, 0))
    # the end is drawn only where there is one
    assert found[0] == 0 and found[1] > 500
