"""What the tests of studies share: tiny data, settings, and how a run is looked at."""

import pytest
import torch

from cpfast import studies
from cpfast.studies import store
from cpfast.studies.store import study_of
from cpfast.train import run
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.runfolder import RunFolder
from support.toy_training import without_times

TRAIN = 24
EPOCHS = 6
END = 2
ENVIRONMENT = {
    "cpfast": "1", "torch": "2", "python": "3", "platform": "Linux", "cpu": "some CPU",
    "processors": 2, "gpu": None, "begun": "2026-01-31T00:00:00+00:00",
}  # fmt: skip


def toy_data():
    generator = torch.Generator().manual_seed(0)

    def make(count):
        labels = torch.arange(count) % 3
        images = torch.randint(0, 200, (count, 6, 6, 1), generator=generator, dtype=torch.uint8)
        for label in range(3):
            images[labels == label, 2 * label : 2 * label + 2] += 55
        return images, labels

    return ImageData(*make(TRAIN), *make(30), ("a", "b", "c"), "toy")


def make_config(**options):
    base = {
        "epochs": EPOCHS, "batch_size": 8, "model": "cnn", "method": "full", "lr": 0.05,
        "criterion": "fixed", "at": END, "energy": False,
    }  # fmt: skip
    return Config.from_options({**base, **options})


def metrics(path):
    return without_times(RunFolder(path).metrics())


def scratch(path, config):
    """The same run, begun anew."""
    folder = RunFolder(path)
    folder.create(config)
    run.train(config, toy_data(), folder)
    return folder


def assert_same_run(a, b):
    """Equal to the bit; what a fork's beginning says of the period is as full judged it."""
    judged = {"period_end", "period_end_reason", "slope", "censored", "criteria"}
    lines = [
        [{k: v for k, v in line.items() if k not in judged} for line in metrics(path)]
        for path in (a, b)
    ]
    assert lines[0] == lines[1] and metrics(a)[-1] == metrics(b)[-1]
    first, second = RunFolder(a).checkpoint(), RunFolder(b).checkpoint()
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(w, second["model"][name]) for name, w in first["model"].items())
    columns, others = (state["pruner"]["columns"] for state in (first, second))
    assert all(torch.equal(column, others[name]) for name, column in columns.items())


def made_up(study, runs):
    """Results of a study in which runs, by what identifies them, came to these accuracies."""
    entries = []
    for key, accuracy in runs:
        entry = store.entry_of(None, key["seed"], None)
        entries.append({**entry, "test_accuracy": accuracy, "epochs": 1, "seconds": 1.0, **key})
    head = {"kind": study.KIND, "config": study.config.to_dict(), "seeds": list(study.seeds)}
    head |= {"train_size": TRAIN, "environments": [ENVIRONMENT]}
    return {**head, **study.settings(), "runs": entries}


def told(results):
    """The document's text without its line breaks."""
    return " ".join(studies.document(results).text().split())


def essence(results):
    """What does not depend on the machine."""
    times = {"seconds", "evaluation_seconds", "detection_seconds", "preparation_seconds", "curve",
             "energy"}  # fmt: skip
    return [{k: v for k, v in e.items() if k not in times} for e in results["runs"]]


def draw(results, name, path):
    """A picture of a study."""
    study_of(results).pictures(results)[name](path)


class Stop(Exception):
    pass


def drawn(monkeypatch):
    """The figures that will be closed."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    return figures


def run_with_stops(plan, out):
    """Stopped after every run, and begun again."""
    ended = []

    def stop(entry):
        ended.append(entry)
        raise Stop

    while True:
        try:
            results = studies.run(plan, toy_data(), out, finished=stop)
        except Stop:
            assert len(studies.read_results(out)["runs"]) == len(ended)
            continue
        return results, len(ended)


def damage(results, key):
    """Without `key`, which is of the whole or of an entry."""
    if key in results:
        return {name: value for name, value in results.items() if name != key}
    entry = {name: value for name, value in results["runs"][1].items() if name != key}
    return {**results, "runs": [results["runs"][0], entry]}


def check_picture(path, *colours):
    image_module = pytest.importorskip("PIL.Image")
    image = image_module.open(path).convert("RGB")
    assert image.width > 600 and image.height > 400
    found = {colour for _, colour in image.getcolors(1 << 20)}
    for colour in colours:
        assert tuple(bytes.fromhex(colour[1:])) in found, colour
