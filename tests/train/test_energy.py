"""Energy, CO2e, cost: fields, measured or estimated, sums over a resume, codecarbon missing."""

import json
import logging
import os
import sys
import time
import types

import pytest
import torch

from cpfast.train import energy, report
from cpfast.train.config import Config
from cpfast.train.energy import EnergyMeter, grams_per_kwh
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


class Counters:
    """In the place of codecarbon: what its tracker reads, set by the test."""

    def __init__(self):
        self.totals = types.SimpleNamespace(
            cpu_energy=2.0, gpu_energy=30.0, ram_energy=1.0, codecarbon_version="0"
        )
        self.hardware = []

    @property
    def tracker(self):
        counters = self

        class Tracker:
            def __init__(self, output_handlers):
                self._keep, self._hardware = output_handlers[0], counters.hardware

            def start(self):
                pass

            def flush(self):
                if counters.totals is not None:
                    self._keep.out(counters.totals, None)

            stop = flush

        return Tracker


def hardware(kind, **attributes):
    return type(kind, (), attributes)()


@pytest.fixture
def counters(monkeypatch):
    """2 kWh of the CPU, 30 of the GPU, 1 of memory; the world has 400 g/kWh, Atlantis 100."""
    counters = Counters()
    tables = types.SimpleNamespace(
        get_carbon_intensity_per_source_data=lambda: {"world_average": 400},
        get_global_energy_mix_data=lambda: {"ATL": {"carbon_intensity": 100.0}, "MUU": {}},
    )
    modules = {
        "codecarbon": {"OfflineEmissionsTracker": counters.tracker},
        "codecarbon.input": {"DataSource": lambda: tables},
        "codecarbon.output_methods.base_output": {"BaseOutput": object},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(energy, "_gpu_ids", lambda device: None)
    clock = iter(range(0, 10**9, 1800))  # half an hour from one look to the next
    monkeypatch.setattr(energy, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    return counters


def table(values):
    """The rows that `cpfast train` prints of it."""
    return dict(report._energy_rows(values))


def test_sums_co2e_and_cost(counters):
    used = EnergyMeter(CPU, country="ATL", price_kwh=0.5, price_hour=8.0).stop()
    assert used["components"] == {
        "cpu": {"kwh": 2.0, "source": "estimated"},
        "gpu": {"kwh": 0.0, "source": "none"},
        "ram": {"kwh": 1.0, "source": "estimated"},
    }
    assert (used["kwh"], used["source"], used["seconds"]) == (3.0, "estimated", 1800.0)
    assert used["co2e"] == {
        "kg": pytest.approx(0.3), "source": "estimated", "country": "ATL", "grams_per_kwh": 100.0
    }  # fmt: skip
    assert used["cost"] == {
        "value": 5.5, "source": "estimated", "by_kwh": 1.5, "by_hour": 4.0,
        "price_kwh": 0.5, "price_hour": 8.0,
    }  # fmt: skip
    assert table(used) == {
        "energy": "estimated 3e+03 Wh, evaluation included (CPU 2e+03 estimated, "
        "RAM 1e+03 estimated)",
        "CO2e": "estimated 300 g (100 g a kWh, the mean of ATL)",
        "cost": "estimated 5.5, evaluation included (0.5 a kWh, 8 an hour)",
    }


def test_measured_is_what_has_a_counter(counters):
    counters.hardware += [
        hardware("CPU", _mode="intel_rapl"), hardware("GPU"), hardware("RAM")
    ]  # fmt: skip
    used = EnergyMeter(GPU).stop()
    sources = {name: part["source"] for name, part in used["components"].items()}
    assert sources == {"cpu": "measured", "gpu": "measured", "ram": "estimated"}
    assert (used["kwh"], used["source"]) == (33.0, "estimated")
    assert used["co2e"]["kg"] == pytest.approx(33 * 0.4) and used["co2e"]["country"] is None
    assert table(used)["CO2e"].endswith("(400 g a kWh, the world's mean)")
    # all parts measured: the sum is
    counters.hardware[-1] = hardware("Apple", chip_part="RAM")
    used = EnergyMeter(GPU, price_kwh=1.0).stop()
    assert used["source"] == used["cost"]["source"] == "measured"
    assert used["co2e"]["source"] == "estimated"


def test_a_resumed_run_is_counted_as_one(counters):
    before = EnergyMeter(CPU, country="ATL", price_kwh=9.0).stop()
    used = EnergyMeter(CPU, before, price_kwh=0.5, price_hour=8.0).stop()
    assert (used["kwh"], used["seconds"]) == (6.0, 3600.0)
    # the country and the prices of now, for all of it
    assert used["co2e"]["kg"] == pytest.approx(2.4)
    assert (used["cost"]["by_kwh"], used["cost"]["by_hour"]) == (3.0, 8.0)


def test_a_pause_does_not_count(counters):
    meter = EnergyMeter(CPU, price_hour=8.0)
    with meter.paused():
        counters.totals.cpu_energy, counters.totals.ram_energy = 7.0, 4.0
    counters.totals.cpu_energy = 7.5
    used = meter.stop()
    assert {name: part["kwh"] for name, part in used["components"].items()} == {
        "cpu": 2.5, "gpu": 0.0, "ram": 1.0
    }  # fmt: skip
    # three looks at the clock, of which the first two are the pause
    assert (used["kwh"], used["seconds"], used["cost"]["by_hour"]) == (3.5, 3600.0, 8.0)


def test_without_a_counter_a_pause_is_one_of_time(counters):
    meter = EnergyMeter(CPU, measure=False)
    with meter.paused():
        pass
    used = meter.stop()
    assert (used["kwh"], used["seconds"]) == (None, 3600.0)


def test_a_sum_of_measured_and_estimated_is_estimated(counters):
    before = {
        "kwh": 5.0, "seconds": 5.0,
        "components": {"ram": {"kwh": 3.0, "source": "measured"},
                       "gpu": {"kwh": 2.0, "source": "measured"}},
    }  # fmt: skip
    used = EnergyMeter(CPU, before).stop()
    assert used["components"]["ram"] == {"kwh": 4.0, "source": "estimated"}
    # not used since, so what was measured stands
    assert used["components"]["gpu"] == {"kwh": 2.0, "source": "measured"}


def test_the_energy_of_an_earlier_version(counters):
    before = {
        "kwh": 3.0, "seconds": 1800.0, "tool": "codecarbon 3.3.2",
        "components": {"cpu": {"kwh": 3.0, "source": "estimated"},
                       "gpu": {"kwh": 0.0, "source": "none"}},
    }  # fmt: skip
    assert table(before) == {
        "energy": "estimated 3e+03 Wh, evaluation included (CPU 3e+03 estimated)"
    }
    assert EnergyMeter(CPU, before).stop()["co2e"]["kg"] == pytest.approx(6 * 0.4)


def test_time_has_a_cost_without_any_energy(counters, monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    used = EnergyMeter(CPU, measure=False, price_kwh=0.5, price_hour=8.0).stop()
    assert used["kwh"] is None and used["co2e"] is None and used["components"] == {}
    assert (used["cost"]["value"], used["cost"]["source"]) == (4.0, "measured")
    assert table(used) == {
        "energy": "not measured",
        "cost": "measured 4, evaluation included (0.5 a kWh left out: not measured, 8 an hour)",
    }
    only_kwh = EnergyMeter(CPU, measure=False, price_kwh=0.5).stop()
    assert only_kwh["cost"] is None and table(only_kwh) == {"energy": "not measured"}


def test_a_run_metered_in_part_has_no_energy(counters):
    first = EnergyMeter(CPU, measure=False).stop()
    second = EnergyMeter(CPU, first, price_hour=8.0).stop()
    assert second["kwh"] is None and second["co2e"] is None
    assert second["cost"]["value"] == 8.0
    # nor where codecarbon, whose errors are silent, gave nothing
    counters.totals = None
    assert EnergyMeter(CPU).read()["kwh"] is None


def test_a_country_without_data_is_refused(counters):
    for code in ("XYZ", "MUU", "atl", "DE"):
        with pytest.raises(UserError, match=rf"--country {code}: codecarbon has no data"):
            EnergyMeter(CPU, country=code)


def test_the_meter_of_a_run(counters, tmp_path):
    folder = RunFolder(tmp_path)
    config = Config.from_options({"country": "ATL", "price_kwh": 2.0, "price_hour": 0.0})
    folder.save_energy(energy.start(config, folder).stop())
    used = energy.start(config, folder).stop()
    assert (used["kwh"], used["co2e"]["country"], used["cost"]["value"]) == (6.0, "ATL", 12.0)
    (tmp_path / "energy.json").write_text('{"kwh": 1.0, "seconds": 1.0, "components": {"cpu": 1}}')
    with pytest.raises(UserError, match=f"{tmp_path}/energy.json: damaged"):
        energy.start(config, folder)


def test_countries_of_codecarbon_itself():
    pytest.importorskip("codecarbon")
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    reference = Emissions(DataSource())
    for country in ("BRA", "DEU", "USA", None):
        kg = reference.get_country_emissions(
            Energy.from_energy(kWh=1), GeoMetadata(country_iso_code=country)
        )
        assert grams_per_kwh(country) == pytest.approx(1000 * kg)
    with pytest.raises(UserError, match="--country ZZZ: codecarbon has no data for it"):
        grams_per_kwh("ZZZ")


def work(seconds):
    end = time.monotonic() + seconds
    x = torch.randn(200, 200)
    while time.monotonic() < end:
        x @ x


def test_codecarbon_itself(capfd, tmp_path, monkeypatch):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    meter = EnergyMeter(CPU, price_hour=3600.0)
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
    assert last["source"] == "estimated" and last["tool"].startswith("codecarbon ")
    assert last["co2e"]["kg"] == pytest.approx(last["kwh"] * grams_per_kwh(None) / 1000)
    assert last["cost"]["value"] == pytest.approx(last["seconds"])

    after = EnergyMeter(CPU, before=last).stop()
    assert after["kwh"] >= last["kwh"] and after["seconds"] >= last["seconds"]
    assert after["components"]["ram"]["kwh"] >= last["components"]["ram"]["kwh"]

    output = capfd.readouterr()
    assert output.out == "" and output.err == ""
    assert list(tmp_path.iterdir()) == []  # no emissions.csv
    assert logging.getLogger("codecarbon").level == logging.CRITICAL


def test_every_argument_of_codecarbon_is_given():
    """One that a later version adds must be thought about."""
    codecarbon = pytest.importorskip("codecarbon")
    arguments = energy._arguments(codecarbon.OfflineEmissionsTracker)
    assert arguments == energy._SETTINGS.keys() | {"gpu_ids", "output_handlers"}


def test_a_persons_own_settings_of_codecarbon_change_nothing(tmp_path, monkeypatch, capfd):
    codecarbon = pytest.importorskip("codecarbon")
    for name in [name for name in os.environ if name.lower().startswith("codecarbon_")]:
        monkeypatch.delenv(name)
    home, here, foreign = tmp_path / "home", tmp_path / "here", tmp_path / "foreign"
    for folder in (home, here, foreign):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    given = {"output_dir": str(foreign), "output_methods": "csv", "gpu_ids": "0,1",
             "tracking_mode": "machine", "log_level": "debug"}  # fmt: skip
    trues = ("save_to_file", "save_to_logger", "force_mode_cpu_load", "rapl_include_dram")
    arguments = sorted(energy._arguments(codecarbon.OfflineEmissionsTracker))
    settings = {
        name: given.get(name, "true" if name in trues else "3")
        for name in arguments
        # which would print, or reach for a network
        if name not in ("save_to_api", "save_to_prometheus", "save_to_logfire")
    }

    def used():
        meter = EnergyMeter(CPU)
        tracker = meter._tracker
        assert meter.stop()["kwh"] is not None
        attributes = {name: getattr(tracker, f"_{name}", None) for name in arguments}
        assert len(attributes.pop("output_handlers")) == 1
        return {**tracker._conf, "output_handlers": None, "gpu_ids": None}, attributes

    plain = used()
    assert plain[1]["pue"] == 1.0 and plain[1]["force_cpu_power"] is None
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    for folder in (home, here):
        (folder / ".codecarbon.config").write_text(f"[codecarbon]\n{text}")
    assert used() == plain
    for name, value in settings.items():
        monkeypatch.setenv(f"CODECARBON_{name.upper()}", value)
    assert used() == plain
    assert list(foreign.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_a_damaged_settings_file_of_codecarbon_is_named(tmp_path, monkeypatch):
    pytest.importorskip("codecarbon")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".codecarbon.config").write_text("no section\n")
    with pytest.raises(UserError, match=r"mend its settings file, .codecarbon.config"):
        EnergyMeter(CPU)


def test_without_codecarbon_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(UserError, match=r"extra cpfast\[train\], .*, or pass --no-energy"):
        EnergyMeter(CPU)
