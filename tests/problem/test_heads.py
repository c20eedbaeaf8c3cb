"""The loss of a model of transformers: the mean over all samples, however they are cut into batches."""

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap.problem import trees
from lbgap.problem.loss import resolve_loss

transformers = pytest.importorskip("transformers")

N, T, V, K = 7, 6, 11, 3
SMALL = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0}
GPT2 = {"vocab_size": V, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "pad_token_id": 0}
MOE = {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}
BERT = {**SMALL, "max_position_embeddings": 16}
SEQ2SEQ = {"vocab_size": V, "d_model": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = {
    **SEQ2SEQ,
    **{f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")},
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def drawn(*shape, high=V, seed=0):
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model_of(name, config, **options):
    """A tiny model in evaluation mode, whose weights are far from zero."""
    kind = getattr(transformers, name)
    made = kind.config_class(**config, **options)
    made._experts_implementation = "eager"  # its other products take no float64
    model = kind(made).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.4 * normal(*parameter.shape, seed=number))
    return model


def ignored(labels, share=0.4):
    """Labels of which some do not count: of the second sample none."""
    labels = labels.where(normal(*labels.shape, seed=5) > -share, -100)
    labels[1] = -100
    return labels


TOKENS = drawn(N, T)
START = torch.tensor([0, 5, 2, T, -1, 3, T + 4])
CASES = {
    "gpt2": ("GPT2LMHeadModel", GPT2, {}, {"labels": ignored(TOKENS)}),
    "llama": ("LlamaForCausalLM", LLAMA, {}, {"labels": ignored(TOKENS)}),
    "experts": ("MixtralForCausalLM", MOE, {"output_router_logits": False}, {"labels": ignored(TOKENS)}),
    "masked": ("BertForMaskedLM", BERT, {}, {"labels": ignored(TOKENS)}),
    "tokens": ("BertForTokenClassification", BERT, {"num_labels": K}, {"labels": ignored(drawn(N, T, high=K))}),
    "tokens of llama": ("LlamaForTokenClassification", LLAMA, {"num_labels": K}, {"labels": drawn(N, T, high=K)}),
    "one label": ("BertForSequenceClassification", BERT, {"num_labels": K}, {"labels": ignored(drawn(N, high=K))}),
    "one label of gpt2": ("GPT2ForSequenceClassification", GPT2, {"num_labels": K}, {"labels": drawn(N, high=K)}),
    "one label of llama": ("LlamaForSequenceClassification", LLAMA, {"num_labels": K}, {"labels": drawn(N, high=K)}),
    "regression": ("BertForSequenceClassification", BERT, {"num_labels": 1}, {"labels": normal(N)}),
    "regression of a column": ("BertForSequenceClassification", BERT, {"num_labels": 1}, {"labels": normal(N, 1)}),
    "regressions": (
        "BertForSequenceClassification",
        BERT,
        {"num_labels": K, "problem_type": "regression"},
        {"labels": normal(N, K)},
    ),
    "several labels": (
        "BertForSequenceClassification",
        BERT,
        {"num_labels": K},
        {"labels": (normal(N, K) > 0).float()},
    ),
    "answers": (
        "BertForQuestionAnswering",
        BERT,
        {},
        {"start_positions": START, "end_positions": torch.tensor([1, 5, 0, T + 1, -3, 3, T])},
    ),
    "answers of llama": ("LlamaForQuestionAnswering", LLAMA, {}, {"start_positions": START, "end_positions": START}),
}
VIT = {"image_size": 4, "patch_size": 2, "num_channels": 1, **{key: SMALL[key] for key in SMALL if key != "vocab_size"}}


def case(name):
    """A model and its batch."""
    if name == "images":
        model = model_of("ViTForImageClassification", VIT, num_labels=K)
        return model, {"pixel_values": normal(N, 1, 4, 4), "labels": drawn(N, high=K)}
    kind, config, options, labels = CASES[name]
    return model_of(kind, config, **options), {"input_ids": TOKENS, **labels}


NAMES = [*CASES, "images"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_sums_over_weights_are_what_the_model_returns_for_all(name, dtype):
    model, batch = case(name)
    model, batch = model.to(dtype), trees.cast(batch, dtype)
    expected = model(**batch).loss
    gradient = torch.autograd.grad(expected, [*model.parameters()], allow_unused=True)
    loss = resolve_loss("model").for_model(model).check(model(**batch), batch)
    assert loss.raw
    rtol = 1e-12 if expected.dtype == torch.float64 else 1e-5  # some heads convert their logits to float32
    for size in (1, 3, N):
        pieces = [trees.rows(batch, slice(first, first + size)) for first in range(0, N, size)]
        sums = [loss.sums(model(**piece), piece) for piece in pieces]
        weight = sum(one.weight for one in sums)
        assert weight == loss.weight(batch)
        assert float(sum(one.exact for one in sums)) / weight == pytest.approx(float(expected.detach()), rel=rtol)
        total = sum(one.total for one in sums) / weight
        found = torch.autograd.grad(total, [*model.parameters()], allow_unused=True)
        for one, other in zip(found, gradient, strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_is_what_the_mean_is_divided_by(name):
    model, batch = case(name)
    loss = resolve_loss("model").for_model(model)
    labels = batch.get("labels", batch.get("start_positions"))
    if "start_positions" in batch:
        counts = labels < T
    elif labels.is_floating_point():
        counts = torch.ones(N, dtype=torch.bool)
    else:
        counts = labels[:, 1:] != -100 if name in ("gpt2", "llama", "experts") else labels != -100
    assert loss.weight(batch) == int(counts.sum())
    assert loss.counted(batch) == int(counts.sum())
    assert loss.counting(batch).tolist() == counts.reshape(N, -1).any(1).nonzero().flatten().tolist()
    assert loss.counting(batch, 2).tolist() == counts.reshape(N, -1).any(1).nonzero().flatten().tolist()[:2]
    assert loss.classes(model(**batch), batch) is None
    assert loss.correct(model(**batch), batch).isnan()


def test_where_nothing_counts_the_sum_is_zero_with_a_graph():
    model, batch = case("gpt2")
    none = trees.rows(batch, slice(1, 2))
    output = model(**none)
    assert output.loss.isnan()
    sums = resolve_loss("model").for_model(model).sums(output, none)
    assert (float(sums.total.detach()), float(sums.exact), sums.weight) == (0, 0, 0)
    gradient = torch.autograd.grad(sums.total, [*model.parameters()], allow_unused=True)
    assert all(part is None or not part.any() for part in gradient)


def test_what_a_result_records():
    loss = resolve_loss("model")
    assert loss.facts() == {"loss": "model"}
    assert loss.given == "model"
    model, _ = case("answers")
    assert loss.for_model(model).facts() == {"loss": "model", "loss_head": "question_answering"}
    assert resolve_loss("mse").for_model(model) == resolve_loss("mse")


class Outer(nn.Module):
    """As adapters and ``torch.compile`` wrap a model."""

    def __init__(self, model, kind):
        super().__init__()
        if kind == "_orig_mod":
            self._orig_mod = model
        elif kind == "get_base_model":
            self.inner = model
            self.get_base_model = lambda: model
        else:
            self.module = model


class DataParallel(Outer):
    pass


@pytest.mark.parametrize("kind", ["_orig_mod", "get_base_model", "module"])
def test_wrapped_models(kind):
    model, batch = case("masked")
    wrapped = (DataParallel if kind == "module" else Outer)(model, kind)
    loss = resolve_loss("model").for_model(Outer(wrapped, "_orig_mod"))
    assert loss == resolve_loss("model").for_model(model)
    assert loss.check(model(**batch), batch).model == "BertForMaskedLM"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters():
    peft = pytest.importorskip("peft")
    model, batch = case("llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
    loss = resolve_loss("model").for_model(adapted)
    assert loss.check(adapted(**batch), batch).model == "LlamaForCausalLM"


class Scaled(transformers.BertForMaskedLM):
    """A subclass whose loss has another term."""

    def forward(self, **batch):
        output = super().forward(**batch)
        output.loss = output.loss + 0.01 * output.logits.square().mean()
        return output


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("T5ForConditionalGeneration", {**SEQ2SEQ, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}, "smooth"),
        ("BartForConditionalGeneration", BART, "shift, smooth or join its labels: pass a callable loss"),
        ("MixtralForCausalLM", {**MOE, "output_router_logits": True}, "set model.config.output_router_logits = False"),
        ("BertForMultipleChoice", BERT, r"knows the loss of \.\.\.ForCausalLM, .*got BertForMultipleChoice: pass a"),
        ("BertForPreTraining", BERT, "got BertForPreTraining: pass a callable"),
        ("BertModel", BERT, "got BertModel: pass a callable"),
    ],
)
def test_heads_that_are_refused_by_name(name, config, text):
    with pytest.raises(ValueError, match=text) as caught:
        resolve_loss("model").for_model(model_of(name, config))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_are_not_of_transformers():
    with pytest.raises(ValueError, match="model of transformers returns, got Linear: pass a loss by name, or a call"):
        resolve_loss("model").for_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="is the loss that a model of transformers returns: pass a callable"):
        resolve_loss("model").check(torch.zeros(3, 2), torch.zeros(3).long())


def with_routers():
    model, batch = case("experts")
    return model, model(**batch, output_router_logits=True), batch


def unshifted():
    model = model_of("BartForCausalLM", {**BART, "is_decoder": True, "is_encoder_decoder": False})
    batch = {"input_ids": TOKENS, "labels": ignored(TOKENS)}
    return model, model(**batch), batch


def counted_otherwise():
    model, batch = case("gpt2")
    return model, model(**batch, num_items_in_batch=torch.tensor(3)), batch


def with_a_penalty():
    model = Scaled(transformers.BertConfig(**BERT)).eval()
    model.load_state_dict(model_of("BertForMaskedLM", BERT).state_dict())
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    return model, model(**batch), batch


@pytest.mark.parametrize("made", [with_routers, unshifted, counted_otherwise, with_a_penalty])
def test_a_loss_that_is_another_one_is_refused(made):
    model, output, batch = made()
    with pytest.raises(
        ValueError, match=r"is not the mean over its labels that count, .*num_items.*: pass a"
    ) as caught:
        resolve_loss("model").for_model(model).check(output, batch)
    assert type(model).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_penalty_of_the_size_of_rounding_is_none():
    model, batch = case("one label")
    output = model(**batch)
    loss = resolve_loss("model").for_model(model)
    output.loss = output.loss * (1 + 1e-7)
    loss.check(output, batch)
    output.loss = output.loss * (1 + 1e-3)
    with pytest.raises(ValueError, match="is not the mean"):
        loss.check(output, batch)


@pytest.mark.parametrize(
    ("name", "change", "error", "text"),
    [
        (
            "gpt2",
            {"labels": None},
            ValueError,
            r"needs batches that are dicts with 'labels' for GPT2LMHeadModel, got \{",
        ),
        ("answers", {"end_positions": None}, ValueError, "dicts with 'start_positions' and 'end_positions' for Bert"),
        (
            "answers",
            {"end_positions": START.flip(0)},
            ValueError,
            "2 of 7 samples have only one of them inside of the 6",
        ),
        ("gpt2", {"labels": TOKENS * 0 - 100}, ValueError, "counts no label of these data: all of them are ignored"),
        ("gpt2", {"labels": TOKENS.where(TOKENS > 3, -7)}, ValueError, r"labels in 0\.\.10, or -100 .*, got -7\.\.10"),
        ("one label", {"labels": drawn(N, high=9)}, ValueError, r"needs labels in 0\.\.2, or -100 .*, got 1\.\.8"),
        ("tokens", {"labels": TOKENS.float()}, TypeError, r"class indices, got torch.float32: use \.long\(\)"),
        ("tokens", {"labels": TOKENS[:, 0]}, ValueError, r"labels of shape \(batch, tokens\), got \(7,\)"),
    ],
)
def test_labels_that_do_not_fit(name, change, error, text):
    model, batch = case(name)
    output = model(**batch)
    batch = {key: value for key, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(error, match=text) as caught:
        resolve_loss("model").for_model(model).check(output, batch)
    assert "\n" not in str(caught.value)


def test_targets_that_are_no_batch():
    model, batch = case("gpt2")
    with pytest.raises(ValueError, match=r"batches that are dicts with 'labels' .*, got \(7, 6\) torch.int64"):
        resolve_loss("model").for_model(model).check(model(**batch), batch["labels"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda output: SimpleNamespace(logits=output.logits),
            r"with \.loss, got SimpleNamespace without: the model was",
        ),
        (lambda output: output.to_tuple(), r"with \.loss and \.logits, got \(.*: set model.config.return_dict = True"),
        (
            lambda output: {"logits": output.logits, "loss": output.loss.repeat(2)},
            r"\.loss to be one number, got \(2,\)",
        ),
    ],
)
def test_outputs_that_lack_a_loss(change, text):
    model, batch = case("masked")
    with pytest.raises(ValueError, match=text) as caught:
        resolve_loss("model").for_model(model).check(change(model(**batch)), batch)
    assert "\n" not in str(caught.value)


def test_pairs_that_torch_would_broadcast_are_refused():
    model, batch = case("regressions")
    with pytest.warns(UserWarning, match="target size"):
        output = model(input_ids=batch["input_ids"][:K], labels=batch["labels"][:K, 0])
    few = {"input_ids": batch["input_ids"][:K], "labels": batch["labels"][:K, 0]}
    with pytest.raises(ValueError, match=r"does not fit logits \(3, 3\) with labels \(3,\) torch.float32"):
        resolve_loss("model").for_model(model).check(output, few)


def test_pieces_of_other_lengths_and_an_output_of_a_few():
    model, batch = case("llama")
    loss = resolve_loss("model").for_model(model)
    short = {"input_ids": TOKENS[:2, :3], "labels": TOKENS[:2, :3]}
    none = {"input_ids": TOKENS[:1], "labels": TOKENS[:1] * 0 - 100}
    output = model(**trees.rows(batch, slice(4)))
    loss.check_all(output, iter([batch, none, short]))
    with pytest.raises(ValueError, match=r"needs labels in 0\.\.10"):
        loss.check_all(output, iter([batch, {**short, "labels": short["labels"] + V}]))


def test_a_cross_entropy_of_many_classes_is_that_of_all_at_once(monkeypatch):
    conventions = importlib.import_module("lbgap.problem.conventions")
    logits, labels = normal(50, 9), ignored(drawn(50, high=9))
    expected = F.cross_entropy(logits.double(), labels)
    for entries in (1, 40, 2**20):
        monkeypatch.setattr(conventions, "ENTRIES", entries)
        assert conventions._cross_entropy(logits, labels, -100).value == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "masked_lm", torch.nn.CrossEntropyLoss()])
def test_a_causal_model_with_the_loss_of_the_same_token(loss):
    model, batch = case("gpt2")
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is trained on the next token, .*: pass loss='causal_lm' or"):
        lbgap.Objective(model, batch, loss=loss)


def test_labels_under_another_name():
    model, batch = case("gpt2")
    output = model(input_ids=batch["input_ids"])
    renamed = {"input_ids": batch["input_ids"], "label": batch["labels"]}
    with pytest.raises(ValueError, match=r"needs .*'labels'"):
        resolve_loss("model").for_model(model).check(output, renamed)
    with pytest.raises(ValueError, match="which need a key 'labels' of the batches: rename 'label'"):
        resolve_loss("model").for_model(model).mean(output, renamed)
