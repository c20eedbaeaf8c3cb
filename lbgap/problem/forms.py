"""The losses of torch: which function and module, their options, and what they are divided by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

INDICES, VALUES, MEMBERS = "indices", "values", "members"
REDUCTIONS = ("mean", "sum", "none")


class Form(NamedTuple):
    """A loss of torch.

    Attributes:
        function: Of ``torch.nn.functional``, which returns the loss of each element with ``reduction="none"``.
        module: Its module.
        options: Keywords of the function, and attributes of the module.
        targets: ``"indices"`` of classes, ``"values"`` of the output's shape, or ``"members"``: class indices in rows
            of the output's shape.
        ratio: Whether a mean over class indices is divided by the weights of those that are not ignored.
    """

    function: Callable[..., Tensor]
    module: type[nn.Module]
    options: tuple[str, ...] = ()
    targets: str = VALUES
    ratio: bool = False


CROSS_ENTROPY = Form(
    F.cross_entropy, nn.CrossEntropyLoss, ("weight", "ignore_index", "label_smoothing"), INDICES, ratio=True
)
NLL = Form(F.nll_loss, nn.NLLLoss, ("weight", "ignore_index"), INDICES, ratio=True)
BCE = Form(F.binary_cross_entropy, nn.BCELoss, ("weight",))
BCE_LOGITS = Form(F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss, ("weight", "pos_weight"))
MSE = Form(F.mse_loss, nn.MSELoss, ("weight",))
L1 = Form(F.l1_loss, nn.L1Loss, ("weight",))
HUBER = Form(F.huber_loss, nn.HuberLoss, ("delta", "weight"))
KL = Form(F.kl_div, nn.KLDivLoss, ("log_target",))
MULTILABEL = Form(F.multilabel_margin_loss, nn.MultiLabelMarginLoss, (), MEMBERS)
MULTILABEL_SOFT = Form(F.multilabel_soft_margin_loss, nn.MultiLabelSoftMarginLoss, ("weight",))
FORMS = (
    CROSS_ENTROPY,
    NLL,
    BCE,
    BCE_LOGITS,
    MSE,
    L1,
    HUBER,
    KL,
    MULTILABEL,
    MULTILABEL_SOFT,
    Form(F.smooth_l1_loss, nn.SmoothL1Loss, ("beta",)),
    Form(F.poisson_nll_loss, nn.PoissonNLLLoss, ("log_input", "full", "eps")),
    Form(F.soft_margin_loss, nn.SoftMarginLoss),
    Form(F.hinge_embedding_loss, nn.HingeEmbeddingLoss, ("margin",)),
    Form(F.multi_margin_loss, nn.MultiMarginLoss, ("p", "margin", "weight"), INDICES),
)
