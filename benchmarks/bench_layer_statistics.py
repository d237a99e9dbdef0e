"""All layers in one call, against the twin, the paper's way (scipy per layer) and torch's."""

import pytest
import rivals
import torch
import torch.nn.functional as F
from harness import close, input_sets, too_big
from workloads import MODELS, numel, weights

from cpfast import ops, reference

F32, BF16 = torch.float32, torch.bfloat16
CASES = {
    "ResNet-56": (F32, F32),
    "ResNet-50": (F32, F32),
    "268 M": (F32, F32),
    "Llama 1.2 B": (BF16, BF16),
    "Llama 6.7 B": (BF16, BF16),
    "Llama 6.7 B, float32 snapshot": (BF16, F32),
}
# The twin's float64 and Python's loops say nothing new about larger ones.
SMALL = 100_000_000
COMPILED = ("ResNet-56", "268 M")


def flat(tensors):
    return [t.view(-1) for t in tensors]


def scipy_rotation(params, refs, *_):
    """As the paper does it."""
    from scipy.spatial import distance

    return [
        distance.cosine(w.cpu().numpy().ravel(), w0.cpu().numpy().ravel())
        for w, w0 in zip(params, refs, strict=True)
    ]


def cosine_similarity(params, refs, *_):
    pairs = zip(flat(params), flat(refs), strict=True)
    return torch.stack([1 - F.cosine_similarity(w, w0, dim=0) for w, w0 in pairs])


def cosines(dots, norms, ref_norms):
    return 1 - dots / (norms * ref_norms)


def dots_and_norms(params, refs, *_):
    dots = torch.stack([torch.dot(*wr) for wr in zip(flat(params), flat(refs), strict=True)])
    norms = [torch.stack([torch.linalg.vector_norm(t) for t in ts]) for ts in (params, refs)]
    return cosines(dots, *norms)


def two_dots(params, refs, norms, *_):
    pairs = list(zip(flat(params), flat(refs), strict=True))
    dots = torch.stack([torch.dot(w, w0) for w, w0 in pairs])
    return cosines(dots, torch.stack([torch.dot(w, w) for w, _ in pairs]).sqrt(), norms)


def dots_foreach_norm(params, refs, norms, *_):
    dots = torch.stack([torch.dot(*wr) for wr in zip(flat(params), flat(refs), strict=True)])
    return cosines(dots, torch.stack(torch._foreach_norm(params)), norms)


def foreach_products(params, refs, norms, *_):
    dots = torch.stack([p.sum() for p in torch._foreach_mul(params, refs)])
    return cosines(dots, torch.stack(torch._foreach_norm(params)), norms)


def from_differences(foreach_norm):
    """By the cosine rule, which needs norms alone."""

    def rotation(params, refs, norms, *_):
        w, d = foreach_norm(params), foreach_norm(torch._foreach_sub(params, refs))
        return 1 - (w * w + norms * norms - d * d) / (2 * w * norms)

    return rotation


def foreach_mm(params, refs, norms, *_):
    rows, columns = [w.view(1, -1) for w in params], [r.view(-1, 1) for r in refs]
    dots = torch.cat(torch._foreach_mm(rows, columns)).view(-1)
    return cosines(dots, torch.stack(torch._foreach_norm(params)), norms)


def segments(params, refs, norms, *_):
    lengths = torch.tensor([r.numel() for r in refs], device=refs[0].device)
    w, w0 = torch.cat(flat(params)), torch.cat(flat(refs))
    sums = torch.segment_reduce(torch.stack([w * w0, w * w], 1), "sum", lengths=lengths)
    return cosines(sums[:, 0], sums[:, 1].sqrt(), norms)


def stacked_by_shape(params, refs, norms, *_):
    """Few calls where few shapes repeat, as in ResNets and transformers."""
    groups, out = {}, torch.empty_like(norms)
    for layer, w in enumerate(params):
        groups.setdefault(w.shape, []).append(layer)
    for layers in groups.values():
        w, w0 = (torch.stack(flat([ts[i] for i in layers])) for ts in (params, refs))
        dots, squares = torch.linalg.vecdot(w, w0), torch.linalg.vector_norm(w, dim=1)
        out[layers] = cosines(dots, squares, norms[layers])
    return out


