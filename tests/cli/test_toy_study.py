"""A study of somebody's own: one class, registered from outside the package."""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from functools import partial

import pytest

from cpfast import cli
from cpfast.studies import Document, Study, Table, configured, studies
from cpfast.studies.store import entry_of
from cpfast.train.runfolder import RunFolder, write_atomically

QUICK = ["--limit", "20", "--batch-size", "10", "--epochs", "1", "--threads", "1", "--no-energy"]


@pytest.fixture
def toy(monkeypatch):
    """Registered as a module's decorator would, for one test."""
    len(studies)  # complete
    monkeypatch.setattr(studies, "_entries", dict(studies._entries))

    @studies.register("toy", source="a test")
    @dataclass(frozen=True)
    class Rates(Study):
        """Which learning rate is best."""

        rates: tuple[float, ...] = (0.1, 0.2)

        KIND = "toy"
        HEAD = {"rates": list}  # noqa: RUF012
        KEY = {"rate": (float,), "seed": (int,)}  # noqa: RUF012

        @classmethod
        def add_options(cls, parser: argparse.ArgumentParser):
            parser.add_argument("--rates", type=float, nargs="+")

        @classmethod
        def from_options(cls, options):
            given = {} if options["rates"] is None else {"rates": tuple(options["rates"])}
            return cls(*configured(options), **given)

        def wanted(self, results):
            return len(self.rates) * len(self.seeds)

        def run(self, runner):
            for seed in self.seeds:
                for rate in self.rates:
                    if runner.find(rate=rate, seed=seed) is None:
                        config = self.config.replace(lr=rate, seed=seed)
                        folder = RunFolder(runner.out / f"seed{seed}" / f"rate{rate}")
                        diverged = runner.train(config, folder, f"rate {rate}")
                        runner.store({"rate": rate, **entry_of(folder, seed, diverged)})

        def document(self, results):
            rows = [(str(e["rate"]), self.outcome(e)) for e in results["runs"]]
            return Document("Rates", [Table(("rate", "accuracy"), rows)], ["A note."])

        def pictures(self, results):
            text = str(len(results["runs"])).encode()
            return {"rates.png": partial(write_atomically, write=lambda file: file.write(text))}

    return Rates


def test_it_runs_is_reported_and_listed(toy, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["study", "toy", *QUICK, "--seeds", "2", "--rates", "0.05", "--out", str(out)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "seed 1  0.05  " in shown and f"picture: {out}/rates.png" in shown
    results = json.loads((out / "results.json").read_text())
    assert (results["kind"], results["rates"]) == ("toy", [0.05])
    assert [(e["rate"], e["seed"], e["epochs"]) for e in results["runs"]] == [
        (0.05, 0, 1), (0.05, 1, 1)
    ]  # fmt: skip
    assert (out / "rates.png").read_bytes() == b"2"
    assert cli.main(["report", str(out)]) == 0
    report = capsys.readouterr().out
    assert report.startswith("Rates\n") and report in shown
    assert cli.main(["list"]) == 0
    assert "\n  toy " in (listed := capsys.readouterr().out)
    assert "Which learning rate is best (a test)\n" in listed
    # the same command finds all done
    assert cli.main(command) == 0
    assert "2 of 2 runs done" in capsys.readouterr().out


def test_its_name_makes_its_default_folder(toy, capsys):
    from cpfast.studies import store

    made = toy(*configured({"seeds": 1}))
    assert store.default_folder(made).name.startswith("toy-digits-cnn-")
    assert dataclasses.replace(made, seeds=(0, 1)) != made


def test_results_of_a_study_that_is_not_here_are_named(toy, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert cli.main(["study", "toy", *QUICK, "--seeds", "1", "--out", str(out)]) == 0
    del studies._entries["toy"]
    capsys.readouterr()
    assert cli.main(["report", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"cpfast: error: {out}/results.json: of the kind 'toy', which no study here has "
        f"({', '.join(studies)})\n"
    )
