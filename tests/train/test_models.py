"""The networks: sizes as published, determinism, no touch on the global random state."""

import pytest
import torch
from torch.nn import functional as F

import cpfast
from cpfast.train import models
from cpfast.train.errors import UserError
from cpfast.train.models.cnn import _quadrant_means

pytestmark = pytest.mark.usefixtures("one_thread")
# of each family the smallest
FAMILIES = (
    "cnn", "resnet8", "resnet18", "resnet50", "vit-tiny", "efficientnet-b0", "transformer", "mlp",
    "resnet1d",
)  # fmt: skip
# of what does not read images
SHAPES = {"transformer": (16,), "mlp": (7,), "resnet1d": (3, 20)}
LENGTH, VOCABULARY = 16, 11


def make(name, size=16, seed=0):
    if name in SHAPES:
        return models.build(name, SHAPES[name], VOCABULARY, seed)
    return models.build(name, (size, size, 3), VOCABULARY, seed)


def inputs(name, count=4, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if name == "transformer":
        return torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)
    if name in SHAPES:
        return torch.randn(count, *SHAPES[name], generator=generator)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images.to(memory_format=torch.channels_last)


def loss_of(logits):
    """Of labels that depend on the place alone."""
    labels = torch.arange(logits.numel() // VOCABULARY) % 5
    return F.cross_entropy(logits.flatten(0, -2).float(), labels)


@pytest.mark.parametrize(
    ("name", "size", "outputs", "published"),
    [
        # torchvision
        ("resnet18", 224, 1000, 11_689_512), ("resnet34", 224, 1000, 21_797_672),
        ("resnet50", 224, 1000, 25_557_032), ("efficientnet-b0", 224, 1000, 5_288_548),
        # osmr/imgclsmob, wrn28_10_cifar10 and wrn28_10_cifar100
        ("wrn28-10", 32, 10, 36_479_194), ("wrn28-10", 32, 100, 36_536_884),
        # timm, deit_tiny_patch16_224
        ("vit-tiny", 224, 1000, 5_717_416),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, size, outputs, published):
    with torch.device("meta"):
        model = models.models.make(name).build((size, size, 3), outputs)
    assert models.count_parameters(model) == published


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.86),
     ("resnet110", 1.73)],
)  # fmt: skip
def test_parameter_counts_of_cifar_networks_are_the_published_ones(name, millions):
    count = models.count_parameters(models.build(name, (32, 32, 3), 10, seed=0))
    # theirs pad with zeros where ours, as the paper, have 1x1 shortcuts
    assert count / 1e6 == pytest.approx(millions, abs=0.007)


def test_parameter_counts_of_our_own():
    convolutions = 9 * (1 * 16 + 16 * 32 + 32 * 64 + 64 * 64) + 2 * (16 + 32 + 64 + 64)
    cnn = models.build("cnn", (32, 32, 1), 10, seed=0)
    assert models.count_parameters(cnn) == convolutions + 256 * 10 + 10
    # dense kernels 3 + 1 + 4 + 4 times width x width, their biases, two normalisations
    block = 12 * 192 * 192 + (3 + 1 + 4 + 1) * 192 + 2 * 2 * 192
    ends = (256 + 128) * 192 + 2 * 192 + 256 * (192 + 1)
    transformer = models.build("transformer", (128,), 256, seed=0)
    assert models.count_parameters(transformer) == 4 * block + ends


@pytest.mark.parametrize("name", ["cnn", "resnet8", "resnet18", "resnet50", "efficientnet-b0"])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 7), (32, 32)])
def test_logits_of_any_image_size(name, size):
    for channels in (1, 3):
        model = models.build(name, (*size, channels), 7, seed=0)
        logits = model(torch.randn(2, channels, *size))
        assert logits.shape == (2, 7)
        assert torch.isfinite(logits).all()


def test_wide_network_of_a_small_image():
    logits = models.build("wrn28-10", (8, 8, 1), 7, seed=0)(torch.randn(2, 1, 8, 8))
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 20), (32, 32), (96, 64)])
def test_logits_of_images_in_patches(size):
    model = models.build("vit-tiny", (*size, 3), 7, seed=0)
    assert model(torch.randn(2, 3, *size)).shape == (2, 7)
    patch = 4 if max(size) <= 64 else 16
    assert model.positions.shape == (1, 1 + size[0] // patch * (size[1] // patch), 192)


@pytest.mark.parametrize(("size", "patch"), [((9, 8), 4), ((32, 30), 4), ((72, 72), 16)])
def test_images_that_patches_do_not_fill_are_refused(size, patch):
    message = f"--model vit-tiny .* patches of {patch}x{patch}, .* {size[0]}x{size[1]}; "
    with pytest.raises(UserError, match=message):
        models.build("vit-tiny", (*size, 3), 10, seed=0)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 64, 8),
        ("resnet18", 96, 3),
        ("efficientnet-b0", 64, 4),
        ("efficientnet-b0", 96, 3),
    ],
)
def test_small_images_keep_their_resolution_in_the_first_layers(name, size, expected):
    sizes = []
    with torch.device("meta"):
        model = models.models.make(name).build((size, size, 3), 10)
        model.blocks.register_forward_hook(lambda module, x, y: sizes.append(y.shape[2:]))
        model(torch.randn(2, 3, size, size))
    assert sizes == [(expected, expected)]


