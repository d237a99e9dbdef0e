"""Arguments of wrong types end in one line that names them, for every argument of every public
class, method and function; those of the ops are in ops/test_arguments.py."""

import atexit
import inspect
import pathlib
import re
import shutil
import tempfile
import typing

import pytest
import torch

import cpfast
from cpfast import detection, ops, pruning, recipes, sampling, schedules
from cpfast.registry import options_of
from cpfast.train import saved
from cpfast.train.config import Config
from cpfast.train.data import ImageData
from cpfast.train.loop import Training
from cpfast.train.runfolder import RunFolder

BAD = {
    "None": None,
    "a text": "no such text",
    "a list": [1.0, [2.0]],
    "an object": object(),
    "a huge number": 10**30,
}
N, EPOCHS = 12, 6
RECIPES = pathlib.Path(recipes.__file__).parent


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


MODEL = model()


def detector():
    return cpfast.CriticalPeriodDetector("slope45", EPOCHS)


def pruner():
    made = cpfast.DataPruner(N, EPOCHS, strict=None)
    made.plan(0)
    return made


def layca():
    return cpfast.Layca(torch.optim.SGD(MODEL.parameters(), 0.1), MODEL)


def mixer():
    made = cpfast.Mixer(0, 3)
    made.begin("mixup", 0.2, 0, 3)
    return made


def optimizer():
    return torch.optim.SGD([torch.zeros(2, requires_grad=True)], 0.1)


def sums():
    return ops.layer_sums([torch.rand(4)], [torch.rand(4)])


# Of a trained model: its two files.
RUN = tempfile.mkdtemp(prefix="cpfast-test-")
atexit.register(shutil.rmtree, RUN, ignore_errors=True)


def keep_model():
    """A network as it is built, kept as that of a finished run."""
    images, labels = torch.zeros(8, 8, 8, 1, dtype=torch.uint8), torch.arange(8) % 2
    samples = ImageData(images, labels, images, labels, ("a", "b"), "toy")
    config = Config.from_options({"epochs": 1, "batch_size": 8, "model": "cnn", "device": "cpu"})
    training = Training(config, samples)
    training.epoch = 1
    saved.store(training, RunFolder(RUN), ['{"test_accuracy": 0.5}'])


