"""A call of each op on the same few numbers, on any device."""

import torch
import torch.nn.functional as F

from lbgap import ops

N = 70_001
NO_BOX = (0.0, 0.0)
WINDOWS = ([3, 3], [1, 1], [1, 1], [1, 1])  # kernel, stride, padding and dilation: overlapping, and as many as elements


def draw(device="cuda", dtype=torch.float32):
    """A point, a direction and a centre, each of N numbers."""
    generator = torch.Generator(device).manual_seed(0)
    return tuple(torch.randn(N, generator=generator, device=device, dtype=dtype) for _ in range(3))


def every_op(y, d, x):
    """A call of each op, by name, of what :func:`draw` returns; each gives what it made, new tensors all of them."""
    return {**_box(y, d, x), **_history(y, d, x), **_points(y, d, x), **_subspace(d, x), **_tangents(y, d, x)}


def _written(like, call):
    """The output that a call was given, and its sums if it returns any."""
    out = torch.empty_like(like)
    sums = call(out)
    return (out,) if sums is None else (out, sums)


def _box(y, d, x):
    return {
        "box_project": lambda: _written(y, lambda out: ops.box_project(y, x, 0.1, 0.1, out)),
        "box_step": lambda: _written(y, lambda out: ops.box_step(y, d, 0.3, x, 0.1, 0.1, out)),
        "box_vertex": lambda: _written(y, lambda out: ops.box_vertex(y, d, x, 0.1, 0.1, out)),
    }


def _history(y, d, x):
    s, gradients = (torch.stack([a, b, c]) for a, b, c in ((y, d, x), (2 * y, 3 * d, x)))
    middle, q = torch.eye(6, dtype=torch.float64) * 0.1, torch.arange(6, dtype=torch.float64)
    low, high = x - 0.5, x + 0.5
    inside = y.clamp(low, high)

    def append():
        pairs = s.clone(), gradients.clone()
        return (*pairs, ops.history_append(y, x, d, y, *pairs, 1))

    def cauchy(out):
        return ops.history_cauchy(x, d, s, gradients, middle, 1.5, low, high, *NO_BOX, out)

    def combine():
        point = inside.clone()
        ops.history_combine(point, x, d, s, gradients, q, 1.5, low, high, *NO_BOX, True)
        return (point,)

    return {
        "history_append": append,
        "history_cauchy": lambda: _written(y, cauchy),
        "history_combine": combine,
        "history_gram": lambda: (ops.history_gram(inside, x, d, s, gradients, 1.5, low, high, *NO_BOX),),
        "history_line": lambda: (ops.history_line(d, x, inside, low, high, *NO_BOX),),
        "history_step": lambda: _written(y, lambda out: ops.history_step(x, inside, 0.4, low, high, *NO_BOX, out)),
    }


def _points(y, d, x):
    ends, few = torch.stack([y, d]), torch.linspace(-1, 1, 6, device=y.device, dtype=torch.float64).view(3, 2)
    samples = N // 5
    targets = torch.arange(samples, device=y.device) % 5
    first, weights = ends[:, : 5 * samples].double().view(2, 5, samples), ends[:, :30].double()
    logits = torch.stack([y, d, x])[:, : 5 * samples].view(3, samples, 5)
    return {
        "blend_points": lambda: _written(y.new_empty(3, N), lambda out: ops.blend_points(few, ends, out)),
        "chain_points": lambda: (ops.chain_points(few, first, weights, [5, 5], targets),),
        "xent_points": lambda: (ops.xent_points(logits, targets),),
    }


def _subspace(d, x):
    z = torch.linspace(-1, 1, 30, device=x.device, dtype=torch.float64)
    return {
        "subspace_apply": lambda: _written(x, lambda out: ops.subspace_apply(x, z, 1, 2, "normal", out)),
        "subspace_gram": lambda: (ops.subspace_gram(N, 30, 1, 2, "uniform", x.device),),
        "subspace_project": lambda: (ops.subspace_project(d, 30, 1, 2, "rademacher"),),
    }


def _tangents(y, d, x):
    batch, k, channels, plane = 70, 4, 5, (10, 5)
    t, r = (numbers[:-1].view(batch, k, channels, *plane) for numbers in (y, d))
    values, curve = x[:-1].view(k, batch, channels, *plane)[:2]
    scale, slopes, shifts = x[:channels], *d[: 2 * k * channels].view(2, k, channels)
    logits, p, weights = t.flatten(2), values.flatten(1).abs() / 64, x[:batch].abs()
    places = F.max_pool2d(values, *WINDOWS, return_indices=True)[1]

    return {
        "tangents_affine": lambda: _written(t, lambda out: ops.tangents_affine(t, scale, slopes, values, shifts, out)),
        "tangents_curve": lambda: _written(r, lambda out: ops.tangents_curve(r, values, curve, t, out)),
        "tangents_gather": lambda: _written(t, lambda out: ops.tangents_gather(t, places, out)),
        "tangents_scale": lambda: _written(t, lambda out: ops.tangents_scale(t, values, out)),
        "tangents_scatter": lambda: _written(t, lambda out: ops.tangents_scatter(r, places, *WINDOWS, out)),
        "tangents_softmax": lambda: _written(logits, lambda out: ops.tangents_softmax(logits, p, weights, out)),
    }
