"""Weights of a file into a model: names with and without wrappers, kinds of values, and what does not fit."""

import copy
import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

import lbgap
from lbgap.weights import fill, load_weights

LEFT = r"; what is left over belongs around the model \(to a loss\?\): load all into the module that was saved, .*"


def make_model(hidden=4, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2))


@pytest.fixture
def trained():
    """A model whose parameters and buffers are other than those of a new one."""
    model = make_model(seed=1)
    for _ in range(3):
        model(torch.randn(8, 3))
    return model


def assert_same(model, other):
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype
        assert torch.equal(value, two[name])


def renamed(model, prefix):
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


def refused(message, weights, model=None):
    """Weights are refused on one line that is exactly that, and the model stays as it was."""
    model = make_model() if model is None else model
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"the weights of w.pt do not fit the model: {message}$") as caught:
        fill(model, weights, "w.pt")
    assert "\n" not in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class TestFile:
    def test_the_model_itself_comes_back_in_its_mode(self, tmp_path, trained):
        torch.save(trained.state_dict(), tmp_path / "a.pt")
        save_file(trained.state_dict(), tmp_path / "a.safetensors")
        for name in ("a.pt", "a.safetensors"):
            for training in (True, False):
                model = make_model().train(training)
                parameters = [*model.parameters()]
                assert load_weights(model, tmp_path / name) is model
                assert model.training is training
                assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
                assert_same(model, trained)

    def test_weights_are_of_no_file_any_more(self, tmp_path, trained):
        torch.save(trained.state_dict(), tmp_path / "a.pt")
        model = load_weights(make_model(), tmp_path / "a.pt")
        (tmp_path / "a.pt").write_bytes(b"")
        assert_same(model, trained)

    def test_a_measure_of_it(self, tmp_path, trained):
        data = torch.randn(20, 3), torch.randint(2, (20,))
        torch.save(trained.state_dict(), tmp_path / "a.pt")
        options = {"epsilon": 1e-3, "restarts": 1}
        found = lbgap.fast_sharpness(lbgap.load_weights(make_model(), tmp_path / "a.pt"), data, **options)
        assert found.value == lbgap.fast_sharpness(trained, data, **options).value

    def test_a_run(self, tmp_path):
        data = torch.randn(12, 3), torch.randint(2, (12,))
        run = lbgap.train(make_model(), data, epochs=1, batch_size=4, out=tmp_path)
        assert_same(load_weights(make_model(), tmp_path), run.model)

    def test_of_a_checkpoint_with_other_things(self, tmp_path, trained):
        optimizer = torch.optim.Adam(trained.parameters())
        trained(torch.randn(8, 3)).sum().backward()
        optimizer.step()
        for entry in ("state_dict", "model_state_dict", "model", "module", "network"):
            torch.save({"epoch": 3, "optimizer": optimizer.state_dict(), entry: trained.state_dict()}, tmp_path / "a")
            assert_same(load_weights(make_model(), tmp_path / "a"), trained)

    def test_the_entry_that_fits(self, tmp_path, trained):
        every = {"model": make_model(hidden=5).state_dict(), "ema": trained.state_dict(), "rng": torch.zeros(9)}
        torch.save(every, tmp_path / "a.pt")
        assert_same(load_weights(make_model(), tmp_path / "a.pt"), trained)

    def test_several_entries_that_fit(self, tmp_path, trained):
        torch.save({"state_dict": make_model().state_dict(), "state_dict_ema": trained.state_dict()}, tmp_path / "a.pt")
        message = "holds several weights that fit the model, under 'state_dict', 'state_dict_ema': save those"
        with pytest.raises(ValueError, match=message):
            load_weights(make_model(), tmp_path / "a.pt")

    @pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model", "module"])
    @pytest.mark.parametrize("prefix", ["", "module.", "net."])
    @pytest.mark.parametrize("other", ["state_dict_ema", "best", "exp_avg"])
    def test_other_weights_are_not_taken_for_those_that_nearly_fit(self, tmp_path, trained, entry, prefix, other):
        weights = renamed(make_model(), prefix)
        path = tmp_path / "a.pt"
        torch.save({entry: weights | {"criterion.weight": torch.ones(2)}, other: trained.state_dict()}, path)
        beside = "" if other == "exp_avg" else rf" \(it also has '{other}'\)"
        message = (
            rf"entry '{entry}' of .*{beside} do not fit the model: 'criterion.weight' is not in the model; what is"
        )
        if other == "exp_avg":
            message = rf"weights of .* do not fit the model: 'criterion.weight' is not in the model{LEFT}"
        model = make_model()
        with pytest.raises(ValueError, match=message):
            load_weights(model, path)
        assert_same(model, make_model())
        weights.popitem()
        torch.save({entry: weights, other: trained.state_dict()}, path)
        with pytest.raises(ValueError, match=r"do not fit the model: '3.bias' is missing"):
            load_weights(model, path)

    @pytest.mark.parametrize("entry", ["exp_avg", "exp_avg_sq", "momentum", "momentum_buffer", "grads", "optimizer"])
    def test_moments_and_gradients_are_no_weights(self, tmp_path, trained, entry):
        moments = {name: torch.zeros_like(value) for name, value in trained.state_dict().items()}
        torch.save({"state_dict": trained.state_dict(), entry: moments}, tmp_path / "a.pt")
        assert_same(load_weights(make_model(), tmp_path / "a.pt"), trained)
        torch.save({"state_dict": renamed(trained, "a.b."), entry: moments}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"do not fit the model: '0\.weight' is missing"):
            load_weights(make_model(), tmp_path / "a.pt")
        torch.save({entry: moments}, tmp_path / "a.pt")
        with pytest.raises(
            ValueError, match=rf"has no weights, but what an optimizer keeps \(it holds {entry}\): save"
        ):
            load_weights(make_model(), tmp_path / "a.pt")

    def test_a_loss_beside_the_network(self, tmp_path, trained):
        class Task(nn.Module):
            def __init__(self):
                super().__init__()
                self.net, self.criterion = make_model(), nn.CrossEntropyLoss(torch.ones(2))

        task = Task()
        task.net.load_state_dict(trained.state_dict())
        torch.save({"state_dict": task.state_dict(), "epoch": 3}, tmp_path / "a.ckpt")
        assert_same(load_weights(Task(), tmp_path / "a.ckpt").net, trained)
        with pytest.raises(ValueError, match=rf"do not fit the model: 'criterion.weight' is not in the model{LEFT}$"):
            load_weights(make_model(), tmp_path / "a.ckpt")

    def test_a_small_network_beside_a_large_one(self, tmp_path):
        small, large = nn.Linear(2, 2, bias=False), make_model()
        path, ema = tmp_path / "a.pt", {"weight": torch.zeros(2, 2)}
        torch.save({"model": renamed(large, "critic.") | renamed(small, "generator."), "generator_ema": ema}, path)
        with pytest.raises(
            ValueError, match=r"'model' of .* do not fit the model: 'critic\.0\.weight' is not in the mod"
        ):
            load_weights(nn.Linear(2, 2, bias=False), path)

    def test_one_that_another_program_compressed(self, tmp_path, trained):
        torch.save(trained.state_dict(), tmp_path / "a.pt")
        with zipfile.ZipFile(tmp_path / "a.pt") as source:
            for name, kind in (("stored.pt", zipfile.ZIP_STORED), ("deflated.pt", zipfile.ZIP_DEFLATED)):
                with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
                    for member in source.namelist():
                        archive.writestr(member, source.read(member))
        assert_same(load_weights(make_model(), tmp_path / "stored.pt"), trained)
        model = make_model()
        with pytest.raises(ValueError, match=r"deflated.pt is a torch checkpoint that another program has compressed"):
            load_weights(model, tmp_path / "deflated.pt")
        assert_same(model, make_model())

    def test_no_entry_that_fits(self, tmp_path):
        torch.save({"generator": {"a": torch.ones(1)}, "critic": {"b": torch.ones(1)}}, tmp_path / "a.pt")
        message = (
            r"the weights of entry 'generator' of .*a.pt \(it also has 'critic'\) do not fit the model: '0.weight' is"
        )
        with pytest.raises(ValueError, match=message):
            load_weights(make_model(), tmp_path / "a.pt")

    def test_what_is_no_model_or_no_path(self, trained):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got OrderedDict"):
            load_weights(trained.state_dict(), "a.pt")
        with pytest.raises(TypeError, match="path must be that of a file or a folder, got OrderedDict"):
            load_weights(trained, trained.state_dict())
        with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
            load_weights(trained, "nothing.pt")


