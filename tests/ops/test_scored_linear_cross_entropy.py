"""Against the reference on whole logits in float64, and against scored_cross_entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from cuda_emulation.harness import CUDA
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import cpfast
from cpfast import ops, reference
from cpfast.ops import _logit_chunks

pytestmark = pytest.mark.skipif(
    cpfast.backend() == "reference", reason="the twin is what it is compared with"
)
# Of gradients, relative to their norm: what the products and the factors round to.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
ROWS, WIDTH, CLASSES = 41, 24, 70


@pytest.fixture(params=["cpu", "as on CUDA", CUDA])
def device(request, monkeypatch):
    """ "as on CUDA" takes the path on which the host looks at no value."""
    if request.param == "as on CUDA":
        monkeypatch.setattr(_logit_chunks, "_is_blind", lambda device: True)
        return torch.device("cpu")
    return torch.device(request.param)


def case(dtype=torch.float32, shape=(ROWS,), device="cpu", seed=0):
    """Operands, targets of which some are ignored, and weights of which some are 0."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size, scale):
        drawn = torch.randn(*size, generator=g, dtype=torch.float64) * scale
        return drawn.to(dtype).to(device).requires_grad_()

    hidden = normal(*shape, WIDTH, scale=1.0)
    weight, bias = normal(CLASSES, WIDTH, scale=0.7), normal(CLASSES, scale=1.0)
    target = torch.randint(CLASSES, shape, generator=g)
    target.view(-1)[::6] = -100
    factors = torch.rand(shape, generator=g)
    factors.view(-1)[::4] = 0.0
    return (hidden, weight, bias), target.to(device), factors.to(device)


def of_whole_logits(operands, target, logit_scale=1.0, softcap=None, **options):
    hidden, weight, bias = operands
    logits = logit_scale * hidden @ weight.t() + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return reference.scored_cross_entropy(logits, target, **options)


def in_float64(operands):
    return [x.detach().cpu().double().requires_grad_() for x in operands]


def distance(actual, expected):
    return ((actual.cpu().double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(ROWS,), (5, 9)], ids=str)
