"""How batches enter a model, and what a loss takes of its output: each kind, its facts and notes, what is refused."""

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap.problem.call import LABELS, PLAIN, OutputError, choose, one_tensor
from lbgap.problem.loss import resolve_loss

X, Z, Y = torch.arange(12.0).reshape(4, 3), torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 0, 2])
INDEX = torch.arange(4)
NAMED = resolve_loss("cross_entropy")


def own(output, target):
    return F.cross_entropy(output, target)


OWN = resolve_loss(own)


class One(nn.Module):
    def forward(self, inputs):
        return inputs


class Two(nn.Module):
    def forward(self, x, z):
        return x.sum(1) + z.sum(1)


class Optional(nn.Module):
    def forward(self, x, z=None, *, scale=None):
        return x.sum(1) if z is None else x.sum(1) + z.sum(1)


class Any(nn.Module):
    def forward(self, x, **rest):
        return x, sorted(rest)


class Everything(nn.Module):
    def forward(self, *parts, **named):
        return parts, named


class WholeBatch(nn.Module):
    def forward(self, batch):
        return batch["x"].sum(1)


class Labelled(nn.Module):
    """As models of transformers: labels are an argument, and make it return a loss."""

    def forward(self, x, labels=None):
        return {"logits": x, "loss": None if labels is None else x.sum()}


def chosen(model, loss, first, call=None):
    made, notes = choose(model, loss, first, call)
    return made, made.split(first), notes


def refused(error, message, *args):
    with pytest.raises(error, match=message) as caught:
        choose(*args)
    assert "\n" not in str(caught.value)


# Pairs.


@pytest.mark.parametrize("loss", [NAMED, OWN])
@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_is_taken_as_it_is(loss, kind):
    made, batch, notes = chosen(One(), loss, kind((X, Y)))
    assert (made.kind, made.facts(), notes) == ("one", {}, [])
    assert batch.inputs is X
    assert batch.targets is Y
    assert made.run(One(), batch.inputs) is X
    assert made.raw == loss.raw


def test_the_plain_call_is_that_of_pairs():
    batch = PLAIN.split((X, Y))
    assert batch.inputs is X
    assert batch.targets is Y
    assert PLAIN.facts() == {}


def test_a_target_in_containers_is_for_a_loss_of_ones_own():
    target = {"labels": Y, "weights": X}
    _, batch, _ = chosen(One(), OWN, (X, target))
    assert batch.targets is target
    refused(
        TypeError,
        r"the loss 'cross_entropy' needs targets as one tensor, got a dict: make it one, or pass a callable",
        One(),
        NAMED,
        (X, target),
    )


def test_an_input_alone():
    made, batch, _ = chosen(One(), OWN, (X,))
    assert batch.inputs is batch.targets is X
    assert made.kind == "one"
    made, batch, _ = chosen(One(), OWN, X)
    assert batch.inputs is batch.targets is X
    message = "the loss 'cross_entropy' needs a target beside the inputs, got batches of one "
    refused(ValueError, message + r"part: pass pairs \(inputs, targets\), or a callable", One(), NAMED, (X,))
    refused(ValueError, message + "tensor: pass pairs", One(), NAMED, X)


# Positions.


def test_several_inputs_by_position():
    for loss in (NAMED, OWN):
        made, batch, notes = chosen(Two(), loss, (X, Z, Y))
        assert (made.kind, made.facts(), notes) == ("positions", {"call": "positions"}, [])
        assert batch.inputs[0] is X
        assert batch.inputs[1] is Z
        assert batch.targets is Y
        assert torch.equal(made.run(Two(), batch.inputs), X.sum(1) + Z.sum(1))


def test_inputs_nested_in_a_pair():
    for inputs in ((X, Z), [X, Z]):
        made, batch, _ = chosen(Two(), NAMED, (inputs, Y))
        assert made.kind == "positions"
        assert batch.inputs is inputs
        assert torch.equal(made.run(Two(), batch.inputs), X.sum(1) + Z.sum(1))
    made, batch, _ = chosen(One(), OWN, ((X, Z), Y))  # more than forward takes: it may want the tuple
    assert made.kind == "one"
    assert made.run(One(), batch.inputs) is batch.inputs
    made, batch, _ = chosen(One(), NAMED, ((X,), Y))
    assert (made.kind, batch.inputs) == ("one", (X,))


def test_any_number_of_inputs():
    made, batch, _ = chosen(Everything(), OWN, (X, Z, X, Z, Y))
    assert made.kind == "positions"
    assert made.run(Everything(), batch.inputs)[0] == (X, Z, X, Z)