class TestNames:
    @pytest.mark.parametrize(
        "prefix",
        ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "model.", "module.net.module."],
    )
    def test_of_wrappers(self, trained, prefix):
        assert_same(fill(make_model(), renamed(trained, prefix), "w.pt"), trained)

    def test_two_parts_of_ones_own(self, trained):
        refused(r"'0.weight' is missing, .* and \d+ more", renamed(trained, "net.model."))

    def test_of_parts_inside(self, trained):
        inside = {re.sub(r"^(\d+)", r"\1._orig_mod", name): value for name, value in trained.state_dict().items()}
        assert_same(fill(make_model(), inside, "w.pt"), trained)

    def test_of_a_model_that_is_wrapped(self, trained):
        for wrap in (DataParallel, AveragedModel, lambda model: torch.compile(model, backend="eager")):
            wrapped = wrap(make_model())
            fill(wrapped, trained.state_dict(), "w.pt")
            assert_same(getattr(wrapped, "module", None) or wrapped._orig_mod, trained)
            assert_same(fill(make_model(), wrapped.state_dict(), "w.pt"), trained)

    def test_an_averaged_model(self, trained):
        average = AveragedModel(make_model())
        average.update_parameters(trained)
        assert_same(fill(make_model(), average.state_dict(), "w.pt"), average.module)
        again = fill(AveragedModel(make_model()), average.state_dict(), "w.pt")
        assert_same(again, average)
        assert again.n_averaged == 1

    def test_of_a_part_called_like_a_wrapper(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.module, self.weight = nn.Linear(2, 2), nn.Parameter(torch.ones(1))

        model, other = Net(), Net()
        for weights in (other.state_dict(), renamed(other, "module.")):
            assert_same(fill(model, weights, "w.pt"), other)
            nn.init.zeros_(model.module.weight)

    def test_a_first_part_is_left_out_or_added_but_not_replaced(self, trained):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = make_model()

        model = Net()
        fill(model, trained.state_dict(), "w.pt")
        assert_same(model.encoder, trained)
        refused("'encoder.0.weight' is missing.*", renamed(trained, "decoder."), model)

    def test_counters_of_batch_norm_may_be_missing(self, trained):
        weights = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
        model = fill(make_model(), weights, "w.pt")
        assert torch.equal(model[1].running_mean, trained[1].running_mean)
        assert model[1].num_batches_tracked == 0
        del weights["1.running_var"]
        refused("'1.running_var' is missing", weights)

    def test_an_averaged_counter_without_an_average(self, trained):
        refused(f"'n_averaged' is not in the model{LEFT}", {**trained.state_dict(), "n_averaged": torch.tensor(1)})


class TestWeightNorm:
    @staticmethod
    def normed(way, seed):
        model = nn.Sequential(make_model(seed=seed), nn.Linear(2, 2))
        way(model[0][0])
        way(model[0][3], dim=1)
        return model

    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_the_older_into_the_newer(self, prefix):
        older, newer = self.normed(nn.utils.weight_norm, 1), self.normed(nn.utils.parametrizations.weight_norm, 2)
        fill(newer, renamed(older, prefix), "w.pt")
        expected = self.normed(nn.utils.parametrizations.weight_norm, 3)
        expected.load_state_dict(older.state_dict())  # torch translates it
        assert_same(newer, expected)
        x = torch.randn(5, 3)
        assert torch.equal(newer.eval()(x), older.eval()(x))

    def test_an_incomplete_one(self):
        model = self.normed(nn.utils.parametrizations.weight_norm, 1)
        weights = {
            key.replace("parametrizations.weight.original1", "weight_v"): v for key, v in model.state_dict().items()
        }
        del weights["0.0.weight_v"]
        refused("'0.0.parametrizations.weight.original1' is missing", weights, model)


class TestTied:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    @pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
    def test_one_name_is_enough(self, name):
        value = torch.randn(5, 3)
        model = fill(self.Net(), {f"module.{name}": value}, "w.pt")
        assert model.head.weight is model.embedding.weight
        assert torch.equal(model.head.weight, value)

    def test_a_first_part_that_only_the_second_name_lacks(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.base = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3))
                self.head = nn.Linear(3, 5, bias=False)
                self.head.weight = self.base[0].weight

        model, base = Net(), Net().base
        assert_same(fill(model, base.state_dict(), "w.pt").base, base)
        assert model.head.weight is model.base[0].weight

    def test_both_names(self):
        value = torch.randn(5, 3)
        value[0, 0] = torch.nan
        weights = {"embedding.weight": value, "head.weight": value.clone()}
        assert torch.equal(fill(self.Net(), weights, "w.pt").head.weight[1:], value[1:])
        weights["head.weight"][2, 2] += 1
        message = "'embedding.weight' and 'head.weight' are one tensor of the model, but differ there"
        refused(message, weights, self.Net())

    @pytest.mark.parametrize("given", ["0.weight", "1.weight", "2.weight"])
    def test_three_names(self, given):
        def three():
            model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
            model[1].weight = model[2].weight = model[0].weight
            return model

        value = torch.randn(2, 2)
        assert torch.equal(fill(three(), {given: value}, "w.pt")[0].weight, value)
        weights = {"1.weight": value, "2.weight": value + 1}
        refused("'1.weight' and '2.weight' are one tensor of the model, but differ there", weights, three())

    def test_a_module_twice_without_its_counter(self):
        def twice():
            norm = nn.BatchNorm1d(2)
            return nn.Sequential(norm, nn.ReLU(), norm)

        weights = {name: value + 1 for name, value in twice().state_dict().items() if "num_batches" not in name}
        model = fill(twice(), weights, "w.pt")
        assert model[0].running_mean.tolist() == [1, 1]
        assert model[2].num_batches_tracked == 0

    def test_neither(self):
        refused("'embedding.weight' is missing, 'head.weight' is missing", {}, self.Net())


