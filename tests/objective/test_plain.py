"""Attention in plain products: the bits of torch's own, derivatives of both kinds, and nothing of another thread's."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lbgap import Objective
from lbgap.objective import tangents
from lbgap.objective.plain import NoFastPath, PlainOperations, has_fast_path, weight_norm

pytestmark = pytest.mark.usefixtures("one_thread", "rules")


@pytest.fixture
def rules():
    """Torch's forward rules, whose first use warns."""
    tangents._load_rules()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def triple(dtype=torch.float64, heads=2):
    return normal(3, 2, 4, 6, dtype=dtype), *(normal(3, heads, 5, 6, seed=s, dtype=dtype) for s in (1, 2))


def flags():
    cuda = torch.backends.cuda
    return [getattr(cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math", "cudnn")]


def fused(q, k, v):
    """Whether attention runs in a fused kernel here, by the name of its derivative."""
    return "FlashAttention" in F.scaled_dot_product_attention(q.requires_grad_(), k, v).grad_fn.name()


CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bool": {"attn_mask": normal(4, 5) > 0},
    "nothing to attend to": {"attn_mask": torch.arange(4)[:, None] > torch.zeros(5)},
    "added": {"attn_mask": normal(4, 5, seed=3)},
    "a mask of each head": {"attn_mask": normal(3, 2, 4, 5, seed=3) > 0},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_the_bits_of_the_math_backend(name, dtype):
    options = dict(CASES[name])
    if options.get("attn_mask", torch.ones(())).dtype == torch.float64:
        options["attn_mask"] = options["attn_mask"].to(dtype)
    q, k, v = triple(dtype, heads=1 if name == "grouped" else 2)
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(q, k, v, **options)
    with PlainOperations():
        found = F.scaled_dot_product_attention(q, k, v, **options)
    assert expected.isfinite().all()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["plain", "causal", "bool", "nothing to attend to"])
def test_both_derivatives(name):
    parts = [part[:1].requires_grad_() for part in triple()]
    with PlainOperations():

        def attend(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, **CASES[name])

        assert torch.autograd.gradcheck(attend, parts, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(attend, parts)


class Noting(TorchFunctionMode):
    """Notes the names of what is called."""

    def __init__(self):
        self.names = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def layer(seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).double().eval()


@pytest.mark.parametrize("padding", [None, torch.arange(3)[:, None] > torch.zeros(4)])
def test_layers_of_torch_take_their_plain_path(padding):
    block, x = layer(), normal(3, 4, 6)
    with torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH), Noting():  # any mode keeps the fast path off
            expected = block(x, src_key_padding_mask=padding)
        with Noting() as noted, PlainOperations():
            found = block(x, src_key_padding_mask=padding)
            weights = block.self_attn(x, x, x, key_padding_mask=padding)[1]
    assert torch.equal(found, expected)
    assert found.isfinite().all() == expected.isfinite().all()
    assert weights.shape == (3, 4, 4)
    assert not {name for name in noted.names if "fwd" in name or "native" in name}
    assert "linear" in noted.names


@pytest.mark.parametrize("padding", [None, torch.arange(4)[None] > torch.arange(1, 4)[:, None]])
def test_the_fast_path_alone_is_kept_off(padding):
    block, x, seen = layer(), normal(3, 4, 6), []
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), Noting() as noted, NoFastPath():
            seen.append(block(x, src_key_padding_mask=padding).detach())
        assert not {name for name in noted.names if "fwd" in name or "native" in name}
    torch.testing.assert_close(*seen, rtol=1e-12, atol=1e-12)
    parts = triple(torch.float32)
    with NoFastPath():
        assert fused(*parts)


def test_who_has_a_fast_path():
    assert has_fast_path(nn.Sequential(layer()))
    assert has_fast_path(nn.TransformerDecoderLayer(6, 2, 8))
    assert not has_fast_path(nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 6)))