keep_model()
INDEX = torch.arange(4)
PLAN = {"epoch": 1, "repeats": 2, "prune": True, "keep": 0.5, "period_end": 1}
LOSS = {
    "logits": torch.randn(4, 3), "target": torch.tensor([0, 1, 2, 0]), "index": INDEX,
}  # fmt: skip
WARM = {"warmup": 0.1, "floor": 0.1}
GOOD = {
    "CriticalPeriodDetector": (
        lambda: cpfast.CriticalPeriodDetector,
        {"criterion": "slope45", "total_epochs": EPOCHS, "patience": 2, "not_before": 3},
    ),
    "CriticalPeriodDetector.step": (lambda: detector().step, {"value": 0.1, "epoch": 1}),
    "CriticalPeriodDetector.load_state_dict": (
        lambda: detector().load_state_dict, {"state": detector().state_dict()},
    ),
    "DataPruner": (
        lambda: cpfast.DataPruner,
        {
            "num_samples": N, "num_epochs": EPOCHS, "policy": "infobatch", "keep": 0.5,
            "anneal": 0.5, "seed": 1, "device": "cpu", "nan": "keep", "strict": True,
            "labels": torch.zeros(N, dtype=torch.int64), "reference": None,
        },
    ),
    "DataPruner.plan": (lambda: pruner().plan, PLAN),
    "DataPruner.prepare": (lambda: pruner().prepare, PLAN),
    "DataPruner.planned_length": (lambda: pruner().planned_length, PLAN),
    "DataPruner.is_full": (lambda: pruner().is_full, {"epoch": 1}),
    "DataPruner.weights": (lambda: pruner().weights, {"index": INDEX}),
    "DataPruner.loss": (
        lambda: pruner().loss,
        {
            **LOSS, "weight": torch.ones(4), "class_weight": None, "label_smoothing": 0.1,
            "z_loss": 0.1, "ignore_index": -100, "class_dim": -1, "reduction": "mean",
            "num_tokens": 4, "gradient": "backward", "training": True, "reference": None,
        },
    ),
    "DataPruner.linear_loss": (
        lambda: pruner().linear_loss,
        {
            "hidden": torch.randn(4, 2), "head": torch.randn(3, 2),
            **{name: LOSS[name] for name in ("target", "index")}, "weight": torch.ones(4),
            "ignore_index": -100, "reduction": "mean", "num_tokens": 4, "training": True,
            "reference": None,
        },
    ),
    "ScoredLMHead": (
        lambda: cpfast.ScoredLMHead,
        {
            "in_features": 2, "out_features": 3, "bias": True, "logit_scale": 2.0, "softcap": 3.0,
            "device": "cpu", "dtype": torch.float64,
        },
    ),
    "ScoredLMHead.of": (
        lambda: cpfast.ScoredLMHead.of,
        {"linear": torch.nn.Linear(2, 3), "logit_scale": 2.0, "softcap": 3.0},
    ),
    "ScoredLMHead.forward": (
        lambda: cpfast.ScoredLMHead(2, 3).forward,
        {"hidden": torch.randn(4, 2), "target": torch.tensor([0, 1, 2, 0])},
    ),
    "DataPruner.score": (lambda: pruner().score, {**LOSS, "ignore_index": -100, "class_dim": -1}),
    "DataPruner.binary_loss": (
        lambda: pruner().binary_loss,
        {
            "logits": torch.rand(4, 3), "target": torch.rand(4, 3), "index": INDEX, "weight": None,
            "pos_weight": None, "reduction": "mean", "gradient": None, "training": True,
        },
    ),
    "DataPruner.mse_loss": (
        lambda: pruner().mse_loss,
        {
            "input": torch.rand(4, 3), "target": torch.rand(4, 3), "index": INDEX, "weight": None,
            "reduction": "mean", "gradient": None, "training": True,
        },
    ),
    "DataPruner.weighted": (
        lambda: pruner().weighted, {"losses": torch.rand(4), "index": INDEX},
    ),
    "DataPruner.update": (lambda: pruner().update, {"index": INDEX, "score": torch.rand(4)}),
    "DataPruner.load_state_dict": (
        lambda: pruner().load_state_dict, {"state": pruner().state_dict()},
    ),
    "pruning.LazyPlan.batch": (lambda: pruner().prepare(0).batch, {"start": 0, "size": 4}),
    "IndexedDataset": (lambda: cpfast.IndexedDataset, {"dataset": [1, 2]}),
    "LayerRotation": (
        lambda: cpfast.LayerRotation,
        {
            "model": model(), "include": None, "trainable_only": False,
            "snapshot_dtype": torch.bfloat16, "history": 2, "adapters": "merged",
        },
    ),
    "LayerRotation.of_live": (
        lambda: cpfast.LayerRotation(model()).of_live, {"values": torch.ones(2)},
    ),
    "LayerRotation.state_dict": (
        lambda: cpfast.LayerRotation(model()).state_dict, {"full": True},
    ),
    "LayerRotation.load_state_dict": (
        lambda: cpfast.LayerRotation(model()).load_state_dict,
        {"state": cpfast.LayerRotation(model()).state_dict()},
    ),
    "is_weight": (
        lambda: cpfast.is_weight, {"name": "weight", "parameter": torch.ones(2, 2), "module": None},
    ),
    "Layca": (
        lambda: cpfast.Layca,
        {"optimizer": torch.optim.SGD(MODEL.parameters(), 0.1), "model": MODEL},
    ),
    "Layca.zero_grad": (lambda: layca().zero_grad, {"set_to_none": True}),
    "Layca.step": (lambda: layca().step, {"closure": None}),
    "Layca.load_state_dict": (
        lambda: layca().load_state_dict, {"state": layca().state_dict()},
    ),
    "Mixer": (lambda: cpfast.Mixer, {"seed": 1, "steps": 3, "device": "cpu"}),
    "Mixer.begin": (
        lambda: cpfast.Mixer(0, 3).begin,
        {"kind": "mixup", "alpha": 0.2, "epoch": 1, "steps": 3},
    ),
    "Mixer.mix": (
        lambda: mixer().mix, {"kind": "mixup", "inputs": torch.rand(4, 1, 2, 2)},
    ),
    "Mixer.loss": (
        lambda: mixer().loss,
        {
            "pruner": pruner(), **LOSS, "share": torch.tensor(0.5), "weight": torch.ones(4),
        },
    ),
    "PrunedSampler": (
        lambda: cpfast.PrunedSampler,
        {
            "pruner": pruner(), "num_replicas": 2, "rank": 1,
            "recipe": cpfast.Recipe.named("detector", EPOCHS), "detector": detector(),
            "drop_last": False, "shard": "auto", "dataset": range(N),
        },
    ),
    "PrunedSampler.set_epoch": (
        lambda: cpfast.PrunedSampler(pruner()).set_epoch,
        {"epoch": 1, "repeats": 2, "prune": True},
    ),
    "PrunedSampler.follow": (
        lambda: cpfast.PrunedSampler(pruner()).follow,
        {"recipe": cpfast.Recipe.named("full", EPOCHS), "detector": None},
    ),
    "PrunedSampler.load_state_dict": (
        lambda: cpfast.PrunedSampler(pruner()).load_state_dict,
        {"state": cpfast.PrunedSampler(pruner()).state_dict()},
    ),
    "Recipe": (
        lambda: cpfast.Recipe, {"total_epochs": EPOCHS, "actions": [recipes.Repeats(2)]},
    ),
    "Recipe.named": (lambda: cpfast.Recipe.named, {"name": "detector", "total_epochs": EPOCHS}),
    "Recipe.settings": (
        lambda: cpfast.Recipe(EPOCHS).settings, {"moment": cpfast.Moment(1, EPOCHS)},
    ),
    "load": (lambda: cpfast.load, {"run": RUN, "which": "best", "device": "cpu"}),
    "TrainedModel.predict": (
        lambda: cpfast.load(RUN).predict,
        {"samples": torch.zeros(3, 8, 8, 1, dtype=torch.uint8), "batch_size": 2},
    ),
    "TrainedModel.probabilities": (
        lambda: cpfast.load(RUN).probabilities, {"x": torch.zeros(3, 8, 8, 1)},
    ),
    "Window": (
        lambda: cpfast.Window,
        {"phase": "after", "begin": 0.1, "end": 0.9, "until": 0.8, "ramp": 0.1},
    ),
    "Recipe.read": (
        lambda: cpfast.Recipe.read,
        {"path": RECIPES / "detector.toml", "total_epochs": EPOCHS},
    ),
    "recipes.RecipeFile.parse": (
        lambda: recipes.RecipeFile.parse, {"text": "", "where": "here", "name": "one"},
    ),
    "recipes.RecipeFile.read": (
        lambda: recipes.RecipeFile.read, {"path": RECIPES / "detector.toml"},
    ),
    "recipes.RecipeFile.make": (
        lambda: recipes.RecipeFile.read(RECIPES / "detector.toml").make,
        {"total_epochs": EPOCHS},
    ),
    "Window.between": (
        lambda: cpfast.Window.between, {"first": 1, "last": 2, "total_epochs": EPOCHS},
    ),
    "Window.span": (lambda: cpfast.Window().span, {"moment": cpfast.Moment(1, EPOCHS)}),
    "Window.amount": (lambda: cpfast.Window().amount, {"moment": cpfast.Moment(1, EPOCHS)}),
    "ops.LayerPlan": (
        lambda: ops.LayerPlan,
        {
            "params": [torch.rand(4)], "refs": [torch.rand(4)],
            "ref_sq_norms": torch.ones(1).double(),
        },
    ),
    "ops.LayerPlan.layer_sums": (
        lambda: ops.LayerPlan([torch.rand(4)], [torch.rand(4)]).layer_sums,
        {"ratio": torch.ones(1).double()},
    ),
    "ops.LayerPlan.record": (
        lambda: ops.LayerPlan([torch.rand(4)], [torch.rand(4)]).record,
        {"history": torch.zeros(2, 1), "cursor": torch.tensor(0)},
    ),
    "ops.LayerPlan.is_current": (
        lambda: ops.LayerPlan([torch.rand(4)], [torch.rand(4)]).is_current,
        {"params": [torch.rand(4)]},
    ),
    "ops.layer_sums": (
        lambda: ops.layer_sums,
        {"params": [torch.rand(4)], "refs": [torch.rand(4)], "ratio": torch.ones(1).double()},
    ),
    "ops.ratio_of_sums": (lambda: ops.ratio_of_sums, {"sums": sums()}),
    "ops.rotation_of_sums": (
        lambda: ops.rotation_of_sums, {"sums": sums(), "ratio": torch.ones(1).double()},
    ),
    "ops.statistics_of_sums": (
        lambda: ops.statistics_of_sums,
        {"sums": sums(), "numel": torch.ones(1), "ratio": torch.ones(1).double()},
    ),
    "schedules.constant": (lambda: schedules.constant, {"warmup": 0.1}),
    "schedules.cosine": (lambda: schedules.cosine, {**WARM, "power": 2.0}),
    "schedules.linear": (lambda: schedules.linear, {**WARM, "power": 2.0}),
    "schedules.step": (lambda: schedules.step, {"milestones": (0.5,), "factor": 0.1}),
    "schedules.one_cycle": (
        lambda: schedules.one_cycle, {"peak": 0.3, "start": 0.1, "floor": 0.0},
    ),
    "schedules.FractionSchedule": (
        lambda: schedules.FractionSchedule,
        {"optimizer": optimizer(), "schedule": schedules.cosine()},
    ),
    "schedules.FractionSchedule.step": (
        lambda: schedules.FractionSchedule(optimizer(), schedules.cosine()).step,
        {"fraction": 0.5, "factor": 1.0},
    ),
    "schedules.FractionSchedule.load_state_dict": (
        lambda: schedules.FractionSchedule(optimizer(), schedules.cosine()).load_state_dict,
        {"state": {"base_lrs": [0.1]}},
    ),
    "schedules.FractionLR": (
        lambda: schedules.FractionLR,
        {"optimizer": optimizer(), "schedule": schedules.cosine(), "last_epoch": -1},
    ),
    "schedules.FractionLR.step": (
        lambda: schedules.FractionLR(optimizer(), schedules.cosine()).step, {"fraction": 0.5},
    ),
    "schedules.FractionLR.load_state_dict": (
        lambda: schedules.FractionLR(optimizer(), schedules.cosine()).load_state_dict,
        {
            "state_dict": schedules.FractionLR(optimizer(), schedules.cosine()).state_dict(),
        },
    ),
}  # fmt: skip