class TestFit:
    def test_a_missing_tensor(self, trained):
        weights = trained.state_dict()
        del weights["0.bias"]
        refused("'0.bias' is missing", weights)

    def test_a_tensor_left_over(self, trained):
        refused(f"'head.weight' is not in the model{LEFT}", trained.state_dict() | {"head.weight": torch.zeros(1)})

    def test_another_shape(self, trained):
        message = r"'0.bias' has shape \(5,\), the model needs \(4,\)"
        refused(message, trained.state_dict() | {"0.bias": torch.zeros(5)})
        other = renamed(trained, "module.") | {"module.0.bias": torch.zeros(5)}
        refused(message, other)

    def test_the_first_three_of_many(self):
        refused(r"'0.weight' is missing, '0.bias' is missing, '1.weight' is missing and 6 more", {"a": torch.ones(1)})

    def test_a_model_without_shapes(self):
        with pytest.raises(ValueError, match=r"parameter '0.weight' of the model has no shape yet: run one batch"):
            fill(nn.Sequential(nn.LazyLinear(3)), {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}, "w.pt")

    def test_a_model_without_values(self):
        with torch.device("meta"):
            model = nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"'weight' of the model is on the meta device, .*: build the model on"):
            fill(model, nn.Linear(2, 2).state_dict(), "w.pt")

    def test_a_model_that_cannot_be_written(self):
        with torch.inference_mode():
            model = nn.Linear(2, 2)
        with pytest.raises(ValueError, match="'weight' of the model was made in inference mode"):
            fill(model, nn.Linear(2, 2).state_dict(), "w.pt")
        model = nn.Linear(2, 2)
        model.bias = nn.Parameter(torch.ones(1).expand(2))
        weights = nn.Linear(2, 2).state_dict()
        before = model.weight.clone()
        with pytest.raises(ValueError, match=r"'bias' of the model is expanded, .*: clone it in the model"):
            fill(model, weights, "w.pt")
        assert torch.equal(model.weight, before)

    def test_a_model_that_refuses_by_itself(self, trained):
        class Net(nn.Linear):
            def _load_from_state_dict(self, *arguments):
                arguments[-1].append("not\ntoday")

        refused(".*not today", nn.Linear(2, 2).state_dict(), Net(2, 2))

    def test_what_modules_keep_beside_tensors(self):
        class Net(nn.Linear):
            scale = 1

            def get_extra_state(self):
                return self.scale

            def set_extra_state(self, state):
                self.scale = state

        other = Net(2, 2)
        other.scale = 5
        assert fill(Net(2, 2), renamed(other, "module."), "w.pt").scale == 5
        weights = other.state_dict()
        del weights["_extra_state"]
        with pytest.raises(ValueError, match="'_extra_state' is missing"):
            fill(Net(2, 2), weights, "w.pt")