def foreach_statistics(params, refs, norms, *_):
    w, d = (torch.stack(torch._foreach_norm(t)) for t in (params, torch._foreach_sub(params, refs)))
    rotation = 1 - (w * w + norms * norms - d * d) / (2 * w * norms)
    flips = torch.stack([(p < 0).mean(dtype=F32) for p in torch._foreach_mul(params, refs)])
    counts = torch.tensor([p.numel() for p in params], device=w.device)
    return rotation, d, w, flips, torch.stack(torch._foreach_norm(params, 1)) / counts


def layers(case, device):
    """Input sets of (params, refs, their norms, those squared, a plan), or a skip; their bytes."""
    name, dtypes = case.split(",")[0], CASES[case]
    size = numel(MODELS[name]) * sum(d.itemsize for d in dtypes)
    reason = too_big(1.5 * size, device)
    if reason:
        pytest.skip(reason)

    def make(seed):
        params, refs = weights(MODELS[name], device, dtypes, seed)
        squares = torch.stack([torch.linalg.vector_norm(r, dtype=F32) for r in refs]).double() ** 2
        plan = ops.LayerPlan(params, refs, squares)
        return params, refs, squares.sqrt().float(), squares, plan

    return input_sets(make, size, device), size, name


def torch_sum(params, refs, *_):
    for tensor in (*params, *refs):
        tensor.sum()
    return 0


@pytest.mark.parametrize("case", CASES)
def bench_layer_rotation(race, device, case):
    sets, size, name = layers(case, device)
    contenders = {
        "cpfast": lambda *inputs: inputs[4].layer_rotation(),
        "cpfast, without a plan": lambda p, r, n, sq, *_: ops.layer_rotation(p, r, sq),
        "torch.dot twice per layer": two_dots,
        "torch.dot and foreach norm": dots_foreach_norm,
        "torch.dot and norms per layer": dots_and_norms,
        "foreach mul, sum and norm": foreach_products,
        "foreach sub and norms": from_differences(lambda t: torch.stack(torch._foreach_norm(t))),
        "stacked by shape": stacked_by_shape,
        "F.cosine_similarity per layer": cosine_similarity,
        "torch.compile of torch.dot twice": (
            rivals.compiled(two_dots) if case in COMPILED else "takes a minute to compile"
        ),
    }
    if hasattr(torch, "_foreach_mm"):
        contenders["foreach mm and norm"] = foreach_mm
    if size < 8 * SMALL:
        contenders["cat and segment_reduce"] = segments
        contenders["scipy per layer"] = scipy_rotation
        contenders["twin"] = lambda p, r, *_: reference.layer_rotation(p, r)
    if device == "cuda":
        norms = rivals.apex_norms(device)
        contenders["Apex norms, foreach sub"] = (
            norms if isinstance(norms, str) else from_differences(norms)
        )
    whole = numel(MODELS[name]) * CASES[case][0].itemsize
    copies = dict.fromkeys(
        ["foreach mul, sum and norm", "foreach sub and norms", "stacked by shape"], 2 * whole
    )
    # Products of bfloat16 are summed in bfloat16 by some.
    race(
        "layer_rotation",
        case,
        contenders,
        sets,
        size,
        agree=close(0, 1e-3 if CASES[case] == (F32, F32) else 0.03),
        temporaries=copies,
    )


@pytest.mark.parametrize("case", list(CASES)[:3])
def bench_layer_statistics(race, device, case):
    sets, size, _ = layers(case, device)
    contenders = {
        "cpfast": lambda *inputs: inputs[4].layer_statistics(),
        "cpfast, without a plan": lambda p, r, n, sq, *_: ops.layer_statistics(p, r, sq),
        "foreach": foreach_statistics,
        "torch.sum of the same bytes": torch_sum,
    }
    if size < 8 * SMALL:
        contenders["twin"] = lambda p, r, *_: reference.layer_statistics(p, r)
    race("layer_statistics", case, contenders, sets, size, temporaries={"foreach": size})
