"""What each method of an objective takes as a point, vectors, an output, buffers or indices, and what it refuses."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import lbgap
from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")


def build():
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    return Objective(model, (inputs, torch.arange(20) % 3))


OBJECTIVE = build()
N, THETA = OBJECTIVE.n, OBJECTIVE.theta
VECTOR = torch.linspace(-1, 1, N)
BUFFERS = {"1.running_mean": torch.linspace(-1, 1, 5)}


def rows(value):
    """The same as one row, where it has rows at all."""
    return value[None] if isinstance(value, torch.Tensor | np.ndarray) else value


POINTS = {  # name of the argument, shape, and a call with it
    "loss": ("theta", lambda o, x: o.loss(x)),
    "loss_and_accuracy": ("theta", lambda o, x: o.loss_and_accuracy(x)),
    "loss_and_gradient": ("theta", lambda o, x: o.loss_and_gradient(x)),
    "direction": ("theta", lambda o, x: o.direction(x)),
    "enqueue": ("theta", lambda o, x: o.enqueue(x, torch.empty(N))),
    "log_probability_direction": ("theta", lambda o, x: o.log_probability_direction(x, 1)),
    "hvp": ("theta", lambda o, x: o.hvp(x, VECTOR[None])),
    "curvatures": ("theta", lambda o, x: o.curvatures(x, VECTOR[None])),
    "output_tangents": ("theta", lambda o, x: o.output_tangents(x, VECTOR)),
    "directional_derivatives": ("theta", lambda o, x: o.directional_derivatives(x, VECTOR)),
    "statistics": ("theta", lambda o, x: o.statistics(x)),
    "point": ("coordinates", lambda o, x: o.point(x)),
    "along": ("direction", lambda o, x: o.output_tangents(THETA, x)),
    "derivatives": ("direction", lambda o, x: o.directional_derivatives(THETA, x)),
}
ROWS = {
    "losses": ("points", "k", lambda o, x: o.losses(x)),
    "combination_losses": ("ends", "j", lambda o, x: o.combination_losses(torch.ones(1, 1), x)),
    "hvp": ("vectors", "k", lambda o, x: o.hvp(THETA, x)),
    "curvatures": ("vectors", "k", lambda o, x: o.curvatures(THETA, x)),
}
EVERY = {
    **{f"{call}, {name}": (name, f"({N},)", method) for call, (name, method) in POINTS.items()},
    **{
        f"{call}, {name}": (name, f"({count}, {N})", lambda o, x, method=method: method(o, rows(x)))
        for call, (name, count, method) in ROWS.items()
    },
}


def inference(value):
    with torch.inference_mode():
        return value.clone()


def plain(found):
    if isinstance(found, torch.Tensor):
        assert not found.requires_grad
        assert not found.is_inference()
        return found.tolist()
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items()}
    return [plain(value) for value in found] if isinstance(found, tuple) else found


SAME = {
    "requires grad": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: nn.Parameter(x.clone()),
    "inference": inference,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "NumPy": lambda x: x.numpy().copy(),
    "NumPy float64": lambda x: x.double().numpy(),
    "NumPy read-only": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "NumPy of another machine": lambda x: x.numpy().astype(">f4"),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("call", EVERY)
def test_what_is_the_same_point(call, kind):
    name, _, method = EVERY[call]
    value = VECTOR if name in ("direction", "vectors") else THETA
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = plain(method(OBJECTIVE, value))
        given = SAME[kind](value)
        assert plain(method(OBJECTIVE, given)) == expected
    assert not isinstance(given, torch.Tensor) or torch.equal(given.detach().clone(), value)


OTHERS = {
    "None": (None, TypeError, "got NoneType"),
    "a list": ([0.0] * N, TypeError, "got list"),
    "a word": ("theta", TypeError, "got str"),
    "integers of NumPy": (np.zeros(N, int), TypeError, "got ndarray of int64"),
    "sparse": (THETA.to_sparse(), ValueError, "got torch.sparse_coo: pass it as .to_dense()"),
    "float64": (THETA.double(), ValueError, "torch.float64 on cpu"),
    "float16": (THETA.half(), ValueError, "torch.float16 on cpu"),
    "complex": (THETA + 0j, ValueError, "torch.complex64 on cpu"),
    "another device": (THETA.to("meta"), ValueError, "torch.float32 on meta"),
    "too short": (THETA[:-1], ValueError, f"{N - 1}"),
    "NumPy too short": (THETA[:-1].numpy(), ValueError, f"{N - 1}"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("call", EVERY)
def test_what_is_no_point(call, kind):
    name, shape, method = EVERY[call]
    value, error, got = OTHERS[kind]
    with pytest.raises(error) as caught:
        method(OBJECTIVE, value)
    message = str(caught.value)
    assert re.match(rf"{name} must be ", message), message
    assert got in message
    assert len(message.splitlines()) == 1
    if error is TypeError:
        assert shape in message


@pytest.mark.parametrize("call", ["hvp, vectors", "curvatures, vectors", "along, direction", "derivatives, direction"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vectors_are_finite(call, bad):
    name, _, method = EVERY[call]
    with pytest.raises(ValueError, match=f"^{name} must be finite, but .* NaN or infinit"):
        method(OBJECTIVE, torch.cat([VECTOR[:-1], torch.tensor([bad])]))


def test_a_point_that_is_nan_has_no_finite_loss():
    for call in (OBJECTIVE.loss, OBJECTIVE.loss_and_gradient, OBJECTIVE.direction):
        with pytest.raises(FloatingPointError, match="the loss is nan"):
            call(THETA * math.nan)
    assert OBJECTIVE.losses((THETA * math.nan)[None]).isnan().all()


OUTS = {
    "None": (None, TypeError, "got NoneType"),
    "NumPy": (np.zeros(N, np.float32), TypeError, "got ndarray"),
    "float64": (torch.zeros(N).double(), ValueError, "torch.float64"),
    "short": (torch.zeros(N - 1), ValueError, f"got ({N - 1},)"),
    "sparse": (torch.zeros(N).to_sparse(), ValueError, "sparse_coo"),
    "expanded": (torch.zeros(1).expand(N), ValueError, "have memory for each entry, got an expanded tensor"),
    "inference": (inference(torch.zeros(N)), ValueError, "not be a tensor of inference mode"),
}


@pytest.mark.parametrize("kind", OUTS)
def test_where_no_gradient_can_be_written(kind):
    out, error, got = OUTS[kind]
    calls = [lambda: OBJECTIVE.enqueue(THETA, out)]
    if out is not None:
        calls += [lambda: OBJECTIVE.loss_and_gradient(THETA, out=out), lambda: OBJECTIVE.direction(THETA, out)]
        calls += [lambda: OBJECTIVE.log_probability_direction(THETA, 1, out)]
    for call in calls:
        with pytest.raises(error, match=rf"^out must .*{re.escape(got)}"):
            call()


def test_where_a_gradient_can_be_written():
    expected = OBJECTIVE.loss_and_gradient(THETA)[1]
    for out in (torch.zeros(N), torch.zeros(N, 2)[:, 0], THETA.clone(), nn.Parameter(torch.zeros(N))):
        point = out if torch.equal(out.detach(), THETA) else THETA
        assert OBJECTIVE.loss_and_gradient(point, out=out)[1] is out
        assert torch.equal(out.detach(), expected)


def test_parts_of_a_vector_are_views_of_it():
    vector = THETA.clone().requires_grad_()
    parts = OBJECTIVE.split(vector)
    assert parts["0.weight"].requires_grad
    assert parts["0.weight"].data_ptr() == vector.data_ptr()
    assert torch.equal(OBJECTIVE.split(THETA.numpy())["3.bias"], THETA[-3:])
    for wrong, error in (
        (THETA[:-1], ValueError),
        (THETA[None], ValueError),
        (None, TypeError),
        ([0.0] * N, TypeError),
    ):
        with pytest.raises(error, match=rf"^vector must be .*\({N},\), got"):
            OBJECTIVE.split(wrong)


def test_coefficients():
    ends = torch.stack([THETA, THETA + 0.01])
    wanted = [[1.0, 0.0], [0.25, 0.75]]
    expected = OBJECTIVE.combination_losses(torch.tensor(wanted), ends)[0]
    for given in (np.array(wanted), torch.tensor(wanted).double(), torch.tensor(wanted, requires_grad=True)):
        assert torch.equal(OBJECTIVE.combination_losses(given, ends)[0], expected)
    assert torch.equal(OBJECTIVE.combination_losses(torch.tensor([[1, 0]]), ends)[0], expected[:1])
    for wrong, error, message in (
        (wanted, TypeError, r"coefficients must be a tensor \(k, 2\), got list"),
        (None, TypeError, r"coefficients must be a tensor \(k, 2\), got NoneType"),
        (torch.tensor(wanted).to_sparse(), ValueError, "coefficients must be a dense tensor"),
        (torch.tensor(wanted) + 0j, ValueError, r"coefficients must hold real numbers \(k, 2\), got torch.complex64"),
        (torch.ones(1, 2, device="meta"), ValueError, "coefficients must hold real numbers .* on meta"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            OBJECTIVE.combination_losses(wrong, ends)


def test_buffers():
    expected = None
    for value in (BUFFERS["1.running_mean"], BUFFERS["1.running_mean"].numpy(), BUFFERS["1.running_mean"].double()):
        objective = build()
        objective.set_buffers({"1.running_mean": value})
        found = objective.loss(THETA)
        assert found != OBJECTIVE.loss(THETA)
        combined = OBJECTIVE.combination_losses(torch.ones(1, 1), THETA[None], buffers={"1.running_mean": value[None]})[
            0
        ]
        expected = (found, combined) if expected is None else expected
        assert expected == (found, combined)
    objective.set_buffers({"1.num_batches_tracked": np.array(3)})
    for wrong, error, message in (
        (None, TypeError, "buffers must map names to tensors, got NoneType"),
        ([torch.ones(5)], TypeError, "buffers must map names to tensors, got list"),
        ({"1.running_mean": [0.0] * 5}, TypeError, r"buffer '1.running_mean' must be a tensor \(5,\), got list"),
        ({"1.running_mean": torch.ones(5).to_sparse()}, ValueError, "buffer '1.running_mean' must be a dense tensor"),
        ({"1.running_mean": torch.ones(5) + 0j}, ValueError, r"buffer '1.running_mean' must hold real numbers \(5,\)"),
        ({"1.running_mean": torch.ones(5, device="meta")}, ValueError, ".* got torch.float32 on meta"),
        ({"2": torch.ones(5)}, ValueError, "the model has no buffer '2' of shape"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            objective.set_buffers(wrong)


def test_indices_of_samples():
    expected = OBJECTIVE.part(torch.tensor([3, 1, 4])).loss(THETA)
    for given in ([3, 1, 4], (3, 1, 4), np.array([3, 1, 4], np.int32), torch.tensor([3, 1, 4], dtype=torch.uint8)):
        assert OBJECTIVE.part(given).loss(THETA) == expected
    assert OBJECTIVE.part(inference(torch.tensor([3, 1, 4]))).loss(THETA) == expected
    assert OBJECTIVE.part(range(20)).loss(THETA) == OBJECTIVE.loss(THETA)
    for wrong in (None, 3, "123", torch.tensor(3), torch.tensor([[1]]), {1}, torch.tensor([1], device="meta")):
        with pytest.raises(TypeError, match=r"^chosen must be one or more indices below 20, got"):
            OBJECTIVE.part(wrong)
    for wrong in ([], [20], [-1], [1.0], [True], [None], torch.ones(20, dtype=torch.bool), np.array([0.5])):
        with pytest.raises(ValueError, match=r"^chosen must be one or more indices below 20, got"):
            OBJECTIVE.part(wrong)


def test_classes_and_names():
    expected = plain(OBJECTIVE.log_probability_direction(THETA, 1))
    for label in (np.int64(1), torch.tensor(1)):
        assert plain(OBJECTIVE.log_probability_direction(THETA, label)) == expected
    for wrong in (None, 1.0, True, "1", [1], 3, -1):
        with pytest.raises(ValueError, match=r"^label must be a class index below 3, got"):
            OBJECTIVE.log_probability_direction(THETA, wrong)
    assert OBJECTIVE.some(np.array(["0.weight"])).n == OBJECTIVE.some(iter(["0.weight"])).n == 20
    for wrong in (None, "0.weight", 3):
        with pytest.raises(TypeError, match=r"^names must be a list of names of parameters, got"):
            OBJECTIVE.some(wrong)


PUBLIC = {
    "start": lambda x: lbgap.fast_sharpness(OBJECTIVE, start=x, iterations=2),
    "critical": lambda x: lbgap.critical_sharpness(OBJECTIVE, direction=-x),
    "asymmetry": lambda x: lbgap.asymmetry(OBJECTIVE, directions={"one": x}, top=0, random=0),
    "plane": lambda x: lbgap.plane(OBJECTIVE, directions=x, points=2),
    "trace": lambda x: lbgap.hessian_trace(x, max_products=3),
    "operator": lambda x: lbgap.LinearOperator.of(torch.eye(N))(x),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_take_arrays(name):
    value = {
        "plane": torch.stack([VECTOR, VECTOR.abs()]),
        "trace": torch.diag(VECTOR),
        "operator": torch.stack([VECTOR, VECTOR.abs()]),
        "critical": OBJECTIVE.loss_and_gradient(THETA)[1],
    }.get(name, VECTOR)
    results = []
    for given in (value, value.numpy(), value.clone().requires_grad_()):
        found = PUBLIC[name](given)
        found = found.tolist() if name == "operator" else found.to_dict()
        results.append(
            found if name == "operator" else {key: value for key, value in found.items() if key != "seconds"}
        )
    assert str(timeless(results[0])) == str(timeless(results[1])) == str(timeless(results[2]))


def timeless(found):
    if isinstance(found, dict):
        return {name: timeless(value) for name, value in found.items() if name != "seconds"}
    return [timeless(value) for value in found] if isinstance(found, list) else found