class TestKinds:
    @pytest.mark.parametrize(
        "dtype", [torch.complex64, torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2]
    )
    def test_other_kinds_are_refused(self, trained, dtype):
        name = str(dtype).removeprefix("torch.")
        weights = trained.state_dict() | {"0.weight": torch.ones(4, 3).to(dtype)}
        refused(f"'0.weight' is {name}, the model needs float32; convert these tensors and save them anew", weights)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_floating_point_weights_are_rounded(self, trained, dtype):
        value = torch.randn(4, 3, dtype=torch.float64)
        model = fill(make_model(), trained.state_dict() | {"0.weight": value.to(dtype)}, "w.pt")
        assert torch.equal(model[0].weight, value.to(dtype).float())
        half = fill(make_model().to(dtype), trained.state_dict(), "w.pt")
        assert torch.equal(half[0].weight, trained[0].weight.to(dtype))

    def test_values_beyond_the_model(self, trained):
        weights = trained.state_dict() | {"0.weight": torch.full((4, 3), 1e39, dtype=torch.float64)}
        refused("'0.weight' has values beyond float32, the dtype of the model.*", weights)
        refused(
            "'0.bias' has values beyond float16, the dtype of the model.*",
            {"0.bias": torch.tensor([1e5, 0, 0, 0])}
            | {name: value for name, value in trained.state_dict().items() if name != "0.bias"},
            make_model().half(),
        )

    def test_values_that_are_not_finite_pass(self, trained):
        value = torch.tensor([[torch.inf, -torch.inf, torch.nan]] * 4, dtype=torch.float64)
        model = fill(make_model(), trained.state_dict() | {"0.weight": value}, "w.pt")
        torch.testing.assert_close(model[0].weight.detach(), value.float(), rtol=0, atol=0, equal_nan=True)

    def test_whole_numbers(self, trained):
        model = fill(
            make_model(), trained.state_dict() | {"1.num_batches_tracked": torch.tensor(7, dtype=torch.int32)}, ""
        )
        assert model[1].num_batches_tracked == 7
        for bad in (torch.tensor(7.0), torch.tensor(True)):
            refused(
                "'1.num_batches_tracked' is .*, the model needs int64.*",
                trained.state_dict() | {"1.num_batches_tracked": bad},
            )
        for value, dtype in ((2**40, torch.int32), (-1, torch.uint8), (200, torch.int8)):
            small = make_model()
            small[1].num_batches_tracked = torch.tensor(0, dtype=dtype)
            weights = trained.state_dict() | {"1.num_batches_tracked": torch.tensor(value)}
            refused("'1.num_batches_tracked' has values beyond .*", weights, small)

    def test_other_layouts(self, trained):
        with pytest.warns(UserWarning, match="quantize_per_tensor"):
            quantised = torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8)
        for value, word in ((torch.ones(4, 3).to_sparse(), "sparse"), (quantised, "quantised")):
            message = f"'0.weight' is {word}, the model needs a plain float32 tensor; convert these tensors.*"
            refused(message, trained.state_dict() | {"0.weight": value})
        refused(
            "'0.weight' is on the meta device and has no values.*",
            trained.state_dict() | {"0.weight": torch.ones(4, 3, device="meta")},
        )

    def test_subclasses(self, trained):
        class Scaled(torch.Tensor):
            pass

        weights = trained.state_dict() | {"0.weight": torch.ones(4, 3).as_subclass(Scaled)}
        refused("'0.weight' is a Scaled, the model needs a plain float32 tensor.*", weights)

    def test_complex_models(self):
        model, other = nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2, dtype=torch.complex64)
        assert_same(fill(model, other.state_dict(), "w.pt"), other)
        refused("'weight' is float32, the model needs complex64, .*", nn.Linear(2, 2).state_dict(), model)


class TestSeveralFiles:
    def test_of_a_wrapped_model(self, tmp_path, trained):
        weights = renamed(trained, "module.")
        names = sorted(weights)
        save_file({name: weights[name] for name in names[:4]}, tmp_path / "1.safetensors")
        save_file({name: weights[name] for name in names[4:]}, tmp_path / "2.safetensors")
        index = {"weight_map": {name: f"{1 if name in names[:4] else 2}.safetensors" for name in names}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert_same(load_weights(make_model(), tmp_path), trained)


def test_a_model_that_refuses_while_it_loads_stays_as_it_was():
    class Refuses(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            super()._load_from_state_dict({**state, f"{prefix}weight": torch.ones(9, 9)}, prefix, *rest)

    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), Refuses(3, 3))
    weights = {name: torch.full_like(value, 7) for name, value in model.state_dict().items()}
    refused(".*size mismatch for 2.weight.*", weights, model)
