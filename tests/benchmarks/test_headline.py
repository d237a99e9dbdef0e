"""headline.sh: stopped by its budget or by Ctrl-C, it goes on where it was, here or elsewhere."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from cpfast import cli

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "headline.sh"
PIL = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def siblings(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def install(folder, script):
    """A `cpfast` in PATH."""
    folder.mkdir(exist_ok=True)
    (folder / "cpfast").write_text(f"#!/bin/bash\n{script}\n")
    (folder / "cpfast").chmod(0o755)
    return {
        "PATH": f"{folder}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "EPOCHS": "2", "SEEDS": "1", "DEVICE": "cpu", "OUT": str(folder / "out"),
        "CPFAST_DATA": str(folder / "data"),
    }  # fmt: skip


def headline(environment, *arguments):
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """A packed folder of images, one batch of the recipe's."""
    root = tmp_path / "tiny"
    for split, count in (("train", 128), ("test", 4)):
        for number in range(2):
            folder = root / split / "ab"[number]
            folder.mkdir(parents=True)
            for i in range(count):
                PIL.new("L", (8, 8), (i + 100 * number) % 256).save(folder / f"{i}.png")
    path = tmp_path / "tiny.tar.xz"
    with tarfile.open(path, "w:xz") as packed:
        packed.add(root, "tiny")
    shutil.rmtree(root)
    return path


def runs(out):
    path = out / "resnet20" / "results.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


@pytest.fixture
def real(tmp_path):
    return install(tmp_path / "bin", f'exec {sys.executable} -m cpfast "$@" --no-energy --no-plot')


def test_stopped_and_carried_elsewhere_it_goes_on_with_what_it_had(real, images, tmp_path):
    out, packed = pathlib.Path(real["OUT"]), tmp_path / "kept" / "headline.tar.gz"
    options = ["--pack", str(packed), str(images), "resnet20"]
    run = subprocess.Popen(["bash", str(SCRIPT), *options], env=real, stdout=subprocess.DEVNULL)
    while len(runs(out)) < 3:
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130
    done = runs(out)
    assert 3 <= len(done) < 9
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert names[0] == "resnet20/results.json"
    # Arms that fork from full begin with its checkpoint; those of what is stored are not needed.
    assert "resnet20/seed0/full/last.pt" in names
    assert f"resnet20/seed0/{done[1]['arm']}/last.pt" not in names
    shutil.rmtree(out)
    elsewhere = {**real, "OUT": str(tmp_path / "elsewhere")}
    again = headline(elsewhere, "--resume", packed, *options)
    assert again.returncode == 0, again.stderr
    found = runs(tmp_path / "elsewhere")
    assert found[: len(done)] == done
    assert len({run["arm"] for run in found}) == len(found) == 9
    with tarfile.open(packed) as archive:
        assert not any(name.endswith("last.pt") for name in archive.getnames())
    # All is done: nothing is trained anew.
    once_more = headline(elsewhere, "--resume", packed, *options)
    assert "holds results already, which go on" in once_more.stdout
    assert runs(tmp_path / "elsewhere") == found


def test_the_budget_stops_it_cleanly_and_is_for_all_experiments(tmp_path):
    # Ends of Ctrl-C alone, as cpfast does.
    environment = install(
        tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls; trap "exit 130" INT; sleep 300 & wait'
    )
    begun = time.monotonic()
    run = headline(environment, "--budget-seconds", "1", "folder")
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - begun < 100
    assert run.stdout.splitlines() == [
        "== resnet20",
        "== resnet20: stopped; run again to go on",
        *(f"== {name}: no time left; run again to go on" for name in
          ("resnet56", "falsify", "oracle", "deficit", "window", "warm-start", "early-phase",
           "enlightenment", "frontier-resnet20", "frontier-resnet56")),
    ]  # fmt: skip
    (line,) = (tmp_path / "calls").read_text().splitlines()
    assert line.startswith("compare --model resnet20 --arms full,")
    assert " --data folder --batch-size 256 --lr 0.08 --epochs 2 --seeds 1" in line