def test_more_inputs_than_forward_takes():
    message = r"One.forward takes 1 input, got batches of 3 parts: pass call=lambda model, batch: model\(...\), with"
    refused(ValueError, message, One(), NAMED, (X, Z, Y))
    refused(ValueError, "Two.forward takes 2 inputs, got batches of 4 parts", Two(), OWN, (X, Z, X, Y))


# Columns that number the samples.


@pytest.mark.parametrize("place", [0, 2])
def test_a_part_that_numbers_the_samples_is_left_out(place):
    first = [X, Y.float()]
    first.insert(place, torch.tensor([5, 7, 8, 11], dtype=torch.int32))  # of a shuffled or thinned set, in order
    made, batch, notes = chosen(One(), OWN, tuple(first))
    assert notes == [f"part {place + 1} of the batches was left out: it numbers the samples"]
    assert made.kind == "one"
    assert batch.inputs is X
    assert batch.targets is first[2 if place < 2 else 1]
    later = [X + 1, Y.float() + 1]
    later.insert(place, INDEX + 12)
    again = made.split(tuple(later))
    assert torch.equal(again.inputs, X + 1)
    assert torch.equal(again.targets, Y + 1.0)


def test_two_parts_that_may_number_the_samples_are_refused():
    refused(ValueError, "One.forward takes 1 input, got batches of 3 parts", One(), OWN, (INDEX, X, INDEX))


@pytest.mark.parametrize("part", [INDEX.flip(0), INDEX.float(), INDEX[:, None], INDEX[:1], Y])
def test_what_does_not_number_the_samples_is_refused(part):
    refused(ValueError, "takes 1 input", One(), OWN, (part, X, Z))


def test_a_part_of_numbers_one_by_one_does_not_enter_an_optional_argument():
    made, batch, notes = chosen(Optional(), NAMED, (X, Y, INDEX + 100))
    assert notes == ["part 3 of the batches was left out: it numbers the samples"]
    assert (made.kind, batch.targets) == ("one", Y)
    _, batch, notes = chosen(Optional(), NAMED, (INDEX, X, Y))
    assert notes == ["part 1 of the batches was left out: it numbers the samples"]
    assert batch.inputs is X


def test_what_may_be_an_input_stays_one():
    """Two arguments that must be given are given: ids may be consecutive numbers."""
    made, batch, notes = chosen(Two(), NAMED, (INDEX, Z, Y))
    assert (made.kind, notes) == ("positions", [])
    assert batch.inputs[0] is INDEX
    _, batch, notes = chosen(Optional(), NAMED, (X, torch.tensor([5, 7, 8, 11]), Y))
    assert notes == []
    assert len(batch.inputs) == 2
    assert chosen(One(), OWN, (X, INDEX))[1].targets is INDEX  # a pair has no part too many


# Dicts.


@pytest.mark.parametrize("key", LABELS)
def test_a_dict_enters_by_the_names_that_forward_has(key):
    for loss in (NAMED, OWN):
        first = {"x": X, key: Y, "id": INDEX}
        made, batch, notes = chosen(Optional(), loss, first)
        assert notes == ["keys of the batches that Optional.forward does not take: 'id'"]
        assert (made.kind, made.names) == ("keywords", ("x",))
        assert batch.inputs == {"x": X}
        assert batch.targets is (first if loss.raw else Y)
        facts = {"call": "keywords", "inputs": ["x"]}
        assert made.facts() == (facts if loss.raw else {**facts, "targets": [key]})
        assert torch.equal(made.run(Optional(), batch.inputs), X.sum(1))


def test_the_first_key_of_targets_is_the_target():
    _, batch, notes = chosen(Optional(), NAMED, {"y": X, "x": X, "labels": Y, "z": Z})
    assert batch.targets is Y
    assert set(batch.inputs) == {"x", "z"}
    assert notes == ["keys of the batches that Optional.forward does not take: 'y'"]  # which may be the target meant


def test_the_order_of_keys_is_that_of_the_batch():
    made, batch, _ = chosen(Two(), OWN, OrderedDict(z=Z, x=X))
    assert made.names == ("z", "x")
    assert torch.equal(made.run(Two(), batch.inputs), X.sum(1) + Z.sum(1))


def test_all_of_a_dict_enters_any_keywords():
    made, batch, notes = chosen(Any(), NAMED, {"x": X, "mask": Z, "label": Y, "id": INDEX})
    assert notes == []
    assert set(batch.inputs) == {"x", "mask", "id"}
    assert made.raw is False
    assert batch.targets is Y
    made, batch, _ = chosen(Any(), OWN, {"x": X, "mask": Z, "label": Y, "target": Y})
    assert set(batch.inputs) == {"x", "mask", "label", "target"}  # a loss takes the output, which may be made of them
    assert set(batch.targets) == {"x", "mask", "label", "target"}
    assert made.run(Any(), batch.inputs) == (X, ["label", "mask", "target"])