# By ops/test_arguments.py.
OPS_TRIED = {
    "augment_batch", "layer_rotation", "layer_statistics", "record_scores",
    "scored_binary_cross_entropy", "scored_cross_entropy", "scored_mse",
    "scored_linear_cross_entropy", "select_samples", "shuffled_slice",
}  # fmt: skip
# Whatever is given to these is true or false.
FLAGS = {
    "bias",
    "full",
    "set_to_none",
    "training",
    "prune",
    "trainable_only",
    "drop_last",
    "strict",
}
# What is right of its type, whatever else it is.
RIGHT = {
    ("schedules.cosine", "power", "a huge number"),
    ("schedules.linear", "power", "a huge number"),
    ("is_weight", "name", "a text"),
    ("IndexedDataset", "dataset", "a text"),
    ("IndexedDataset", "dataset", "a list"),
    ("CriticalPeriodDetector.step", "value", "a huge number"),
    ("DataPruner.planned_length", "keep", "None"),
    ("DataPruner.loss", "z_loss", "a huge number"),
    ("Mixer.begin", "alpha", "a huge number"),
    *(
        (what, name, "a huge number")
        for what in ("ScoredLMHead", "ScoredLMHead.of")
        for name in ("logit_scale", "softcap")
    ),
    ("load", "run", "a text"),
    ("TrainedModel.predict", "samples", "a text"),
    ("Recipe.read", "path", "a text"),
    ("recipes.RecipeFile.read", "path", "a text"),
    *(("recipes.RecipeFile.parse", name, "a text") for name in ("text", "where", "name")),
    ("DataPruner.planned_length", "period_end", "None"),
    ("schedules.step", "factor", "a huge number"),
    ("schedules.FractionSchedule.step", "factor", "a huge number"),
}


