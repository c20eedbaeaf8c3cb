"""The options that several commands take, each written once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"must be between 0 and 2**63 - 1, got {value}")
    return value


def _amount(value: str) -> Any:
    """Samples or a share of them: a number as one, any other text as it is, for the function that takes it to judge."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def amount(text: str, **details: Any) -> Any:
    """An option that takes a number of samples, or a share of them.

    Args:
        text: What the help says.
        **details: What else ``typer.Option`` takes.
    """
    return typer.Option(help=text, parser=_amount, metavar="SAMPLES", **details)


def words(known: str, text: str = "{}.", *, name: str | None = None, **details: Any) -> Any:
    """An option that is one of some words, which the shell completes.

    Args:
        known: The words, with spaces between them.
        text: What the help says; ``{}`` stands for the words.
        name: Of the option, where that is not the parameter's.
        **details: What else ``typer.Option`` takes.
    """
    *first, last = known.split()
    listed = f"{', '.join(first)} or {last}"
    named = () if name is None else (name,)
    return typer.Option(*named, help=text.format(listed), autocompletion=lambda: [*first, last], **details)


Runs = Annotated[list[Path] | None, typer.Argument(help="Folders made by lbgap train.", show_default=False)]
ModelPath = Annotated[
    str | None, typer.Option("--model", help="Your own network, as module:callable.", show_default=False)
]
Weights = Annotated[
    list[Path] | None,
    typer.Option(
        "--weights",
        help="Its weights: a torch checkpoint, a .safetensors file, a folder or index of these; once a minimizer.",
        show_default=False,
    ),
]
DATA_NAMES = "mnist1d digits mnist cifar10 cifar100"
DATA = "mnist1d, digits, mnist, cifar10, cifar100 or a .npz file"
DataName = Annotated[
    str | None,
    words(DATA_NAMES, f"{DATA}.", name="--data", show_default="what the run was trained on"),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the files of mnist, cifar10 or cifar100.", show_default=False)
]
Download = Annotated[bool, typer.Option("--download", help="Fetch what is missing of them into --data-dir.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is random.", callback=_seed)]
FirstSeed = Annotated[int, typer.Option(help="The first start; the others count on.", callback=_seed)]
Device = Annotated[str | None, words("cpu cuda", show_default="the model's")]
BatchNorm = Annotated[str, words("eval batch", "eval (running statistics) or batch (those of each evaluation batch).")]
BatchSize = Annotated[
    int | None, amount("Samples in an evaluation batch, or a share of all (10%).", show_default="chosen by itself")
]
Parameters = Annotated[
    str, typer.Option(help="Which may move: all, weights, a module's name, or a pattern such as '*.bias'.")
]
Precision = Annotated[str, words("float32 float64 mixed")]
Backend = Annotated[str, words("auto native torch")]
Out = Annotated[Path, typer.Option(help="Folder for the result.")]

# Of the search for the largest loss in a box.
Epsilons = Annotated[list[float], typer.Option("--epsilon", help="Size of the box; may be given several times.")]
Method = Annotated[str, words("vertex apgd lbfgsb scipy", "{} (the paper's recipe).")]
Iterations = Annotated[int | None, typer.Option(help="At most, from each start.", show_default="by method")]
Scout = Annotated[
    int | None,
    amount("Samples, or a share, that restarts of vertex climb on first; 0: none.", show_default="by itself"),
]
Scaling = Annotated[str | None, words("box paper", "Of lbfgsb: {}.", show_default="box")]
SearchSamples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        help="Search on so many samples, or a share (10%), then evaluate on all.",
        show_default="all",
        parser=_amount,
        metavar="SAMPLES",
    ),
]
Region = Annotated[str, words("keskar linf adaptive")]

# Of estimates that multiply by a matrix of second derivatives.
Kind = Annotated[str, words("hessian ggn fisher")]
MaxProducts = Annotated[int, typer.Option(help="Products with the matrix at most.")]
Threshold = Annotated[
    float | None, typer.Option(help="Of a large eigenvalue.", show_default="a hundredth of the largest")
]
Steps = Annotated[int, typer.Option(help="Products for each probe of the density.")]
RelativeError = Annotated[float, typer.Option(help="Standard error to stop at, as a share.")]
Draws = Annotated[int, typer.Option(help="Random draws, at most where a standard error ends them.")]
