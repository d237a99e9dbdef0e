"""The fixture of all benchmarks, and what their JSON holds: one record a contender of a case."""

import time

import harness
import pytest
import rivals
import torch
from table import table

STARTED = time.monotonic()
RECORDS = pytest.StashKey[list]()
NOTES = pytest.StashKey[dict]()
BANDWIDTH = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption(
        "--seconds", type=float, default=float("inf"), help="start no benchmark after so many"
    )


def pytest_configure(config):
    config.stash[RECORDS], config.stash[NOTES], config.stash[BANDWIDTH] = [], {}, {}
    # Its own table would show rounds of all contenders together.
    config.option.benchmark_quiet = True


def pytest_runtest_setup(item):
    if time.monotonic() - STARTED > item.config.option.seconds:
        pytest.skip(f"cut: --seconds {item.config.option.seconds:g} are over")


@pytest.fixture(params=harness.devices())
def device(request):
    return request.param


@pytest.fixture
def bandwidth(request):
    """GB/s of a device, measured once a session: {"copy": ..., "sum": ...}."""

    def measure(device):
        known = request.config.stash[BANDWIDTH]
        if device not in known:
            size = 1 << 20 if request.config.option.benchmark_disable else None
            known[device] = harness.measured_bandwidth(device, size)
        return known[device]

    return measure


@pytest.fixture
def race(request, benchmark, bandwidth, device):
    """Times all contenders of one case in turns; `python -m benchmarks.table` prints them.

    race(op, case, contenders, sets, bytes_moved, **options of harness.Race): contenders are
    {name: function(*set)}, of which "cpfast" is what ratios refer to; bytes_moved is the least
    that the op must read and write, or None; extra(Race) gives more to record.
    """

    def run(op, case, contenders, sets, bytes_moved, extra=None, **options):
        rates = bandwidth(device)
        field = harness.Race(contenders, sets, device, brief=benchmark.disabled, **options)
        benchmark.pedantic(field.round, rounds=1 if benchmark.disabled else field.rounds)
        # On the CPU a sum, which only reads, may be the faster of the two.
        peak_rate = max(rates.values()) if device == "cpu" else rates["copy"]
        results = field.results()
        more = extra(field) if extra else {}
        for name, result in results.items():
            stats = result.pop("stats")
            info = {"op": op, "case": case, "device": device, "contender": name}
            info["bytes"] = bytes_moved
            if bytes_moved:
                rate = bytes_moved / stats["median"] / 1e9
                info["gbps"] = harness.significant(rate)
                info["fraction"] = harness.significant(rate / peak_rate)
            info |= {**result, **more}
            request.config.stash[RECORDS].append(
                {
                    "group": f"{op} {case} {device}",
                    "name": request.node.name,
                    "fullname": request.node.nodeid,
                    "extra_info": info,
                    "stats": stats,
                }
            )
        differs = {name: f"timed, but differs: {why}" for name, why in field.differs.items()}
        if field.left_out or differs:
            notes = request.config.stash[NOTES]
            notes[f"{op}, {case}, {device}"] = field.left_out | differs
        return results

    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped:
        item.config.stash[NOTES][item.nodeid] = report.longrepr[2].removeprefix("Skipped: ")


def results(config):
    return {
        "bandwidth": {
            device: {name: harness.significant(rate) for name, rate in rates.items()}
            for device, rates in config.stash[BANDWIDTH].items()
        },
        "rivals": rivals.installed(),
        "notes": config.stash[NOTES],
        "benchmarks": config.stash[RECORDS],
    }


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_json(config, output_json):
    # One record a contender, in pytest-benchmark's form.
    output_json.update(results(config))
    # Results are committed: without the machine's own name, its kernel, and the checkout's folder.
    for part, names in (("machine_info", ["node", "release"]), ("commit_info", ["project"])):
        for name in names:
            output_json[part].pop(name, None)
    output_json["machine_info"]["cpu"].pop("flags", None)


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[RECORDS]:
        terminalreporter.write_line("")
        terminalreporter.write_line(table(results(config)))
