"""The options that several commands take, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"must be between 0 and 2**63 - 1, got {value}")
    return value


Runs = Annotated[list[Path] | None, typer.Argument(help="Folders made by lbgap train.", show_default=False)]
ModelPath = Annotated[
    str | None, typer.Option("--model", help="Your own network: package.module:callable.", show_default=False)
]
Weights = Annotated[
    list[Path] | None,
    typer.Option("--weights", help="Its weights, a .safetensors file; once for each minimizer.", show_default=False),
]
DATA = "mnist1d, digits, mnist, cifar10, cifar100 or a .npz file"
DataName = Annotated[
    str | None,
    typer.Option("--data", help=f"{DATA}.", show_default="what the run was trained on"),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the files of mnist, cifar10 or cifar100.", show_default=False)
]
Download = Annotated[bool, typer.Option("--download", help="Fetch what is missing of them into --data-dir.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is random.", callback=_seed)]
FirstSeed = Annotated[int, typer.Option(help="The first start; the others count on.", callback=_seed)]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="the model's")]
BatchNorm = Annotated[str, typer.Option(help="eval (running statistics) or batch (those of each evaluation batch).")]
BatchSize = Annotated[int | None, typer.Option(help="Samples in an evaluation batch.", show_default="chosen by itself")]
Parameters = Annotated[
    str, typer.Option(help="Which may move: all, weights, a module's name, or a pattern such as '*.bias'.")
]
Precision = Annotated[str, typer.Option(help="float32, float64 or mixed.")]
Out = Annotated[Path, typer.Option(help="Folder for the result.")]
