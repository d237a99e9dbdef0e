"""What the loop makes of an epoch's settings."""

import math

import pytest
import torch
from support.toy_training import (
    TRAIN,
    assert_same_checkpoint,
    make_config,
    start,
    toy_data,
    toy_text,
)

from cpfast.recipes import StepShape
from cpfast.recipes.freeze import diffusion
from cpfast.train import batches, loop, models, run
from cpfast.train.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 'window = { phase = "after" }\n'


def table(action, **options):
    lines = [f'[[actions]]\naction = "{action}"']
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in options.items()), ""])


def recipe_config(text, **options):
    return make_config(recipe_text=text, method="mine", **options)


MANY = {
    "mixup": table("mixup", alpha=0.4),
    "cutmix": table("cutmix") + WINDOW,
    "resolution": table("resolution", share=0.5) + WINDOW,
    "batch": table("batch", times=2) + WINDOW,
    "augment": table("augment", factor=0.25) + WINDOW,
    "weight decay": table("weight_decay", factor=0.0) + "window = { ramp = 0.7 }\n",
    "volume": table("volume", budget=0.6, first=0.9),
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_each_action_trains_and_resumes_to_the_bit(tmp_path, text):
    config, data = recipe_config(text), toy_data(side=12)
    whole, parts = (start(tmp_path / name, config) for name in ("whole", "parts"))
    run.train(config, data, whole)
    for epochs in (2, 3, None):
        run.train(config, data, parts, epochs=epochs)
    assert_same_checkpoint(whole, parts)


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_each_action_changes_what_is_trained(tmp_path, text):
    ends = []
    for name, recipe in (("with", text), ("without", "")):
        config = recipe_config(recipe, policy="random")
        folder = start(tmp_path / name, config)
        training = run.train(config, toy_data(side=12), folder)
        ends.append(training.rotation.weights()[0].clone())
    assert not torch.equal(*ends)


def test_the_weight_decay_is_off_for_the_epoch_and_in_no_state():
    config = recipe_config(table("weight_decay", factor=0.5), weight_decay=0.1)
    training = loop.Training(config, toy_data())
    seen = []
    step = training.optimizer.step

    def watched(*args, **kwargs):
        seen.append([group["weight_decay"] for group in training.optimizer.param_groups])
        return step(*args, **kwargs)

    training.optimizer.step = watched
    loop.train_epoch(training)
    assert seen and all(decays == [0.05, 0.0] for decays in seen)
    assert [group["weight_decay"] for group in training.optimizer.param_groups] == [0.1, 0.0]


def test_batches_are_taken_as_one_and_all_samples_count(tmp_path):
    config = recipe_config(table("batch", times=2) + "window = { begin = 0.5 }\n", epochs=4)
    training = loop.Training(config, toy_data())
    lines = [loop.train_epoch(training) for _ in range(4)]
    trained = [line["backward_samples"] for line in lines]
    assert [n % 16 for n in trained[2:]] == [0, 0]
    assert sum(trained) + len(training.stream.state_dict()["index"]) == 4 * TRAIN
    assert all(math.isfinite(line["train_loss"]) for line in lines)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_model_sees_images_of_the_size_that_is_set(share):
    training = loop.Training(
        recipe_config(table("resolution", share=share), eval_every=6), toy_data(side=12)
    )
    seen = []
    training.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
    loop.train_epoch(training)
    assert set(seen) == {torch.Size([int(12 * share)] * 2)}
    seen.clear()
    loop.evaluate(training)
    assert set(seen) == {torch.Size([12, 12])}


def test_sequences_are_pieces_of_the_whole_ones():
    config = recipe_config("", data="python-docs", model="transformer")
    data = toy_text()
    made = batches.of(config, data)
    index = torch.arange(TRAIN)
    begins = set()
    for number in range(8):
        draw = torch.full((TRAIN,), number)
        inputs, targets = made.train(index, draw, StepShape(length=0.5))
        assert inputs.shape == targets.shape == (TRAIN, 4)
        for row in range(TRAIN):
            whole = data.train_tokens[row].tolist()
            piece = [*inputs[row].tolist(), targets[row, -1].item()]
            begin = (piece[0] - whole[0]) % 5
            assert piece in (whole[begin : begin + 5], whole[begin + 5 : begin + 10])
            begins.add(begin)
        again = made.train(index, draw, StepShape(length=0.5))
        assert torch.equal(inputs, again[0]) and torch.equal(targets, again[1])
    assert begins == set(range(5))


def test_a_vision_transformer_runs_at_smaller_sizes_with_the_means_of_its_positions():
    model = models.build("vit-tiny", (16, 16, 3), 10, seed=0)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    full = model.positions[:, 1:].detach().view(1, 4, 4, -1)
    small = model._positions(2, 2)[:, 1:].detach().view(1, 2, 2, -1)
    torch.testing.assert_close(small[0, 0, 1], full[0, :2, 2:].mean((0, 1)))
    assert model._positions(4, 4) is model.positions
    with pytest.raises(ValueError, match="patches of 4x4 do not fill 10x10"):
        model(torch.zeros(2, 3, 10, 10))


def test_what_noise_alone_would_do_is_what_a_simulation_does():
    """A scale-invariant layer under noise alone, in equilibrium: 1 - exp(-lr wd t / (1 - m))."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20_000))
    lr, decay, steps = 0.1, 0.02, 400
    optimizer = torch.optim.SGD([weight], lr, momentum=0.5, weight_decay=decay)

    def step():
        direction = torch.randn_like(weight)
        with torch.no_grad():  # the gradient of a scale-invariant loss: orthogonal, ~ 1 / norm
            unit = weight / weight.norm()
            weight.grad = (direction - unit * (unit @ direction)) / weight.norm()
        optimizer.step()

    for _ in range(3000):
        step()
    before = weight.detach().clone()
    for _ in range(steps):
        step()
    cosine = torch.cosine_similarity(before, weight.detach(), dim=0).item()
    expected = steps * diffusion(optimizer, lr)
    assert -math.log(cosine) == pytest.approx(expected, rel=0.05)
    adam = torch.optim.AdamW([weight], weight_decay=0.1)
    assert diffusion(adam, 0.01) == pytest.approx(0.001)
    assert math.isnan(diffusion(torch.optim.RMSprop([weight]), 0.01))


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (table("length"), toy_data(), "changes the length, of text alone"),
        (table("mixup"), toy_text(), "changes the mixup, of images, table, series alone"),
        (table("resolution"), toy_text(), "changes the resolution, of images alone"),
        (table("batch", times=4), toy_data(), "4 batches of 8 in one are more than .* 30 samples"),
        (table("resolution", share=0.25), toy_data(), "cnn cannot run at 2x2"),
        (table("repeats", repeats=0), toy_data(), r"actions\[0\]: repeats: .* got 0"),
        ("[[actions]]\n", toy_data(), r"actions\[0\]: no action"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(text, data, message):
    options = {} if hasattr(data, "train_images") else {
        "data": "python-docs", "model": "transformer",
    }  # fmt: skip
    with pytest.raises(UserError, match=message) as caught:
        loop.Training(recipe_config(text, **options), data)
    assert len(str(caught.value).splitlines()) == 1