def test_a_layer_of_torch_has_a_forward_derivative():
    block, x, step = layer(), normal(3, 4, 6), normal(3, 4, 6, seed=1)
    with PlainOperations():
        _, found = torch.func.jvp(block, (x,), (step,))
    size = 1e-6  # central differences: an error of size^2 and of rounding / size
    with torch.no_grad():
        expected = (block(x + size * step) - block(x - size * step)) / (2 * size)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


class Attending(nn.Module):
    """Attention, computed anew in the backward pass where it is ``kept`` not."""

    def __init__(self, kept):
        super().__init__()
        self.layer, self.out, self.kept, self.seen = nn.Linear(6, 6), nn.Linear(6, 3), kept, []

    def attend(self, x):
        self.seen.append(flags())
        x = self.layer(x)
        return F.scaled_dot_product_attention(x, x, x)

    def forward(self, x):
        x = self.attend(x) if self.kept else checkpoint(self.attend, x, use_reentrant=False)
        return self.out(x.mean(-2))


def products(model):
    objective = Objective(model, (normal(8, 4, 6), torch.arange(8) % 3), precision="float64")
    return objective, objective.hvp(objective.theta, normal(2, objective.n, seed=2))


def test_attention_that_is_computed_anew_in_the_backward_pass():
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        kept, anew = Attending(kept=True), Attending(kept=False)
        anew.load_state_dict(kept.state_dict())
    torch.testing.assert_close(products(anew)[1], products(kept)[1], rtol=1e-12, atol=0)


def test_no_switch_of_the_process_moves():
    before = flags()
    objective, _ = products(Attending(kept=True))
    objective.directional_derivatives(objective.theta, objective.theta)
    objective.curvatures(objective.theta, objective.theta[None])
    seen = objective._evaluator.flat.module.seen
    assert len(seen) > 3
    assert all(one == before for one in seen)
    assert flags() == before


def test_other_threads_keep_their_kernels():
    parts, found = triple(torch.float32), []
    assert fused(*parts)
    with PlainOperations():
        thread = threading.Thread(target=lambda: found.append(fused(*parts)))
        thread.start()
        thread.join()
        found.append(fused(*parts))
    assert found == [True, False]
    assert fused(*parts)


def test_modes_and_subclasses_of_a_user_still_work():
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            return 2 * output if func is F.scaled_dot_product_attention else output

    class Named(torch.Tensor):
        pass

    q, k, v = triple()
    expected = F.scaled_dot_product_attention(q, k, v)
    with PlainOperations(), Doubling():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), 2 * expected)
    with PlainOperations():
        named = F.scaled_dot_product_attention(q.as_subclass(Named), k, v)
    assert isinstance(named, Named)
    torch.testing.assert_close(named.as_subclass(torch.Tensor), expected)


def test_a_compiled_function_inside_is_the_same():
    parts = triple()
    compiled = torch.compile(F.scaled_dot_product_attention, backend="eager")
    with PlainOperations():
        assert torch.equal(compiled(*parts), F.scaled_dot_product_attention(*parts))


@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((4, 3), 1), ((4, 3, 2), 0), ((5,), -1)])
def test_weight_norm_has_its_second_derivative(shape, dim):
    v = normal(*shape, dtype=torch.float64).requires_grad_()
    g = torch.norm_except_dim(v.detach(), 2, dim).mul_(1.5).requires_grad_()
    assert torch.allclose(weight_norm(v, g, dim), torch._weight_norm(v, g, dim), rtol=1e-14, atol=0)
    with PlainOperations():
        assert torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, dim), (v, g))


@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_products_through_weight_norm(norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))
    objective = Objective(model, (normal(9, 4), torch.arange(9) % 3), precision="float64")
    theta, step = objective.theta, 1e-5
    vectors = normal(3, objective.n, seed=2, dtype=torch.float64)
    found = objective.hvp(theta, vectors)
    for vector, product in zip(vectors, found, strict=True):
        ahead, behind = (objective.loss_and_gradient(theta + sign * step * vector)[1] for sign in (1, -1))
        assert torch.allclose(product, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
