"""Energy: its fields, measured or estimated, sums over a resume, codecarbon missing."""

import json
import logging
import sys
import time

import pytest
import torch

from cpfast.train.energy import EnergyMeter
from cpfast.train.errors import UserError

CPU = torch.device("cpu")


def work(seconds):
    end = time.monotonic() + seconds
    x = torch.randn(200, 200)
    while time.monotonic() < end:
        x @ x


def test_fields_and_sums_over_a_resume(capfd, tmp_path, monkeypatch):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    meter = EnergyMeter(CPU)
    work(1.2)
    first = meter.read()
    work(0.3)
    last = meter.stop()
    assert json.loads(json.dumps(last)) == last
    assert set(last["components"]) == {"cpu", "gpu", "ram"}
    assert last["kwh"] == pytest.approx(sum(c["kwh"] for c in last["components"].values()))
    assert 0 < first["kwh"] < last["kwh"] < 1e-3  # 1.5 s of anything below 2 MW
    assert 1.5 <= last["seconds"] < 60
    assert last["components"]["ram"]["source"] == "estimated"
    assert last["components"]["gpu"] == {"kwh": 0.0, "source": "none"}
    assert last["components"]["cpu"]["source"] in ("measured", "estimated")
    assert last["tool"].startswith("codecarbon ")

    after = EnergyMeter(CPU, before=last).stop()
    assert after["kwh"] >= last["kwh"] and after["seconds"] >= last["seconds"]
    assert after["components"]["ram"]["kwh"] >= last["components"]["ram"]["kwh"]

    output = capfd.readouterr()
    assert output.out == "" and output.err == ""
    assert list(tmp_path.iterdir()) == []  # no emissions.csv
    assert logging.getLogger("codecarbon").level == logging.CRITICAL


def test_a_sum_of_measured_and_estimated_is_estimated():
    pytest.importorskip("codecarbon")
    before = {
        "kwh": 3.0,
        "seconds": 5.0,
        "components": {"ram": {"kwh": 3.0, "source": "measured"}},
    }
    total = EnergyMeter(CPU, before=before).stop()
    assert total["components"]["ram"]["source"] == "estimated"
    assert total["components"]["ram"]["kwh"] >= 3.0


def test_without_codecarbon_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(UserError, match=r"extra cpfast\[train\], .*, or pass --no-energy"):
        EnergyMeter(CPU)
