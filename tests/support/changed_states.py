"""States in which something else stands at a random place."""

import torch


def nested(depth, make):
    value = 0
    for _ in range(depth):
        value = make(value)
    return value


DEEP = nested(10_000, lambda inner: [inner]), nested(10_000, lambda inner: {"a": inner})


def assert_equal(a, b, where):
    """As `assert_same`, but NaN equals itself, and 1 equals 1.0."""
    numbers = all(type(x) in (int, float) for x in (a, b))
    if numbers or (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, check_dtype=not numbers)
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}, {key}")
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}, {number}")
    else:
        assert type(a) is type(b) and a == b, where


def values(tensor):
    """What may stand in the place of anything, and of this tensor."""
    new = [
        None, True, -1, 7, 10**30, 10**400, 1.5, float("nan"), float("inf"), "text", "a\nb", b"x",
        [], {}, (), [1, [2, {"a": None}]], {"epoch": 1}, {1: 2}, torch.zeros(()), torch.zeros(0),
        torch.zeros(3, dtype=torch.complex64), torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"), torch.zeros(1).expand(10**12), *DEEP,
    ]  # fmt: skip
    if isinstance(tensor, torch.Tensor):
        new += [
            tensor.flatten()[:-1], tensor[None], torch.cat([tensor.flatten()] * 2),
            tensor.double(), tensor.int(), tensor.bool(), tensor.to("meta"),
            torch.zeros((), dtype=tensor.dtype).expand(tensor.shape),
            torch.full_like(tensor, -1), torch.full_like(tensor, 2**30),
        ]  # fmt: skip
        if tensor.is_floating_point():
            new.append(torch.full_like(tensor, float("nan")))
    return new


def inner(value):
    """Its keys, if it holds something."""
    if isinstance(value, dict):
        return list(value)
    return range(len(value)) if isinstance(value, (list, tuple)) else []


def change(state, draw):
    """Put something else at a random place, or take the place away; returns the place."""
    parent, place = state, (draw.choice(list(state)),)
    while inner(parent[place[-1]]) and draw.random() < 0.8:
        parent = parent[place[-1]]
        place = (*place, draw.choice(inner(parent)))
        if isinstance(parent, tuple):  # which can only be replaced whole
            break
    if isinstance(parent, dict) and draw.random() < 0.1:
        del parent[place[-1]]
    elif isinstance(parent, tuple):
        whole = list(parent)
        whole[place[-1]] = draw.choice(values(whole[place[-1]]))
        holder = state
        for key in place[:-2]:
            holder = holder[key]
        holder[place[-2]] = tuple(whole)
    else:
        parent[place[-1]] = draw.choice(values(parent[place[-1]]))
    return place