def of_registries():
    """Each option of each criterion, policy, action and recipe, as its name makes it."""
    needed = {"at": 2, "total_epochs": EPOCHS}
    for registry in (cpfast.criteria, cpfast.policies, cpfast.actions, recipes.recipe.recipes):
        for name, entry in registry.items():
            parameters = inspect.signature(entry.factory).parameters
            options = {
                option: needed[option] if is_needed else parameters[option].default
                for option, is_needed in options_of(entry.factory).items()
            }
            yield f"{registry.kind} {name}", (lambda entry=entry: entry.make, options)


GOOD.update(of_registries())
CASES = [(what, name) for what, (_, good) in GOOD.items() for name in good]


def hint_of(what, name):
    function = GOOD[what][0]()
    if " " in what:  # of a registry
        function = function.__self__.factory
    if isinstance(function, type):
        function = function.__init__
    return typing.get_type_hints(function).get(name)


def is_right(what, name, kind):
    hint = hint_of(what, name)
    if kind == "None" and type(None) in (hint, *typing.get_args(hint)):
        return True
    is_free = kind == "a huge number" and float in (hint, *typing.get_args(hint)) and " " in what
    return is_free or (what, name, kind) in RIGHT


@pytest.mark.parametrize(("what", "name"), [case for case in CASES if case[1] not in FLAGS])
def test_a_wrong_type_is_named(what, name):
    make, good = GOOD[what]
    make()(**good)
    for kind, bad in BAD.items():
        if is_right(what, name, kind):
            continue
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            make()(**{**good, name: bad})
        message = str(caught.value)
        assert len(message.splitlines()) == 1, (kind, message)
        known = f"({name}|recipe)" if what == "Recipe.named" else name
        assert re.search(rf"\b{known}(_dict)?\b", message.partition(" got ")[0]), (kind, message)


