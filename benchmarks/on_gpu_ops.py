"""Every op on the GPU at small and odd sizes, held to the CPU kernels: what the sanitizers watch.

    on_gpu_ops.py [--no-gpu] [OP...]

Inputs are made on the CPU, so that almost every kernel that runs is cpfast's. --no-gpu rehearses it
on the CPU.
"""

import sys

import torch

from cpfast import ops

DEVICE = "cuda"
FAILED = []
CLASSES = [(33, 2), (7, 10), (5, 1000), (3, 5003), (2, 50257), (1, 200_000)]


def gpu(value):
    if isinstance(value, list):
        return [gpu(v) for v in value]
    return value.to(DEVICE, copy=True) if isinstance(value, torch.Tensor) else value


def _copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def compare(name, function, *arguments, rtol=1e-5, atol=1e-6):
    """Holds the function's tensors on the GPU to those on the CPU; main() tells what fails."""
    print(name, flush=True)  # the last line of one that ends the process
    try:
        theirs = [t.clone() for t in function(*(_copied(a) for a in arguments))]
        ours = [t.cpu() for t in function(*gpu(list(arguments)))]
        for on_gpu, on_cpu in zip(ours, theirs, strict=True):
            torch.testing.assert_close(on_gpu, on_cpu, rtol=rtol, atol=atol, equal_nan=True)
    except (AssertionError, RuntimeError) as error:
        FAILED.append(name)
        print(f"{name}: {error}", file=sys.stderr)


def rotations(params, refs):
    plan = ops.LayerPlan(params, refs)
    statistics = (*plan.layer_statistics(), *ops.layer_statistics(params, refs))
    return plan.layer_rotation(), ops.layer_rotation(params, refs), *statistics


def losses(gradient):
    def run(x, y, scores, index):
        x = x.clone().requires_grad_()
        scored = ops.scored_cross_entropy(
            x.clone(), y, reduction="mean", gradient=gradient, table=scores, index=index
        )
        (grad,) = torch.autograd.grad(scored.loss, x)
        return scored.loss.detach(), scored.el2n, scored.margin, scored.correct, grad, scores

    return run


def elementwise(op, gradient):
    def run(x, t, weight, scores, index):
        x = x.clone().requires_grad_()
        options = {"weight": weight, "gradient": gradient, "table": scores, "index": index}
        scored = getattr(ops, op)(x, t, reduction="mean", **options)
        (grad,) = torch.autograd.grad(scored.loss, x)
        return scored.loss.detach(), *scored[1:], grad, scores

    return run


def selections(scores):
    for options in ({}, {"shuffle": True}, {"subset": "bernoulli"}, {"dtype": torch.int32}):
        selection = ops.select_samples(scores, keep=0.5, seed=1, epoch=2, **options)
        yield from selection
    ascending = ops.select_samples(scores, keep=0.5, seed=1, epoch=2)
    for start in (0, len(scores) // 2):
        yield ops.shuffled_slice(ascending.indices, ascending.count, start, 100, seed=1, epoch=2)


def record(scores, index, values):
    ops.record_scores(scores, index, values)
    return (scores,)


def augment(images, index):
    yield ops.augment_batch(images, index, seed=1, epoch=2, flip=True, shift=0.1, rotation=15.0)
    yield ops.augment_batch(
        images,
        index,
        seed=1,
        epoch=2,
        flip=True,
        crop=4,
        cutout=8,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.2],
        dtype=torch.bfloat16,
    )


def augment_smaller(images, index):
    height, width = images.shape[1:3]
    for size in ((height - 1, width), (height // 3, width // 2), (1, 5)):
        yield ops.augment_batch(
            images,
            index,
            seed=1,
            epoch=2,
            flip=True,
            shift=0.1,
            rotation=15.0,
            crop=4,
            cutout=8,
            mean=images[0].float() / 255,
            size=size,
        )


def check_layers(g):
    shapes = [(1,), (3, 5), (0,), (127, 33), (4097,), (300, 300)]
    for dtype in (torch.float32, torch.bfloat16):
        refs = [torch.randn(s, generator=g) for s in shapes]
        params = [(r + 0.1 * torch.randn(r.shape, generator=g)).to(dtype) for r in refs]
        compare(f"layers, {dtype}", rotations, params, refs)


def check_cross_entropy(g):
    for dtype in (torch.float32, torch.bfloat16):
        for shape in CLASSES:
            x, y = torch.randn(shape, generator=g), torch.randint(shape[1], shape[:1], generator=g)
            index = torch.randperm(50, generator=g)[: shape[0]]
            for gradient in ("backward", "forward", "inplace"):
                name = f"cross-entropy {shape}, {dtype}, gradient in {gradient}"
                tolerances = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 1e-4}
                arguments = (x.to(dtype), y, torch.zeros(50), index)
                compare(name, losses(gradient), *arguments, **tolerances)


def check_elementwise(g):
    for dtype in (torch.float32, torch.bfloat16):
        for shape in [(300, 1), (33, 10), (7, 3, 30), (5, 1000), (3, 5003), (2, 200_001)]:
            x, t = (torch.rand(shape, generator=g).to(dtype) for _ in range(2))
            index = torch.randint(300, shape[:1], generator=g)
            weight = torch.rand(shape[0], 1, generator=g)
            for op in ("scored_binary_cross_entropy", "scored_mse"):
                for gradient in ("backward", "forward"):
                    name = f"{op} {shape}, {dtype}, gradient in {gradient}"
                    tolerances = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 1e-4}
                    arguments = (4 * x - 2, t, weight, torch.zeros(300), index)
                    compare(name, elementwise(op, gradient), *arguments, **tolerances)


def check_selection(g):
    for samples in (1, 1000, 50_001, 200_000):
        compare(f"select {samples}", selections, torch.rand(samples, generator=g), rtol=0, atol=0)


def check_record(g):
    index = torch.randint(100, (1000,), generator=g)
    compare("record", record, torch.zeros(100), index, torch.randn(1000, generator=g))


def check_augment(g):
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8, generator=g)
    index = torch.randint(20, (37,), generator=g)
    compare("augment", augment, images, index, rtol=1e-2, atol=1e-2)
    compare("augment, smaller", augment_smaller, images, index, atol=1e-5)
    # Beyond 4096 pixels, images are not read into shared memory.
    images = torch.randint(256, (20, 80, 70, 3), dtype=torch.uint8, generator=g)
    compare("augment, larger images", augment, images, index, rtol=1e-2, atol=1e-2)
    compare("augment, larger images made smaller", augment_smaller, images, index, atol=1e-5)


OPS = {
    "layers": check_layers,
    "cross-entropy": check_cross_entropy,
    "elementwise": check_elementwise,
    "selection": check_selection,
    "record": check_record,
    "augment": check_augment,
}


def main(names):
    for name in names or OPS:
        OPS[name](torch.Generator().manual_seed(0))
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    if FAILED:
        sys.exit(f"on_gpu_ops.py: {len(FAILED)} differ from the CPU: {'; '.join(FAILED)}")


if __name__ == "__main__":
    given = sys.argv[1:]
    if "--no-gpu" in given:
        given.remove("--no-gpu")
        DEVICE = "cpu"
    elif not torch.cuda.is_available():
        sys.exit("on_gpu_ops.py: torch sees no GPU")
    if unknown := set(given) - set(OPS):
        sys.exit(f"on_gpu_ops.py: no op {sorted(unknown)[0]!r}, only {', '.join(OPS)}")
    main(given)
