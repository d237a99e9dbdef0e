"""The model of a run: what is kept of it and when, and what is refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from support.toy_training import make_config, start, toy_data, toy_text

import cpfast
from cpfast.train import evaluation, loop, models, run, saved
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(path, samples=None, **options):
    config = make_config(**{"eval_every": 1, "at": 1, **options})
    folder = start(path, config)
    run.train(config, toy_data() if samples is None else samples, folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("finished") / "run")


def evaluated(folder):
    return [(line["epoch"], line["test_accuracy"]) for line in folder.metrics()]


def test_it_gets_the_training_s_own_numbers_to_the_bit(finished):
    model = cpfast.load(finished.path)
    result, _ = evaluation.evaluate(model, toy_data())
    last = finished.metrics()[-1]
    assert result["accuracy"] == last["test_accuracy"] == model.test_accuracy
    assert result["cross_entropy"] == pytest.approx(last["test_loss"], rel=1e-6)
    assert model.epoch == 6 and model.classes == ("a", "b", "c") and not model.training
    state = finished.checkpoint()["model"]
    assert model.network.state_dict().keys() == state.keys()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(model.input.mean, toy_data().mean())


def test_the_best_evaluation_is_kept_where_it_is_not_the_last(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.9, 0.9, 0.6, 0.8])
    states = {}

    def evaluate(training, progress=None):
        states[training.epoch] = {k: v.clone() for k, v in training.model.state_dict().items()}
        return 1.0, next(accuracies)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    folder = trained(tmp_path / "run")
    for which, epoch, accuracy in (("last", 6, 0.8), ("best", 4, 0.9)):  # the later of equals
        model = cpfast.load(str(folder.path), which)
        assert (model.epoch, model.test_accuracy) == (epoch, accuracy)
        for name, value in model.network.state_dict().items():
            assert torch.equal(value, states[epoch][name]), name


def test_without_another_best_there_is_one_file(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.6, 0.7])
    monkeypatch.setattr(loop, "evaluate", lambda *_: (1.0, next(accuracies)))
    folder = trained(tmp_path / "run", epochs=4)
    assert not (folder.path / saved.BEST).exists()
    assert cpfast.load(folder.path, "best").epoch == 4


def test_unfinished_it_has_its_best_alone(tmp_path):
    config = make_config(eval_every=1, at=1)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder, epochs=3)
    best = max(accuracy for _, accuracy in evaluated(folder))
    assert cpfast.load(folder.path, "best").test_accuracy == best
    with pytest.raises(UserError, match=r"not finished, .* train --resume --out"):
        cpfast.load(folder.path)
    run.train(config, toy_data(), folder)
    assert cpfast.load(folder.path).epoch == 6


def test_stopped_and_continued_it_is_the_same_file(tmp_path, finished):
    config = make_config(eval_every=1, at=1)
    folder = start(tmp_path / "run", config)
    for epochs in (2, 5, 6):
        run.train(config, toy_data(), folder, epochs=epochs)
    for name in (saved.LAST, saved.DESCRIPTION):
        assert (folder.path / name).read_bytes() == (finished.path / name).read_bytes()


def test_a_fork_has_nothing_of_the_run_that_it_comes_from(tmp_path):
    config = make_config(eval_every=1, at=1)
    folder = start(tmp_path / "run", config)
    run.train(config, toy_data(), folder, epochs=3)
    other = RunFolder(tmp_path / "fork")
    folder.fork(other, config)
    assert not (other.path / saved.DESCRIPTION).exists()
    run.train(config, toy_data(), other)
    description = saved.describe(other.path)
    assert description["last"]["epoch"] == 6
    assert description["best"] is None or description["best"]["epoch"] > 3


def test_a_finished_run_without_its_model_writes_it_again(tmp_path, finished):
    copy = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    for name in (saved.LAST, saved.DESCRIPTION):
        (copy.path / name).unlink()
    with pytest.raises(UserError, match=r"the run is finished, have it written with cpfast train"):
        cpfast.load(copy.path)
    run.train(make_config(eval_every=1, at=1), toy_data(), copy)
    assert (copy.path / saved.LAST).read_bytes() == (finished.path / saved.LAST).read_bytes()


def test_the_two_files_are_enough(tmp_path, finished):
    for name in (saved.LAST, saved.DESCRIPTION):
        shutil.copy(finished.path / name, tmp_path)
    images = toy_data().test_images
    assert torch.equal(cpfast.load(tmp_path)(images), cpfast.load(finished.path)(images))


def test_floats_are_shares_of_255_and_wrong_samples_are_named(finished):
    model, images = cpfast.load(finished.path), toy_data().test_images
    assert torch.allclose(model(images / 255), model(images), atol=1e-5)
    for bad, error in ((images[..., 0], ValueError), (images.int(), TypeError)):
        with pytest.raises(error, match="^images: expected"):
            model(bad)


def test_predictions_of_arrays(finished):
    model, images = cpfast.load(finished.path), toy_data().test_images
    found = model.predict(images.numpy(), batch_size=4)
    assert torch.allclose(found.probabilities, model(images).softmax(1), atol=1e-6)
    assert found.classes == ["abc"[i] for i in found.probabilities.argmax(1).tolist()]
    assert model.predict(np.zeros((0, 6, 6, 1), np.uint8)).classes == []
    with pytest.raises(TypeError, match="^samples: expected paths"):
        model.predict([1, 2])
    with pytest.raises(ValueError, match="^batch_size"):
        model.predict(images, batch_size=0)


def test_text(tmp_path):
    folder = trained(tmp_path / "run", toy_text(), data="python-docs", model="transformer",
                     epochs=2, optimizer="adamw", lr=1e-3)  # fmt: skip
    model = cpfast.load(folder.path)
    result, _ = evaluation.evaluate(model, toy_text())
    assert result["accuracy"] == folder.metrics()[-1]["test_accuracy"]
    assert result["perplexity"] == pytest.approx(np.exp(folder.metrics()[-1]["test_loss"]))
    assert model(toy_text().test_tokens[:, :-1]).shape == (10, 8, 5)
    with pytest.raises(ValueError, match="has no classes to predict"):
        model.predict(toy_text().test_tokens[:, :-1])
    with pytest.raises(UserError, match="no text, which the model was trained on"):
        evaluation.evaluate(model, toy_data())


NAMES = ("cnn", "efficientnet-b0", "resnet8", "resnet18", "vit-tiny", "transformer")


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_gives_its_logits_for_any_batch(name, tmp_path):
    data = toy_text() if name == "transformer" else toy_data(side=12)
    config = make_config(data="python-docs" if name == "transformer" else "digits", model=name,
                         epochs=1, at=1)  # fmt: skip
    folder = start(tmp_path / "run", config)
    # at initialisation; a forward pass is all that is exported
    training = loop.Training(config, data)
    training.epoch = 1
    saved.store(training, folder, ['{"test_accuracy": 0.5}'])
    model = cpfast.load(folder.path)
    samples = data.test_tokens[:, :-1] if name == "transformer" else data.test_images
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (samples[:2],), dynamic_shapes=shapes).module()
    for batch in (samples[:2], samples[:7]):
        torch.testing.assert_close(exported(batch), model(batch), rtol=1e-5, atol=1e-5)


def edited(path, **changes):
    source = path / saved.DESCRIPTION
    source.write_text(json.dumps({**json.loads(source.read_text()), **changes}))


def other_tensors(path):
    tensors = safetensors.torch.load_file(path / saved.LAST)
    tensors.pop("head.bias")
    content = safetensors.torch.save(tensors)
    (path / saved.LAST).write_bytes(content)
    last = json.loads((path / saved.DESCRIPTION).read_text())["last"]
    edited(path, last={**last, "sha256": hashlib.sha256(content).hexdigest()})


def flip_a_bit(path):
    content = bytearray((path / saved.LAST).read_bytes())
    content[-1] ^= 1
    (path / saved.LAST).write_bytes(bytes(content))


ARCHITECTURE = {"name": "nobody's", "shape": [6, 6, 1], "outputs": 3}


@pytest.mark.parametrize(("damage", "message"), [
    (lambda p: shutil.rmtree(p), "no trained model here"),
    (lambda p: (p / saved.LAST).unlink(), "model.safetensors: missing"),
    (flip_a_bit, "model.safetensors: damaged"),
    (other_tensors, "not the weights of cnn .*head.bias"),
    (lambda p: (p / saved.DESCRIPTION).write_text("{"), "model.json: not readable as JSON"),
    (lambda p: edited(p, format="cpfast-model-9"), "model.json: not the model of .* this version"),
    (lambda p: edited(p, classes=["a"]), "model.json: damaged .*as many classes"),
    (lambda p: edited(p, last=None), "model.json: names no weights"),
    (lambda p: edited(p, last=3), "model.json: damaged"),
    (lambda p: edited(p, architecture=ARCHITECTURE), "no architecture \"nobody's\" is known"),
    (lambda p: edited(p, input={"kind": "smells"}), "model.json: .*smells"),
    (lambda p: edited(p, input={"kind": "images"}), "model.json: .*height"),
])  # fmt: skip
def test_what_is_wrong_is_named_in_a_line(damage, message, tmp_path, finished):
    path = shutil.copytree(finished.path, tmp_path / "run")
    (path / "config.json").unlink()
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        cpfast.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_arguments_of_load(finished):
    for options, name in (({"which": "first"}, "which"), ({"device": "abacus"}, "device")):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            cpfast.load(finished.path, **options)


def test_tied_weights_are_kept(tmp_path):
    network = models.build("cnn", (6, 6, 1), 3, 0)
    network.twin = network.head
    content = saved._packed(network, cpfast.load(trained(tmp_path / "run", epochs=1).path).input)
    tensors = safetensors.torch.load(content)
    assert torch.equal(tensors["twin.weight"], tensors["head.weight"])