@pytest.mark.parametrize(("make", "name"), [
    (lambda: cpfast.DataPruner(10**15), "num_samples"),
    (lambda: cpfast.LayerRotation(model(), history=10**15), "history"),
    (lambda: pruner().planned_length(1, repeats=10**9), "repeats"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(make, name):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(f"{name}: ") and len(str(caught.value).splitlines()) == 1


def public():
    """Every class, method and function that the package offers, where it takes arguments."""
    rooms = {
        "": cpfast, "ops.": ops, "schedules.": schedules, "recipes.": recipes,
        "detection.": detection, "pruning.": pruning, "sampling.": sampling,
    }  # fmt: skip
    seen = []
    for prefix, room in rooms.items():
        for name in room.__all__:
            value = getattr(room, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)) or value in seen:
                continue
            seen.append(value)
            yield prefix + name, value
            if not inspect.isclass(value):
                continue
            of_ours = [c for c in reversed(value.__mro__) if c.__module__.startswith("cpfast")]
            for method, one in {k: v for c in of_ours for k, v in vars(c).items()}.items():
                one = getattr(value, method) if isinstance(one, classmethod) else one
                takes = inspect.isroutine(one) and list(inspect.signature(one).parameters)
                if takes and takes != ["self"] and not method.startswith("_"):
                    yield f"{prefix}{name}.{method}", one


def test_every_argument_is_tried():
    # What others implement, and records of results.
    passed_over = {
        "Action", "BatchFilter", "Chosen", "Criterion", "Draw", "EpochSettings", "Gradients",
        "LayerStatistics", "LayerSums", "Measured", "Moment", "Paths", "Policy", "Probe",
        "Samples", "Schedule", "ScoredLoss", "ScoredRegression", "Selection", "StepShape",
        "TokenFilter",
    }  # fmt: skip
    registered = {
        entry.factory
        for registry in (cpfast.criteria, cpfast.policies, cpfast.actions)
        for entry in registry.values()
    }
    for name, value in public():
        own = name.split(".") if name[0].isupper() else name.split(".")[1:] or [name]
        if (
            own[0] in passed_over
            or name in ("pruning.LazyPlan", "recipes.RecipeFile", "TrainedModel")
            or name == "TrainedModel.forward"
            or value in registered
            or own[-1] == "apply"
        ):
            continue
        if name.removeprefix("ops.") in OPS_TRIED or not inspect.signature(value).parameters:
            continue
        assert name in GOOD, name
        needed = set(inspect.signature(value).parameters) - {"self", "options", "columns"}
        assert needed <= set(GOOD[name][1]), name
