"""Every example runs on little data, and what it finds is what a loop in plain PyTorch finds."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lbgap.problem import hold

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "causal_lm": ("transformers",),
    "graph": ("torch_geometric",),
    "lora": ("transformers", "peft"),
    "lstm": (),
    "masked_lm": ("transformers",),
    "multi_label": (),
    "segmentation": (),
    "streamed": (),
    "vit": ("timm",),
}
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning"),  # torch_geometric
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft
]


def load(name):
    """The module of an example, once all that it needs is there."""
    for package in NEEDS[name]:
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moving(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def moved(model, point):
    """A copy of the model, in float64 so that its losses count as exact, with its trainable parameters at a point."""
    copied = copy.deepcopy(model).double().eval()
    vector_to_parameters(point.double(), moving(copied))
    return copied


def check(model, found, mean):
    """Compare both losses with ``mean(model)``, and look whether the point is in the box.

    float32 rounds each of some hundred terms of a loss near 1 to 6e-8, through a few layers: 1e-5 is far above that.
    """
    centre = parameters_to_vector(moving(model)).detach()
    assert found.base_loss == pytest.approx(mean(moved(model, centre)), rel=1e-5)
    assert found.max_loss == pytest.approx(mean(moved(model, found.point)), rel=1e-5)
    assert found.max_loss > found.base_loss
    half = found.settings["epsilon"] * (centre.abs() + 1)
    assert found.point.shape == centre.shape
    assert ((found.point - centre).abs() <= half * (1 + 1e-6) + 1e-7).all()


def ratio(sums):
    """The sum of the sums over the sum of the weights, of pairs of both."""
    totals = [(float(total), float(weight)) for total, weight in sums]
    return sum(total for total, _ in totals) / sum(weight for _, weight in totals)


def floating(part):
    return part.double() if torch.is_tensor(part) and part.is_floating_point() else part


@torch.no_grad()
def token_mean(model, batches, shift=0):
    """The mean over all labels that are not -100, each of the token before it by ``shift``."""
    sums = []
    for batch in batches:
        inputs = {name: part for name, part in batch.items() if name != "labels"}
        logits = model(**inputs).logits
        logits, labels = logits[:, : logits.shape[1] - shift].flatten(0, 1), batch["labels"][:, shift:].flatten()
        sums.append((F.cross_entropy(logits, labels, reduction="sum"), (labels != -100).sum()))
    return ratio(sums)


def test_causal_lm(capsys):
    models, loader, found = load("causal_lm").main(count=48, epochs=2)
    for model, one in zip(models, found, strict=True):
        check(model, one, lambda model: token_mean(model, loader, shift=1))
    weight = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in loader)
    assert found[0].settings["weight"] == weight
    assert "barrier" in capsys.readouterr().out


def test_masked_lm():
    example, read = load("masked_lm"), []

    class Recorded(example.DataCollatorForLanguageModeling):
        def __call__(self, samples, *rest, **options):
            read.append(super().__call__(samples, *rest, **options))
            return read[-1]

    example.DataCollatorForLanguageModeling = Recorded
    model, loader, found = example.main(count=60, epochs=1)
    frozen = read[-len(loader) :]  # the data are read again for each layer, and alike
    check(model, found, lambda model: token_mean(model, frozen))
    assert any("draw" in note for note in found.settings["notes"])


def test_vit():
    model, loader, found = load("vit").main(count=48, epochs=1)

    @torch.no_grad()
    def mean(model):
        return ratio((F.cross_entropy(model(x.double()), y, reduction="sum"), len(y)) for x, y in loader)

    check(model, found, mean)
    assert any("shuffle" in note for note in found.settings["notes"])


def test_segmentation():
    model, loader, found = load("segmentation").main(count=24, epochs=1, width=4)

    @torch.no_grad()
    def mean(model):
        return ratio(
            (F.cross_entropy(model(x.double()), y, ignore_index=255, reduction="sum"), (y != 255).sum())
            for x, y in loader
        )

    check(model, found, mean)


def test_multi_label():
    model, loader, found = load("multi_label").main(count=64, epochs=2)

    @torch.no_grad()
    def mean(model):
        return ratio(
            (F.binary_cross_entropy_with_logits(model(x.double()), y.double(), reduction="sum"), y.numel())
            for x, y in loader
        )

    check(model, found, mean)


def test_graph():
    model, graph, found = load("graph").main(nodes=45, steps=20)
    known = graph.train_mask

    @torch.no_grad()
    def mean(model):
        return F.cross_entropy(model(graph.x.double(), graph.edge_index)[known], graph.y[known]).item()

    check(model, found, mean)
    assert found.settings["weight"] == int(known.sum())


def test_lstm():
    model, loader, found = load("lstm").main(count=48, epochs=1, hidden=8)

    @torch.no_grad()
    def mean(model):
        return ratio(
            (F.cross_entropy(model(x.double(), lengths), y, reduction="sum"), len(y)) for (x, lengths), y in loader
        )

    check(model, found, mean)


def test_lora():
    model, loader, found = load("lora").main(count=32, epochs=1)
    adapters = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapters
    assert all("lora_" in name for name in adapters)
    assert found.settings["n"] == len(found.point) == sum(parameter.numel() for parameter in moving(model))
    check(model, found, lambda model: token_mean(model, loader, shift=1))


@pytest.mark.parametrize(("free", "kept"), [(2**40, "resident"), (2**16, "streamed from the source")])
def test_streamed(tmp_path, monkeypatch, free, kept):
    monkeypatch.setattr(hold, "free_host_bytes", lambda: free)
    model, batches, found = load("streamed").main(tmp_path, files=3, count=200)

    @torch.no_grad()
    def mean(model):
        pairs = ((torch.from_numpy(x).double(), torch.from_numpy(y)) for x, y in batches())
        return ratio((F.cross_entropy(model(x), y, reduction="sum"), len(y)) for x, y in pairs)

    check(model, found, mean)
    assert (found.settings["samples"], found.settings["data"]) == (600, kept)


def test_each_example_is_tried_and_listed():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(NEEDS)
    listed = (EXAMPLES / "README.md").read_text()
    for script in scripts:
        assert f"test_{script}" in globals()
        assert f"python examples/{script}.py" in listed
        assert f"python examples/{script}.py" in (EXAMPLES / f"{script}.py").read_text()
