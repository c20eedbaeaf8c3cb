"""Models of PEFT: only what requires a gradient moves, under PEFT's names."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective

os.environ.setdefault("HF_HUB_OFFLINE", "1")
peft = pytest.importorskip("peft", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).tanh())


def make_data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)


LORA = {"r": 2, "target_modules": ["first", "last"], "lora_dropout": 0.1}
CONFIGS = {
    "lora": lambda: peft.LoraConfig(**LORA),
    "lora and a whole layer": lambda: peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["last"]),
    "lora and biases": lambda: peft.LoraConfig(**LORA, bias="all", use_rslora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["last"], feedforward_modules=["last"]),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["last"]),
}


def adapted(seed, config=CONFIGS["lora"]):
    """One base, and adapters of random weights."""
    with torch.random.fork_rng([]):
        model = peft.get_peft_model(Net(), config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_value_gradient_and_products(config):
    model, (inputs, targets) = adapted(1, config), make_data()
    objective = Objective(model, (inputs, targets), precision="float64")
    dense = adapted(1, config).double().eval()
    moving = {name: part for name, part in dense.named_parameters() if part.requires_grad}
    assert objective.names == tuple(moving)
    loss = F.cross_entropy(dense(inputs.double()), targets)
    parts = torch.autograd.grad(loss, moving.values(), create_graph=True)
    gradient = torch.cat([part.reshape(-1) for part in parts])
    value, found = objective.loss_and_gradient(objective.theta)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, gradient.detach(), rtol=1e-10, atol=1e-12)
    vector = torch.randn(1, objective.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = torch.autograd.grad(gradient @ vector[0], moving.values(), materialize_grads=True)
    expected = torch.cat([row.reshape(-1) for row in rows])
    torch.testing.assert_close(objective.hvp(objective.theta, vector)[0], expected, rtol=1e-9, atol=1e-11)


def test_a_line_between_adapters_of_one_base():
    small, large, (inputs, targets) = adapted(1), adapted(2), make_data()
    found = lbgap.line(torch.compile(small, backend="eager"), large, (inputs, targets), points=4, precision="float64")
    assert found.settings["ends_checked"] == "both"
    between = adapted(1).double().eval()
    for alpha, value in zip(found.alphas, found.train_loss, strict=True):
        with torch.no_grad():
            for name, part in between.named_parameters():
                ends = [dict(model.named_parameters())[name].double() for model in (small, large)]
                part.copy_((1 - alpha) * ends[0] + alpha * ends[1])
            expected = F.cross_entropy(between(inputs.double()), targets)
        assert value == pytest.approx(float(expected), rel=1e-12)


def test_merged_adapters():
    model = adapted(1)
    model.merge_adapter()
    with pytest.raises(
        ValueError, match=r"adapters are merged into the weights, so call model.unmerge_adapter\(\) first"
    ):
        Objective(model, make_data())
    model.unmerge_adapter()
    assert lbgap.fast_sharpness(model, make_data()).value > 0
