"""The fixture of all benchmarks, and what their JSON holds: one record a contender of a case."""

import pathlib
import time

import harness
import pytest
import rivals
import rows
import torch
from table import table

STARTED = time.monotonic()
ROWS = pytest.StashKey[list]()
ROW = pytest.StashKey[dict]()
BANDWIDTH = pytest.StashKey[dict]()
# What a case may hold in a rehearsal.
REHEARSAL_BYTES = 256 << 20


def pytest_addoption(parser, pluginmanager):
    add = parser.addoption
    add("--seconds", type=float, default=float("inf"), help="start no benchmark after so many")
    add(
        "--rows",
        type=pathlib.Path,
        help="file that gets a line of JSON a case as it ends; cases that are in it are left out",
    )
    add(
        "--rehearse",
        action="store_true",
        help="the cases of a GPU on the CPU, small ones alone: inputs, and cpfast's contender once",
    )
    if not pluginmanager.hasplugin("benchmark"):
        add("--benchmark-disable", action="store_true", help="only try each contender once")


def pytest_configure(config):
    config.stash[ROWS], config.stash[BANDWIDTH] = [], {}
    # Its own table would show rounds of all contenders together.
    config.option.benchmark_quiet = True
    if config.option.rehearse:
        free = harness.free_bytes
        harness.free_bytes = lambda device: min(REHEARSAL_BYTES, free(device))


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        rehearsed = metafunc.config.option.rehearse
        devices, names = (["cpu"], ["cuda"]) if rehearsed else (harness.devices(), None)
        metafunc.parametrize("device", devices, ids=names, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    path = config.option.rows
    if path is None:
        return
    rows.append(path, {"collected": [item.nodeid for item in items]})
    found = rows.read(path)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in found])
    items[:] = [item for item in items if item.nodeid not in found]


def keep(config, row):
    if config.option.rows is not None:
        rows.append(config.option.rows, row)


def pytest_runtest_setup(item):
    item.stash[ROW] = {"case": item.nodeid, "state": "begun", "records": [], "notes": {}}
    keep(item.config, {"case": item.nodeid, "state": "begun"})
    if time.monotonic() - STARTED > item.config.option.seconds:
        pytest.skip(f"cut: --seconds {item.config.option.seconds:g} are over")


def cuda_is_lost():
    """After a fault on the GPU every call of the process fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    row, config = item.stash[ROW], item.config
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
        row["state"] = "cut" if reason.startswith("cut: ") else "skipped"
        row["notes"][item.nodeid] = reason
    elif report.failed:
        row["state"], row["why"] = "failed", harness.first_line(call.excinfo.value)
        if cuda_is_lost():
            item.session.shouldstop = f"CUDA is lost after {item.name}"
    if report.when == "teardown":
        if row["state"] == "begun":
            row["state"] = "done"
        row["bandwidth"] = bandwidths(config)
        config.stash[ROWS].append(row)
        keep(config, row)


@pytest.fixture
def device(request):
    return request.param


@pytest.fixture
def bandwidth(request):
    """GB/s of a device, measured once a session: {"copy": ..., "sum": ...}."""

    def measure(device):
        known = request.config.stash[BANDWIDTH]
        if device not in known:
            option = request.config.option
            size = 1 << 20 if option.benchmark_disable or option.rehearse else None
            known[device] = harness.measured_bandwidth(device, size)
        return known[device]

    return measure


def play(request, function, rounds):
    """By pytest-benchmark where it is, which has a JSON of its own to write."""
    if request.config.pluginmanager.hasplugin("benchmark"):
        request.getfixturevalue("benchmark").pedantic(function, rounds=rounds)
        return
    for _ in range(rounds):
        function()


@pytest.fixture
def race(request, bandwidth, device):
    """Times all contenders of one case in turns; `python -m benchmarks.table` prints them.

    race(op, case, contenders, sets, bytes_moved, **options of harness.Race): contenders are
    {name: function(*set)}, of which "cpfast" is what ratios refer to; bytes_moved is the least
    that the op must read and write, or None; extra(Race) gives more to record.
    """

    def run(op, case, contenders, sets, bytes_moved, extra=None, **options):
        rates, row = bandwidth(device), request.node.stash[ROW]
        rehearsed = request.config.option.rehearse
        brief = rehearsed or request.config.option.benchmark_disable
        if rehearsed:
            contenders, extra = {"cpfast": contenders["cpfast"]}, None
        field = harness.Race(contenders, sets, device, brief=brief, **options)
        play(request, field.round, 1 if brief else field.rounds)
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
            info |= {"rehearsal": True} if rehearsed else {}
            row["records"].append(
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
            row["notes"][f"{op}, {case}, {device}"] = field.left_out | differs
        return results

    return run


def bandwidths(config):
    return {
        device: {name: harness.significant(rate) for name, rate in rates.items()}
        for device, rates in config.stash[BANDWIDTH].items()
    }


def results(config):
    return {"rivals": rivals.installed(), **rows.merge(config.stash[ROWS])}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, output_json):
    # One record a contender, in pytest-benchmark's form.
    output_json.update(results(config))
    # Results are committed: without the machine's own name, its kernel, and the checkout's folder.
    for part, names in (("machine_info", ["node", "release"]), ("commit_info", ["project"])):
        for name in names:
            output_json[part].pop(name, None)
    output_json["machine_info"]["cpu"].pop("flags", None)


def pytest_terminal_summary(terminalreporter, config):
    found = results(config)
    if found["benchmarks"]:
        terminalreporter.write_line("")
        terminalreporter.write_line(table(found))
