"""--ema: the moving average of the weights, what is evaluated and kept of it, resume to the bit."""

import copy

import pytest
import torch
from support.toy_training import assert_same_checkpoint, make_config, start, toy_data
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cpfast
from cpfast.train import average, evaluation, loop, run
from cpfast.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")
DECAY = 0.9


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def moved(model, number):
    with torch.no_grad():
        for value in model.state_dict().values():
            value += 0.1 * number if value.is_floating_point() else 1


def test_it_is_the_weighted_mean_of_the_weights_after_each_step():
    model = network()
    averaged = average.MovingAverage(model, DECAY)
    assert all(
        torch.equal(a, b)
        for a, b in zip(averaged.model().parameters(), model.parameters(), strict=True)
    )
    seen = []
    for number in range(5):
        moved(model, number)
        averaged.step()
        seen.append(copy.deepcopy(model.state_dict()))
    shares = torch.tensor([DECAY ** (4 - i) for i in range(5)], dtype=torch.float64)
    found = averaged.model().state_dict()
    for name, value in found.items():
        if not value.is_floating_point():
            assert torch.equal(value, seen[-1][name])
            continue
        each = torch.stack([state[name].double() for state in seen])
        wanted = torch.tensordot(shares / shares.sum(), each, dims=1)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


def test_it_is_torch_s_where_both_have_forgotten_the_beginning():
    model = network()
    ours = average.MovingAverage(model, 0.5)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for number in range(40):
        moved(model, number % 7)
        ours.step()
        theirs.update_parameters(model)
    for (name, a), b in zip(
        ours.model().named_parameters(), theirs.module.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    averaged = average.MovingAverage(model, DECAY)
    averaged.step()
    copied = averaged.model()
    assert copied[0].weight is copied[1].weight
    torch.testing.assert_close(copied[0].weight, model[0].weight)


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_equals_no_stop_to_the_bit(tmp_path, stop):
    config, data = make_config(ema=DECAY, eval_every=1, at=1), toy_data()
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, data, whole)
    run.train(config, data, parts, epochs=stop)
    run.train(config, data, parts)
    assert_same_checkpoint(whole, parts)
    for name in ("model.safetensors", "best.safetensors"):
        files = [folder.path / name for folder in (whole, parts)]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


def test_evaluated_and_kept_is_the_average_and_trained_are_the_weights(tmp_path):
    data = toy_data()
    plain = start(tmp_path / "plain", make_config(eval_every=1))
    run.train(make_config(eval_every=1), data, plain)
    config = make_config(ema=DECAY, eval_every=1)
    folder = start(tmp_path / "run", config)
    training = run.train(config, data, folder)
    lines, plain_lines = folder.metrics(), plain.metrics()
    for line, other in zip(lines, plain_lines, strict=True):
        assert line["train_loss"] == other["train_loss"]
        assert line["rotation"] == other["rotation"]
        assert line["test_loss"] != other["test_loss"]
    model = cpfast.load(folder.path)
    kept, averaged = model.network.state_dict(), training.average.model().state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in kept.items())
    assert not torch.equal(kept["head.weight"], training.model.state_dict()["head.weight"])
    result, _ = evaluation.evaluate(model, data)
    assert result["accuracy"] == lines[-1]["test_accuracy"]
    assert result["cross_entropy"] == pytest.approx(lines[-1]["test_loss"], rel=1e-6)


def test_a_checkpoint_of_before_goes_on_and_of_another_decay_does_not(tmp_path):
    config, data = make_config(), toy_data()
    folder = start(tmp_path / "run", config)
    run.train(config, data, folder, epochs=1)
    state = folder.checkpoint()
    assert state.pop("average") == {}
    del state["config"]["ema"]
    folder.save_checkpoint(state)
    assert run.train(config, data, folder).epoch == 6
    training = Training(make_config(ema=DECAY), data)
    with pytest.raises(ValueError, match=r"of another run \(it differs in ema\)"):
        run.load_state_dict(training, folder.checkpoint())


def test_several_processes_average_their_statistics(monkeypatch):
    training = Training(make_config(ema=DECAY, model="cnn"), toy_data())
    given = []
    monkeypatch.setattr(training.ranks, "average", given.append)
    loop.train_epoch(training)
    names = [name for name, value in training.model.named_buffers() if value.is_floating_point()]
    assert [len(tensors) for tensors in given] == [len(names)]