def test_labels_that_forward_names_enter_where_the_loss_takes_the_batch():
    first = {"x": X, "labels": Y}
    _, batch, _ = chosen(Labelled(), OWN, first)
    assert set(batch.inputs) == {"x", "labels"}
    made, batch, _ = chosen(Labelled(), NAMED, first)
    assert set(batch.inputs) == {"x"}
    assert made.run(Labelled(), batch.inputs) is X  # the logits


def test_a_dict_that_is_the_one_argument():
    for loss in (NAMED, OWN):
        first = {"x": X, "labels": Y}
        made, batch, notes = chosen(WholeBatch(), loss, first)
        assert (made.kind, notes) == ("one", [])
        assert batch.inputs is first
        assert batch.targets is (first if loss.raw else Y)
        assert made.facts() == ({} if loss.raw else {"targets": ["labels"]})
        assert torch.equal(made.run(WholeBatch(), batch.inputs), X.sum(1))


def test_a_dict_beside_a_target():
    made, batch, notes = chosen(Two(), NAMED, ({"x": X, "z": Z, "id": INDEX}, Y))
    assert notes == ["keys of the inputs that Two.forward does not take: 'id'"]
    assert made.facts() == {"call": "keywords", "inputs": ["x", "z"]}
    assert batch.targets is Y
    assert torch.equal(made.run(Two(), batch.inputs), X.sum(1) + Z.sum(1))
    made, batch, _ = chosen(WholeBatch(), NAMED, ({"x": X}, Y))
    assert made.kind == "one"
    assert torch.equal(made.run(WholeBatch(), batch.inputs), X.sum(1))
    made, batch, _ = chosen(Any(), OWN, ({"x": X, "labels": Y, "m": Z}, Y))
    assert set(batch.inputs) == {"x", "labels", "m"}  # a target is beside them: all enters


def test_dicts_that_do_not_fit():
    keys = ", ".join(f"'{key}'" for key in LABELS)
    message = f"the loss 'cross_entropy' needs a target, which a dict has as one of {keys}, got 'x', 'z': rename it, or"
    refused(ValueError, message, Two(), NAMED, {"x": X, "z": Z})
    refused(ValueError, "got no keys: rename", Two(), NAMED, {})
    message = (
        r"Two.forward needs 'z', got batches with 'x', 'labels': rename the keys, or pass call=lambda model, batch"
    )
    refused(ValueError, message, Two(), NAMED, {"x": X, "labels": Y})

    class Lenient(nn.Module):
        def forward(self, a=None, b=None):
            return a

    refused(ValueError, "Lenient.forward needs one of its arguments, got batches with 'x'", Lenient(), OWN, {"x": X})


def test_an_own_signature_that_cannot_be_read():
    class Unreadable(nn.Module):
        forward = property(lambda self: SimpleNamespace())  # no function: no signature

    made, batch, notes = chosen(Unreadable(), NAMED, {"x": X, "anything": Z, "labels": Y})
    assert notes == []
    assert set(batch.inputs) == {"x", "anything"}
    assert chosen(Unreadable(), NAMED, (X, Z, X, Y))[0].kind == "positions"
    assert made.kind == "keywords"


# A callable of the user's.


def test_a_call_takes_the_whole_batch():
    def enter(model, batch):
        return model(batch["x"]) * batch["scale"]

    first = {"x": X, "scale": 2.0, "labels": Y}
    for loss in (NAMED, OWN):
        made, batch, notes = chosen(One(), loss, first, enter)
        assert (made.kind, notes) == ("own", [])
        assert batch.inputs is first
        assert batch.targets is (first if loss.raw else Y)
        assert torch.equal(made.run(One(), batch.inputs), X * 2)
    assert chosen(One(), NAMED, first, enter)[0].facts() == {"call": "enter", "targets": ["labels"]}
    assert chosen(One(), OWN, first, enter)[0].facts() == {"call": "enter"}


def test_a_call_on_a_tuple_takes_all_parts_and_the_last_is_the_target():
    first = (X, INDEX, Y)
    made, batch, notes = chosen(One(), NAMED, first, lambda model, batch: model(batch[0]))
    assert batch.inputs is first
    assert batch.targets is Y
    assert notes == []
    assert made.run(One(), batch.inputs) is X
    assert made.facts() == {"call": "<lambda>"}
    alone, batch, _ = chosen(One(), OWN, X, lambda model, batch: model(batch))
    assert alone.kind == "own"
    assert batch.targets is X


def test_a_call_that_is_an_object_goes_by_the_name_of_its_class():
    class Enter:
        def __call__(self, model, batch):
            return model(batch[0])

    assert chosen(One(), NAMED, (X, Y), Enter())[0].facts() == {"call": "Enter"}


