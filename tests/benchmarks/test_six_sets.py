"""The plain loop beside `cpfast train`: what is tuned on what, and what a stop leaves."""

import json
import sys

import pytest

six_sets = pytest.importorskip("benchmarks.six_sets")


@pytest.fixture
def calls(monkeypatch):
    """Of training; the third of them is stopped, once."""
    made = []

    def stopping(what, accuracy):
        made.append(what)
        if len(made) == 3 and what != "again":
            made.append("stopped")
            raise KeyboardInterrupt
        return accuracy

    def plain_loop(config, dataset, settings, seed):
        return stopping(("plain", dataset.train_size, seed), settings["lr"])

    monkeypatch.setattr(six_sets, "plain_loop", plain_loop)
    monkeypatch.setattr(
        six_sets, "trained", lambda config, _: stopping(("cpfast", config.seed), 0.5)
    )
    return made


def run(monkeypatch, path):
    arguments = ["--sets", "digits", "--seeds", "2", "--trials", "4", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", ["six_sets", *arguments])
    six_sets.main()


@pytest.mark.needs("sklearn")
def test_a_stop_leaves_what_was_done_and_the_test_data_choose_nothing(
    monkeypatch, tmp_path, calls, capsys
):
    path = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, path)
    assert len(json.loads(path.read_text())["unfinished"]["digits"]) == 2
    run(monkeypatch, path)
    inner = 256 - 256 // six_sets.HELD_OUT
    tuned = [("plain", inner, 0)]
    assert calls == [
        *tuned * 3, "stopped", *tuned * 2, ("cpfast", 0), ("plain", 256, 0), ("cpfast", 1),
        ("plain", 256, 1),
    ]  # fmt: skip
    found = json.loads(path.read_text())
    assert "unfinished" not in found
    best = max(six_sets.drawn(4, True), key=lambda one: one["lr"])
    assert found["sets"]["digits"]["tuned"] == {**best, "validation": 100 * best["lr"]}
    assert found["sets"]["digits"]["plain"]["accuracy"] == [100 * best["lr"]] * 2
    assert "| digits | 50.00 |" in capsys.readouterr().out