def test_on_a_gpu_the_step_is_compiled(tmp_path):
    environment = install(tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls')
    environment["DEVICE"] = "cuda:0"
    assert headline(environment, "cifar10", "falsify", "oracle").returncode == 0
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert "--data cifar10" in first and "--device cuda:0 --step compile+graph" in first
    assert first.startswith("study falsify --model resnet20 ")
    assert first.endswith(f" --out {tmp_path}/bin/out/falsify")
    assert second.startswith("study oracle --model resnet20 ")
    assert second.endswith(f" --out {tmp_path}/bin/out/oracle")


@pytest.mark.parametrize(
    "study", ["deficit", "window", "warm-start", "early-phase", "enlightenment"]
)
def test_the_studies_of_critical_periods_take_its_settings(tmp_path, study):
    environment = install(tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls')
    assert headline(environment, "folder", study).returncode == 0
    (line,) = (tmp_path / "calls").read_text().splitlines()
    arguments = line.split()
    arguments[arguments.index("--data") + 1] = "digits"
    device = arguments.index("--device")
    parsed = cli._parser().parse_args([*arguments[:device], "--device", "cpu"])
    assert parsed.study == study and parsed.model == "resnet20" and parsed.batch_size == 256


@pytest.mark.parametrize(
    ("kind", "run", "stored"),
    [
        ("frontier", {"arm": "detector:fisher", "budget": 20, "fold": -1},
         ["seed0/detector-fisher@20/final"]),
        ("frontier", {"arm": "control", "budget": 20, "fold": 1}, []),
        ("deficit", {"deficit": "blur"}, []),
        ("falsify", {"batch_size": 8, "weight_decay": 0.1, "total_epochs": 3, "labels": "true"},
         ["seed0/batch8-decay0.1-epochs3-true"]),
    ],
)  # fmt: skip
def test_checkpoints_of_what_is_stored_are_not_packed(monkeypatch, kind, run, stored):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import headline as script

    assert list(script.stored_runs({"kind": kind, "runs": [{"seed": 0, **run}]})) == stored


def test_an_error_stops_it_with_its_exit_code(tmp_path):
    environment = install(tmp_path / "bin", f"echo x >> {tmp_path}/calls; exit 2")
    assert headline(environment, "folder").returncode == 2
    assert (tmp_path / "calls").read_text() == "x\n"


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    environment = install(tmp_path / "bin", "exit 0")
    (tmp_path / "x.tar").write_text("no archive")
    for arguments, message in (
        (["folder", "resnet21"], "no experiment 'resnet21', only resnet20, resnet56, falsify"),
        ([tmp_path / "x.tar"], f"{tmp_path}/x.tar: cannot be unpacked ("),
        (["--resume", tmp_path / "no.tar.gz", "folder"], f"{tmp_path}/no.tar.gz: no such archive"),
    ):
        run = headline(environment, *arguments)
        assert run.returncode in (1, 2) and message in run.stderr.splitlines()[-1]
    run = headline({**environment, "PYTHON": "/nowhere/python"}, "folder")
    assert run.stderr == "headline.sh: /nowhere/python is not found: set PYTHON\n"


def test_where_none_is_installed_the_checkout_is_used(tmp_path, monkeypatch):
    import headline as script

    monkeypatch.setenv("PYTHON", "python3")
    monkeypatch.setenv("PYTHONPATH", "/other")
    monkeypatch.setenv("DEVICE", "cpu")
    built = []
    monkeypatch.setattr(
        subprocess, "run",
        lambda command, **_: built.append(command) or subprocess.CompletedProcess(command, 0),
    )  # fmt: skip
    assert script.command() == (
        [sys.executable, "-m", "cpfast"], {"PYTHONPATH": f"{ROOT}{os.pathsep}/other"},
    )  # fmt: skip
    monkeypatch.setenv("DEVICE", "cuda:0")
    script.command()
    assert [c[1:] for c in built] == [
        [str(ROOT / "benchmarks/in_place.py")], [str(ROOT / "benchmarks/in_place.py"), "--cuda"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["compare", "--arms", "full,k1,detector", "--criterion", "fixed", "--at", "1"],
        [
            "study",
            "falsify",
            "--batch-factors",
            "1",
            "--decay-factors",
            "1",
            "--epoch-factors",
            "1",
        ],
        ["study", "oracle", "--oracle-settings", "base", "--switch-epochs", "1"],
    ],
    ids=["arms", "falsify", "oracle"],
)
def test_checkpoints_of_stored_runs_are_found(options, tmp_path):
    """All that there are, once the comparison is finished; of any kind."""
    import headline as script

    from cpfast import cli

    out = tmp_path / "out"
    common = ["--data", "digits", "--limit", "64", "--epochs", "2", "--seeds", "1"]
    common += ["--no-energy", "--no-plot", "--threads", "1", "--batch-size", "32"]
    assert cli.main([*options, *common, "--out", str(out)]) == 0
    found = set(script.stored_runs(json.loads((out / "results.json").read_text())))
    assert found == {str(path.parent.relative_to(out)) for path in out.rglob("last.pt")}
    assert len(found) >= 2


def test_full_is_needed_while_an_arm_of_its_seed_is_to_come():
    import headline as script

    results = {"kind": "arms", "arms": ["full", "k1"], "runs": [
        {"seed": 0, "arm": "full"}, {"seed": 0, "arm": "k1"}, {"seed": 1, "arm": "full"},
    ]}  # fmt: skip
    assert list(script.stored_runs(results)) == ["seed0/full", "seed0/k1"]