@pytest.mark.parametrize("call", ["forward", 3, [print]])
def test_a_call_must_be_a_function(call):
    message = rf"call must be a function of \(model, batch\), got {type(call).__name__}"
    refused(TypeError, message, One(), NAMED, (X, Y), call)


# Objects.


def test_an_object_is_the_one_argument():
    first = SimpleNamespace(x=X, y=Y)
    made, batch, _ = chosen(One(), OWN, first)
    assert (made.kind, made.facts()) == ("one", {})
    assert batch.inputs is batch.targets is first
    made, batch, _ = chosen(One(), NAMED, first)
    assert batch.inputs is first
    assert batch.targets is Y
    assert made.raw is False
    assert made.facts() == {"targets": ["y"]}
    made, _, _ = chosen(One(), NAMED, first, lambda model, batch: model(batch.x))
    assert made.facts() == {"call": "<lambda>", "targets": ["y"]}
    assert made.run(One(), first) is X


def test_objects_that_do_not_fit():
    message = "got batches of a SimpleNamespace: pass pairs"
    refused(ValueError, message, One(), NAMED, SimpleNamespace(x=X))
    refused(ValueError, message, One(), NAMED, SimpleNamespace(x=X, y=3))  # no tensor
    for mask in ("train_mask", "val_mask", "test_mask"):
        message = f"got batches of a SimpleNamespace with '{mask}', which such a loss would not heed: pass pairs"
        refused(ValueError, message, One(), NAMED, SimpleNamespace(x=X, y=Y, **{mask: Y > 0}))
        assert choose(One(), OWN, SimpleNamespace(x=X, y=Y, **{mask: Y > 0})).call.kind == "one"


def test_what_numbers_the_first_samples_alone_is_no_number():
    made = choose(One(), NAMED, (X, Y, INDEX)).call
    with pytest.raises(
        ValueError, match="part 3 of the batches numbers the samples in the first, but not in another: pass"
    ):
        made.split((X, Y, torch.zeros(4, dtype=torch.int64)))


# Batches of another form than the first.


@pytest.mark.parametrize(
    ("model", "first", "later", "what"),
    [
        (Two(), {"x": X, "z": Z, "labels": Y}, {"x": X, "labels": Y}, r"another than the first \('z'\)"),
        (Two(), {"x": X, "z": Z, "labels": Y}, {"x": X, "z": Z}, r"another than the first \('labels'\)"),
        (Two(), (X, Z, Y), (X, Y), "2 parts in one and 3 in the first"),
        (Two(), ({"x": X, "z": Z}, Y), ({"x": X}, Y), r"another than the first \('z'\)"),
        (One(), (X, Y), None, r"first \(object of type 'NoneType' has no len"),
    ],
)
def test_batches_of_one_form(model, first, later, what):
    made = choose(model, NAMED, first).call
    with pytest.raises(ValueError, match=rf"batches of one form, got .*{what}.*: give all the same"):
        made.split(later)


# Outputs.


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Head(OrderedDict):
    """As ``ModelOutput``: a mapping with attributes."""

    @property
    def logits(self):
        return self["logits"]


@pytest.mark.parametrize(
    "output",
    [
        {"logits": X, "hidden": Z},
        OrderedDict(loss=torch.tensor(1.0), logits=X),
        Head(logits=X, hidden=Z),
        Pair(X, Z),
        Output(X, Z),
        SimpleNamespace(logits=X),
        (X,),
        [X, None],
        (Y, X),
        {"out": X, "ids": Y},
        (X, {"hidden": Z}),
        {"logits": None, "out": X},
    ],
)
def test_the_one_tensor_of_an_output(output):
    assert one_tensor(output) is X
    made = choose(One(), NAMED, (X, Y)).call
    assert made.run(lambda _: output, X) is X
    assert choose(One(), OWN, (X, Y)).call.run(lambda _: output, X) is output  # as the model returned it


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (None, "NoneType"),
        ((), "tuple"),
        ((Y,), "tuple"),
        ((X, Z), "tuple with 2 of them"),
        ([X, Z, X], "list with 3 of them"),
        ({"out": X, "aux": Z}, "dict with 2 of them"),
        (SimpleNamespace(out=X), "SimpleNamespace"),
        (1.0, "float"),
    ],
)
def test_outputs_without_one_tensor(output, got):
    message = rf"must return one tensor, or an output with .logits, got {got}: pass call=lambda model, batch: ... that"
    with pytest.raises(OutputError, match=message) as caught:
        one_tensor(output)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(OutputError, match=message):
        choose(One(), NAMED, (X, Y)).call.run(lambda _: output, X)
