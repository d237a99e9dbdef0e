"""The presets' tuning: folds of training data alone, halved as it goes, the preset always there."""

import json
import sys

import pytest
import torch

from cpfast.train import data

pytest.importorskip("sklearn")
tune_presets = pytest.importorskip("benchmarks.tune_presets")


def test_each_training_sample_is_validated_on_once_and_no_test_sample_ever():
    dataset = data.load("digits")
    parts = [tune_presets.fold(dataset, number) for number in range(tune_presets.FOLDS)]
    together = torch.cat([part.test_images for part in parts])
    assert len(together) == dataset.train_size
    order = torch.argsort(together.flatten(1).double() @ torch.arange(64.0).double().cos())
    known = torch.argsort(
        dataset.train_images.flatten(1).double() @ torch.arange(64.0).double().cos()
    )
    assert torch.equal(together[order], dataset.train_images[known])
    for part in parts:
        assert part.train_size + part.test_size == dataset.train_size


def test_candidates_are_halved_and_the_preset_stays(tmp_path, monkeypatch, capsys):
    calls = []

    def validated(config, part):
        calls.append((config.lr, config.epochs, config.batch_size, config.optimizer))
        # the preset is worse than all others
        return 50.0 if calls[-1] == calls[0] else 90.0 + config.lr

    monkeypatch.setattr(tune_presets, "validated", validated)
    out = tmp_path / "presets.json"
    arguments = ["x", "--sets", "digits", "--candidates", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    tune_presets.main()
    found = json.loads(out.read_text())["sets"]["digits"]
    tried = [len(one["accuracy"]) for one in found["candidates"]]
    assert tried[0] == 5 and sorted(tried[1:]) == [1, 1, 1, 2, 5, 5, 5]
    assert found["candidates"][0]["changes"] == {} and found["best"] > 0
    highest = max(found["candidates"], key=lambda one: one["accuracy"][0])
    assert found["candidates"][found["best"]] == highest
    assert capsys.readouterr().out.startswith("| digits | 50.00 | 9")


def test_a_candidate_scales_what_the_preset_has_for_it():
    preset = tune_presets.configured("digits", {}, 200)
    other = {"batch_size": 64, "optimizer": "adamw", "lr_factor": 2.0, "epochs_factor": 0.5}
    config = tune_presets.configured("digits", {**other, "label_smoothing": 0.0}, 200)
    assert (config.lr, config.batch_size, config.label_smoothing) == (0.004, 64, 0.0)
    assert config.epochs == 50 and preset.epochs == 100 and preset.optimizer == "sgd"
