"""Models of other floating-point types: results say so, and an error tells what was cast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two layers, whose input may be cast."""

    def __init__(self, dtype=None):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.dtype = dtype

    def forward(self, x):
        return self.last(self.first(x if self.dtype is None else x.to(self.dtype)).relu())


def make_data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator, dtype=dtype), torch.randint(3, (40,), generator=generator)


def mixed():
    model = Net()
    model.last.bfloat16()
    return model


def with_buffer():
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    model[1].running_mean = model[1].running_mean.double()
    return model


class TestNotes:
    @pytest.mark.parametrize(
        ("model", "precision", "note"),
        [
            (Net().bfloat16(), "float32", "parameters are bfloat16: they are measured in float32"),
            (Net().half(), "float32", "parameters are float16: they are measured in float32"),
            (Net().half(), "float64", "parameters are float16: they are measured in float64"),
            (mixed(), "float32", "parameters are bfloat16 and float32: they are measured in float32"),
            (
                Net().double(),
                "float32",
                "parameters are float64: they are measured in float32; precision='float64' keeps all digits",
            ),
            (
                with_buffer(),
                "float32",
                "buffers are float32 and float64: they are measured in float32; precision='float64' keeps all digits",
            ),
            (
                nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).bfloat16(),
                "float32",
                "parameters and buffers are bfloat16: they are measured in float32",
            ),
        ],
    )
    def test_say_what_is_measured_in_another_type(self, model, precision, note):
        objective = Objective(model, make_data(), precision=precision)
        assert objective.notes == [f"the model's {note}"]
        assert objective.settings()["notes"] == objective.notes

    @pytest.mark.parametrize(
        ("model", "precision"), [(Net(), "float32"), (Net().double(), "float64"), (Net(), "float64")]
    )
    def test_are_not_there_where_nothing_is_lost(self, model, precision):
        assert Objective(model, make_data(), precision=precision).notes == []

    def test_half_is_measured_as_the_same_numbers(self):
        """In float32, of the weights as they are; what the model computes in bfloat16 itself is 0.1 % off."""
        model = Net().bfloat16()
        objective = Objective(model, make_data(torch.bfloat16))
        inputs, targets = make_data(torch.bfloat16)
        plain = Net()
        plain.load_state_dict(model.state_dict())
        expected = F.cross_entropy(plain.requires_grad_(False).double()(inputs.double()), targets)
        assert float(objective.loss(objective.theta)) == pytest.approx(float(expected), rel=1e-6)

    def test_lines_between_types(self):
        small, large = Net(), Net().bfloat16()
        found = lbgap.line(small, large, make_data(), points=4)
        plain = Net()
        plain.load_state_dict(large.state_dict())
        assert found.train_loss == lbgap.line(small, plain, make_data(), points=4).train_loss


HOW = r"let the model cast to the dtype of its parameters, as x.to\(self.weight.dtype\) does"


class Table(Net):
    """Multiplies by something that is no parameter or buffer."""

    table = torch.eye(6, dtype=torch.float64)

    def forward(self, x):
        return super().forward((x @ self.table).float())


class TestErrors:
    @pytest.mark.parametrize(
        ("model", "data", "options", "message"),
        [
            (
                Net(torch.bfloat16).bfloat16(),
                make_data(),
                {},
                rf"\(lbgap made its parameter 'first.weight' float32, bfloat16 before: {HOW}\)$",
            ),
            (
                Net(torch.float64).double(),
                make_data(),
                {},
                rf"'first.weight' float32, float64 before: {HOW}, or pass precision='float64'\)$",
            ),
            (
                Net(torch.float32),
                make_data(),
                {"precision": "float64"},
                rf"'first.weight' float64, float32 before: {HOW}, or pass precision='float32'\)$",
            ),
            (Table(), make_data(torch.float64), {}, rf"\(lbgap made the inputs float32, float64 before: {HOW}\)$"),
        ],
    )
    def test_tell_what_was_cast(self, model, data, options, message):
        model(data[0])  # as the user calls it
        with pytest.raises(ValueError, match=message):
            Objective(model, data, **options)

    def test_a_buffer(self):
        class Scaled(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.eye(6, dtype=torch.float64))

            def forward(self, x):
                return super().forward((x.double() @ self.scale).float())

        Scaled()(make_data()[0])
        with pytest.raises(ValueError, match=rf"\(lbgap made its buffer 'scale' float32, float64 before: {HOW}\)$"):
            Objective(Scaled(), make_data())

    def test_a_part_that_casts_to_its_own_type(self):
        class Parts(Net):
            def forward(self, x):
                return self.last(self.first(x).relu().to(torch.bfloat16))

        model = Parts()
        model.last.bfloat16()
        with pytest.raises(
            ValueError, match=r"made its parameter 'last.weight' float32, bfloat16 before: let the model"
        ):
            Objective(model, make_data())

    def test_nothing_of_it_where_another_thing_is_the_reason(self):
        with pytest.raises(ValueError, match=r"cannot be multiplied \(32x5 and 6x8\)$"):
            Objective(Net().double(), (make_data()[0][:, :5], make_data()[1]))
        with pytest.raises(ValueError, match=r"same dtype, but got Double and Float$"):
            Objective(Net(torch.float64), make_data())