@pytest.mark.parametrize(
    ("reduction", "gradient"), [("none", None), ("mean", None), ("sum", None), ("mean", "backward")]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"softcap": 4.0, "logit_scale": 0.6, "z_loss": 0.02},
        {"class_weight": None},
        {"class_weight": None, "label_smoothing": 0.1, "z_loss": 0.02},
    ],
    ids=str,
)
def test_against_float64(device, dtype, shape, reduction, gradient, options):
    operands, target, factors = case(dtype, shape, device)
    exact = in_float64(operands)
    if "class_weight" in options:
        options = {**options, "class_weight": torch.linspace(0.1, 2, CLASSES, device=device)}
    expected = of_whole_logits(
        exact, target.cpu(), weight=factors.cpu().double(), reduction=reduction, **options
    )
    hidden, weight, bias = operands
    actual = ops.scored_linear_cross_entropy(
        hidden, weight, target, bias=bias, sample_weight=factors, reduction=reduction,
        gradient=gradient, chunk=8, **options,
    )  # fmt: skip
    above = torch.linspace(0.5, 2, actual.loss.numel()).view(actual.loss.shape)
    actual.loss.backward(above.to(actual.loss))
    expected.loss.backward(above.double())
    assert actual.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert distance(actual.loss.detach(), expected.loss.detach()) < TOLERANCE[dtype]
    for name in ("el2n", "margin"):
        limit = max(TOLERANCE[dtype], 1e-6)
        assert distance(getattr(actual, name), getattr(expected, name).double()) < limit, name
    if dtype in (torch.float32, torch.float64):
        assert torch.equal(actual.correct.cpu(), expected.correct)
    for own, other in zip(operands, exact, strict=True):
        assert own.grad.dtype == dtype
        assert distance(own.grad, other.grad) < TOLERANCE[dtype]
    hidden_grad = hidden.grad.view(-1, WIDTH)
    assert (hidden_grad[target.flatten() == -100] == 0).all()
    assert (hidden_grad[factors.flatten() == 0] == 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_are_off_by_no_more_than_those_of_whole_logits(dtype):
    """At most twice as much, in either norm."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=g, dtype=torch.float64).to(dtype)
    weight = (0.3 * torch.randn(900, 64, generator=g, dtype=torch.float64)).to(dtype)
    target = torch.randint(900, (300,), generator=g)
    factors = torch.rand(300, generator=g)

    def gradients(dtype, loss):
        operands = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        return torch.autograd.grad(loss(*operands), operands)

    def whole(h, w):
        losses = F.cross_entropy(F.linear(h, w), target, reduction="none")
        return (losses * factors.to(h.dtype)).sum() / len(target)

    def chunked(h, w):
        options = {"sample_weight": factors, "reduction": "mean", "chunk": 32}
        return ops.scored_linear_cross_entropy(h, w, target, **options).loss

    exact = gradients(torch.float64, whole)
    for own, other, true in zip(
        gradients(dtype, chunked), gradients(dtype, whole), exact, strict=True
    ):
        for order in (2, math.inf):
            errors = [torch.linalg.vector_norm((x.double() - true).flatten(), order)
                      for x in (own, other)]  # fmt: skip
            assert errors[0] <= 2 * errors[1] + 1e-15, order


def test_rows_are_those_of_scored_cross_entropy(device):
    (hidden, weight, bias), target, factors = case(device=device)
    logits = torch.addmm(bias, hidden, weight.t()).detach()
    expected = ops.scored_cross_entropy(logits, target, weight=factors)
    for chunk in (1, 7, ROWS, 1000):
        actual = ops.scored_linear_cross_entropy(
            hidden, weight, target, bias=bias, sample_weight=factors, chunk=chunk
        )
        for own, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(own.detach(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["loss", "el2n", "margin", "correct"])
@pytest.mark.parametrize("shape", [(9,), (9, 7)], ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_scores_reach_the_table(device, name, shape, z_loss):
    operands, target, factors = case(shape=shape, device=device)
    target[[4, 7]] = -100  # of which one is the second of a sample
    if len(shape) == 2:
        target[2, 3:] = -100
    index = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5], device=device)
    expected, table = torch.full((12,), -7.0), torch.full((12,), -7.0, device=device)
    of_whole_logits(
        in_float64(operands), target.cpu(), table=expected, index=index.cpu(), score=name
    )
    hidden, weight, bias = operands
    version = table._version
    ops.scored_linear_cross_entropy(
        hidden, weight, target, bias=bias, sample_weight=factors, reduction="mean", chunk=4,
        table=table, index=index.int(), score=name, z_loss=z_loss,
    )  # fmt: skip
    torch.testing.assert_close(table.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert table._version > version


def test_the_losses_of_rows_beside_their_mean(device):
    (hidden, weight, _), target, factors = case(device=device)
    each = torch.zeros(ROWS, device=device)
    mean = ops.scored_linear_cross_entropy(
        hidden, weight, target, sample_weight=factors, reduction="mean",
        table=each, index=torch.arange(ROWS, device=device),
    )  # fmt: skip
    kept = target != -100
    torch.testing.assert_close(mean.loss.detach(), (each * factors)[kept].sum() / kept.sum())


def test_no_more_rows_than_are_announced(device):
    (hidden, weight, _), target, _ = case(device=device)
    kept = int((target != -100).sum())
    expected = ops.scored_linear_cross_entropy(hidden, weight, target)
    actual = ops.scored_linear_cross_entropy(hidden, weight, target, max_rows=kept, chunk=8)
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own.detach(), other.detach())
    of_hidden, of_weight = torch.autograd.grad(actual.loss.sum(), (hidden, weight))
    wanted = torch.autograd.grad(expected.loss.sum(), (hidden, weight))
    torch.testing.assert_close((of_hidden, of_weight), wanted)


def test_more_rows_than_are_announced_are_noticed(device):
    (hidden, weight, _), target, _ = case(device=device)
    kept = target != -100
    if device.type == "cpu" and not _logit_chunks._is_blind(device):
        with pytest.raises(RuntimeError, match=rf"max_rows: expected at least the {kept.sum()} ro"):
            ops.scored_linear_cross_entropy(hidden, weight, target, max_rows=int(kept.sum()) - 1)
        return
    losses = _logit_chunks._scored_linear(
        hidden.detach(), weight.detach(), target, None, None, None, None, 0, None, 0.0, 0.0, -100,
        1.0, 0.0, 8, int(kept.sum()) - 1, False, False, False,
    )[0]  # fmt: skip
    assert losses[kept].isnan().all()


def test_all_are_ignored(device):
    (hidden, weight, _), target, _ = case(device=device)
    target[:] = -100
    loss = ops.scored_linear_cross_entropy(hidden, weight, target, reduction="mean").loss
    loss.backward()
    assert loss.isnan()  # as torch has it
    assert (hidden.grad == 0).all() and (weight.grad == 0).all()


def test_no_rows(device):
    (hidden, weight, _), target, _ = case(device=device)
    out = ops.scored_linear_cross_entropy(hidden[:0], weight, target[:0])
    out.loss.sum().backward()
    assert all(value.shape == (0,) for value in out)
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_no_rows_with_a_table(device, shape):
    hidden, target = torch.randn(*shape, WIDTH, device=device), torch.zeros(shape, device=device)
    weight, table = torch.randn(CLASSES, WIDTH, device=device), torch.ones(5, device=device)
    index = torch.arange(shape[0], device=device)
    ops.scored_linear_cross_entropy(hidden, weight, target.long(), table=table, index=index)
    assert (table == 1).all()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_layer_without_inputs_is_its_bias(device, reduction):
    (_, _, bias), target, _ = case(device=device)
    hidden, weight = (torch.empty(n, 0, device=device).requires_grad_() for n in (ROWS, CLASSES))
    loss = ops.scored_linear_cross_entropy(
        hidden, weight, target, bias=bias, reduction=reduction
    ).loss
    expected = F.cross_entropy(bias.expand(ROWS, -1), target, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(0.5 * loss.sum(), (hidden, weight, bias))
    assert [x.shape for x in grads[:2]] == [(ROWS, 0), (CLASSES, 0)]
    torch.testing.assert_close(grads[2], torch.autograd.grad(0.5 * expected.sum(), bias)[0])


def test_only_what_requires_a_gradient_gets_one(device):
    (hidden, weight, bias), target, _ = case(device=device)
    expected = torch.autograd.grad(
        ops.scored_linear_cross_entropy(hidden, weight, target, bias=bias).loss.sum(),
        (hidden, weight, bias),
    )
    for i, leaf in enumerate((hidden, weight, bias)):
        others = [x if x is leaf else x.detach() for x in (hidden, weight, bias)]
        for reduction in ("sum", "none"):
            loss = ops.scored_linear_cross_entropy(
                others[0], others[1], target, bias=others[2], reduction=reduction
            ).loss
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            torch.testing.assert_close(grad, expected[i])
    with torch.no_grad():
        assert not ops.scored_linear_cross_entropy(hidden, weight, target).loss.requires_grad


def test_gradcheck():
    (hidden, weight, bias), target, factors = case(torch.float64, (7,))
    for options in ({}, {"softcap": 3.0, "logit_scale": 0.5}):
        assert torch.autograd.gradcheck(
            lambda h, w, b, options=options: (
                ops.scored_linear_cross_entropy(
                    h, w, target, bias=b, sample_weight=factors, chunk=3, **options
                ).loss
            ),
            (hidden, weight, bias),
        )


def test_a_second_backward_pass():
    (hidden, weight, _), target, _ = case()
    loss = ops.scored_linear_cross_entropy(hidden, weight, target, reduction="sum").loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass"):
        loss.backward()
    again = ops.scored_linear_cross_entropy(
        hidden, weight, target, reduction="sum", gradient="backward"
    ).loss
    first = torch.autograd.grad(again, weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(again, weight))
    with pytest.raises(RuntimeError, match="second derivative is not implemented"):
        torch.autograd.grad(
            ops.scored_linear_cross_entropy(hidden, weight, target).loss.sum(),
            weight,
            create_graph=True,
        )


def test_equal_to_the_bit_at_any_upstream_gradient_of_one():
    (hidden, weight, _), target, _ = case()
    options = {"reduction": "mean"}
    first = torch.autograd.grad(
        ops.scored_linear_cross_entropy(hidden, weight, target, **options).loss, weight
    )[0]
    scaled = 4 * ops.scored_linear_cross_entropy(hidden, weight, target, **options).loss
    assert torch.equal(torch.autograd.grad(scaled, weight)[0], 4 * first)


def test_half_precision_keeps_small_gradients():
    """A factor of 1e-6 a row would leave nothing of them in float16."""
    (hidden, weight, _), target, _ = case(torch.float16)
    factors = torch.full((ROWS,), 1e-6)
    loss = ops.scored_linear_cross_entropy(
        hidden, weight, target, sample_weight=factors, reduction="mean"
    ).loss
    (65536.0 * 64 * loss).backward()
    exact = in_float64((hidden, weight, torch.zeros(CLASSES)))
    of_whole_logits(exact, target, weight=factors.double(), reduction="mean").loss.backward()
    assert distance(hidden.grad, exact[0].grad * 65536 * 64) < 1e-3


def test_under_autocast(device):
    (hidden, weight, bias), target, _ = case(device=device)
    with torch.autocast(device.type, torch.bfloat16):
        actual = ops.scored_linear_cross_entropy(
            hidden, weight, target, bias=bias, reduction="mean"
        )
        logits = F.linear(hidden, weight, bias)
    assert logits.dtype == torch.bfloat16
    expected = ops.scored_cross_entropy(logits, target, reduction="mean")
    actual.loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-2, atol=1e-3)
    (of_weight,) = torch.autograd.grad(expected.loss, weight)
    assert distance(weight.grad, of_weight.cpu().double()) < 1e-2


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_it_compiles_into_one_graph(reduction):
    (hidden, weight, bias), target, factors = case(shape=(5, 9))

    def loss(h, w, table):
        return ops.scored_linear_cross_entropy(
            2 * h, w, target, bias=bias, sample_weight=factors, reduction=reduction,
            table=table, index=torch.arange(5),
        ).loss.sum()  # fmt: skip

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    table, expected_table = torch.zeros(2, 5)
    grads = torch.autograd.grad(compiled(hidden, weight, table), (hidden, weight))
    expected = torch.autograd.grad(loss(hidden, weight, expected_table), (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert torch.equal(table, expected_table) and (table > 0).all()


def test_within_a_checkpoint_and_with_a_tied_embedding():
    (_, weight, _), target, _ = case()
    tokens = torch.randint(CLASSES, (ROWS,))

    def loss(w):
        hidden = F.embedding(tokens, w).tanh()
        return ops.scored_linear_cross_entropy(hidden, w, target, reduction="mean").loss

    hidden = F.embedding(tokens, weight).tanh()
    plain = F.cross_entropy(F.linear(hidden, weight), target)
    (expected,) = torch.autograd.grad(plain, weight)
    for walked in (loss(weight), checkpoint(loss, weight, use_reentrant=False)):
        (grad,) = torch.autograd.grad(walked, weight)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


def test_opcheck():
    (hidden, weight, bias), target, factors = case()
    table = torch.zeros(ROWS)
    of_loss = (0, torch.ones(CLASSES), 0.1, 0.01, -100, 1.0, 0.0, 8, -1)
    for factor, wanted in (
        (None, (False,) * 3),
        (factors, (True,) * 3),
        (factors, (True, False, False)),
    ):
        opcheck(
            torch.ops.cpfast.scored_linear_cross_entropy.default,
            (
                hidden.detach(), weight.detach(), target, factor, bias.detach(), table,
                torch.arange(ROWS), *of_loss, *wanted,
            ),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
        )  # fmt: skip


def test_the_dtype_of_the_operands_is_kept_under_autocast(monkeypatch):
    """Where a CPU has no half-precision products, they are in float32, whatever is around."""
    monkeypatch.setattr(_logit_chunks, "computed_in", lambda dtype, device: torch.float32)
    (hidden, weight, _), target, _ = case()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.scored_linear_cross_entropy(hidden, weight, target, reduction="mean").loss
    loss.backward()
    rounded = in_float64([x.bfloat16() for x in (hidden, weight)])
    exact = of_whole_logits((*rounded, torch.zeros(CLASSES)), target, reduction="mean").loss
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    # Rounded once, to the dtype of the operands.
    assert distance(weight.grad, rounded[1].grad) < 3e-3


@pytest.mark.cuda
@pytest.mark.parametrize("max_rows", [None, 40])
def test_it_is_captured(max_rows):
    operands, target, _ = case(device="cuda")
    hidden, weight, _ = operands
    each, index = torch.zeros(ROWS, device="cuda"), torch.arange(ROWS, device="cuda")

    def step():
        loss = ops.scored_linear_cross_entropy(
            hidden, weight, target, reduction="mean", chunk=8, max_rows=max_rows,
            table=each, index=index,
        ).loss  # fmt: skip
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    expected = [x.clone() for x in step()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_no_more_than_a_chunk_of_the_logits_is_held():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 16, generator=g).requires_grad_()
    weight = torch.randn(4000, 16, generator=g).requires_grad_()
    target = torch.randint(4000, (512,), generator=g)
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = ops.scored_linear_cross_entropy(
            hidden, weight, target, reduction="mean", chunk=32
        ).loss
        loss.backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 1.1 * 32 * 4000 * 4


def test_the_chunk_is_a_sixteenth_of_the_rows():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    rows = (0, 1, 300, 4096, 4097, 65536)
    assert [_logit_chunks.chunk_rows(n, 768, cpu) for n in rows] == [1, 1, 256, 256, 257, 4096]
    assert [_logit_chunks.chunk_rows(n, 2048, gpu) for n in rows] == [1, 1, 300, 1024, 1024, 4096]


H, W, Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("hidden", "weight", "target", "options", "message"),
    [
        (H[0], W, Y, {}, r"hidden: expected shape \[N, D\] or \[B, T, D\], got \[4\]"),
        (H.long(), W, Y, {}, "hidden: expected float32, .* got torch.int64"),
        (H, W[:, :2], Y, {}, r"weight: expected shape \[V, 4\], got \[5, 2\]"),
        (H, W[:0], Y, {}, r"weight: expected shape \[V, 4\], got \[0, 4\]"),
        (H, W.double(), Y, {}, "weight: expected torch.float32, as hidden, got torch.float64"),
        (H, W.to("meta"), Y, {}, "weight: expected device cpu, as hidden, got meta"),
        (H, W, Y[:2], {}, r"target: expected shape \[3\], got \[2\]"),
        (H, W, Y.float(), {}, "target: expected classes of an integer dtype, got torch.float32"),
        (H, W, Y, {"class_weight": torch.ones(4)}, r"class_weight: expected shape \[5\] .*\[4\]"),
        (H, W, Y, {"class_weight": torch.ones(5).requires_grad_()}, "class_weight: .*detach"),
        (H, W, Y, {"z_loss": -0.1}, "z_loss: expected a finite number of at least 0, got -0.1"),
        (H, W, Y + 5, {}, r"target\[0\]: expected a class in \[0, 5\) or ignore_index -100, got 5"),
        (H, W, Y, {"bias": torch.zeros(4)}, r"bias: expected shape \[5\], got \[4\]"),
        (
            H,
            W,
            Y,
            {"sample_weight": torch.ones(2)},
            r"sample_weight: expected shape \[3\], .*\[2\]",
        ),
        (H, W, Y, {"sample_weight": torch.ones(3).requires_grad_()}, r"sample_weight: .*\(detach"),
        (H, W, Y, {"reduction": "avg"}, "reduction: expected one of .*'mean'.*, got 'avg'"),
        (H, W, Y, {"gradient": "inplace"}, "gradient: expected one of .*, got 'inplace'"),
        (H, W, Y, {"gradient": "forward"}, "gradient: expected 'backward' with reduction='none'"),
        (H, W, Y, {"chunk": 0}, "chunk: expected at least 1, got 0"),
        (H, W, Y, {"max_rows": 0}, "max_rows: expected at least 1, got 0"),
        (H, W, Y, {"max_rows": 2}, "max_rows: expected at least the 3 rows"),
        (H, W, Y, {"softcap": 0}, "softcap: expected a finite positive number, got 0"),
        (H, W, Y, {"logit_scale": math.nan}, "logit_scale: expected a finite positive .*, got nan"),
        (H, W, Y, {"table": torch.zeros(9)}, "index: expected one, as table is given, got None"),
        (
            H,
            W,
            Y,
            {"table": torch.zeros(2), "index": torch.arange(3)},
            r"index\[2\]: expected a sa",
        ),
    ],
)
def test_bad_arguments_are_named(hidden, weight, target, options, message):
    with pytest.raises(RuntimeError, match=message):
        ops.scored_linear_cross_entropy(hidden, weight, target, **options)


def test_arguments_of_another_type_are_named():
    for options, message in (
        ({"bias": [1.0]}, "bias: expected a tensor"),
        ({"softcap": "4"}, "softcap: expected a number"),
        ({"chunk": 1.5}, "chunk: expected an integer"),
    ):
        with pytest.raises(TypeError, match=message):
            ops.scored_linear_cross_entropy(H, W, Y, **options)