def test_text_of_any_length_up_to_the_context():
    model = make("transformer")
    for length in (1, 5, LENGTH):
        tokens = inputs("transformer")[:, :length]
        assert model(tokens).shape == (4, length, VOCABULARY)


def test_a_token_does_not_see_those_that_follow():
    model, tokens = make("transformer"), inputs("transformer")
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCABULARY
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert ((a - b)[:, 9:].abs().amax(2) > 1e-4).all()


def test_depth_is_the_number_of_layers_with_kernels():
    for name in models.models:
        if not name.startswith("resnet") or name == "resnet1d":
            continue
        model = models.build(name, (32, 32, 3), 10, seed=0)
        kernels = [n for n, p in model.named_parameters() if p.dim() > 1 and "shortcut" not in n]
        assert len(kernels) == int(name.removeprefix("resnet")), name


def test_paper_details():
    model = models.build("resnet20", (32, 32, 3), 10, seed=0)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}
    shortcuts = [m for n, m in model.named_modules() if n.endswith("shortcut")]
    convolutions = [m for m in shortcuts if isinstance(m, torch.nn.Conv2d)]
    assert [m.kernel_size for m in convolutions] == [(1, 1), (1, 1)]
    kernel = model.blocks[-1].conv2.weight
    assert kernel.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", FAMILIES)
def test_seed_decides_the_weights_and_nothing_else_changes(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (make(name, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    kernels = [key for key, p in first.named_parameters() if cpfast.is_weight(key, p)]
    for key in kernels:
        assert not torch.equal(first.get_parameter(key), other.get_parameter(key)), key
        # no direction to turn from otherwise
        assert first.get_parameter(key).norm() > 0, key


@pytest.mark.cuda
def test_the_random_state_of_the_gpu_is_left_alone():
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    make("cnn")
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_do_not_mix_in_evaluation(name):
    model, x = make(name).eval(), inputs(name)
    with torch.inference_mode():
        alone = torch.cat([model(sample) for sample in x.split(1)])
        together = model(x)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_lowers_the_loss_and_repeats_to_the_bit(name, dtype):
    ends = []
    for _ in range(2):
        model, x = make(name).to(memory_format=torch.channels_last), inputs(name)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
                logits = model(x)
            assert logits.dtype == dtype
            loss = loss_of(logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_have_the_strides_of_their_weights(name):
    # Fused optimizers read both as they lie in memory.
    model = make(name).to(memory_format=torch.channels_last)
    loss_of(model(inputs(name))).backward()
    for key, p in model.named_parameters():
        sides = zip(p.shape, p.stride(), p.grad.stride(), strict=True)
        assert all(a == b for size, a, b in sides if size > 1), key


def compiled_equals_eager(name, backend):
    model, twin, x = make(name), make(name), inputs(name)
    loss_of(torch.compile(model, fullgraph=True, backend=backend)(x)).backward()
    loss_of(twin(x)).backward()
    for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_is_one_graph(name):
    compiled_equals_eager(name, "aot_eager")


@pytest.mark.slow
def test_compiled_by_inductor():
    compiled_equals_eager("cnn", "inductor")


@pytest.mark.cuda
@pytest.mark.parametrize("name", FAMILIES)
def test_a_captured_step_equals_an_eager_one(name):
    x = inputs(name).cuda()
    gradients = []
    for captured in (False, True):
        model = make(name).cuda().to(memory_format=torch.channels_last)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(x).square().mean().backward()
        torch.cuda.current_stream().wait_stream(stream)
        model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                model(x).square().mean().backward()
            graph.replay()
        else:
            model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", models.models)
def test_weights_are_the_kernels_of_dense_layers_and_convolutions(name):
    shape = SHAPES.get(name, (32, 32, 3))
    with torch.device("meta"):
        model = models.models.make(name).build(shape, 10)
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear, torch.nn.Embedding)
    expected = {f"{key}.weight" for key, m in model.named_modules() if isinstance(m, kinds)}
    assert {key for key, p in model.named_parameters() if cpfast.is_weight(key, p)} == expected


def test_quadrant_means_against_loops():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected = torch.cat(
        [x[:, :, r, :][:, :, :, c].mean((2, 3)) for r in (slice(0, 3), slice(2, 5))
         for c in (slice(0, 2), slice(2, 4))], 1
    )  # fmt: skip
    torch.testing.assert_close(_quadrant_means(x), expected)


def test_unknown_name():
    with pytest.raises(UserError, match="got 'resnet21'"):
        models.build("resnet21", (32, 32, 3), 10, seed=0)
