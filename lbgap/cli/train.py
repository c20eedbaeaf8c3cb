"""The command ``lbgap train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lbgap.cli.options import DATA, DATA_NAMES, AsJson, DataDir, Device, Download, ModelPath, Seed, amount, words
from lbgap.cli.show import errors, escape, resumable, show

REMEDY_NAMES = (
    "augment, conservative, batches, grow, ghost, sqrt-rate, linear-rate, swa, smoothout, robust, adversarial, "
    "stability, sam, asam, local-sgd"
)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; must be new unless --resume.")],
    data: Annotated[str, words(DATA_NAMES, f"{DATA}.")] = "mnist1d",
    data_dir: DataDir = None,
    download: Download = False,
    network: Annotated[
        str,
        words(
            "mlp f1 f2 c1_1d c2_1d c1 c2 c3 c4", "mlp, f1, f2, c1_1d, c2_1d; c1 to c4 for images (cifar10, cifar100)."
        ),
    ] = "mlp",
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers of mlp.")] = "128,128,128,128",
    initialisation: Annotated[str, words("torch uniform", "{} (Keras), of the networks above.")] = "torch",
    model: ModelPath = None,
    batch_size: Annotated[
        int | None,
        amount("Samples (256), or a share of the training set (0.1, 10%).", show_default="256, or all if fewer"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="How many epochs.", show_default="until the training loss stops improving")
    ] = None,
    max_epochs: Annotated[int, typer.Option(help="The most epochs without --epochs.")] = 200,
    optimizer: Annotated[str, typer.Option(help="A class of torch.optim, or LARS or LAMB.")] = "Adam",
    learning_rate: Annotated[float, typer.Option(help="Of all epochs, unless a remedy changes it.")] = 1e-3,
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="Against the generalisation gap, such as swa or conservative:lam=1e-3; may be given several times: "
            f"{REMEDY_NAMES}.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    keep_every: Annotated[
        int | None,
        typer.Option(help="Keep the iterate of each so many epochs, for lbgap plane.", show_default="keep none"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network to a minimizer; a run that was killed resumes to the same bits.

    Writes into --out: config.json (the settings), metrics.jsonl (a line an
    epoch), state.safetensors (to resume), model.safetensors (the trained
    weights) and result.json; with --keep-every also a folder of iterates.
    """
    import torch

    from lbgap import datasets, networks
    from lbgap import training as lbgap_training

    if model is None:
        networks.known(network)  # before data are read or fetched, which may take long
    samples = datasets.load(data, data_dir, download=download, progress=errors().is_terminal)
    extra: dict[str, Any] = {"data": {"name": data, "data_dir": None if data_dir is None else str(data_dir)}}
    if model is not None:
        torch.manual_seed(seed)  # for the initial values that a model of one's own draws
        module = networks.from_path(model)
        extra["model"] = model
    else:
        spec = _network_spec(network, hidden, samples, seed, initialisation)
        module = networks.build(spec)
        extra["network"] = spec
    with resumable("the same command with --resume"):
        run = lbgap_training.train(
            module,
            samples.train,
            test_data=samples.test,
            loss=samples.loss,
            batch_size=batch_size,
            epochs=epochs,
            max_epochs=max_epochs,
            optimizer=optimizer,
            learning_rate=learning_rate,
            remedies=remedy or (),
            seed=seed,
            device=device,
            out=out,
            resume=resume,
            keep_every=keep_every,
            config=extra,
            progress=errors().is_terminal,
        )
    result = {"folder": str(out), "epoch": run.epoch, "reason": run.reason, "metrics": run.metrics[run.epoch - 1]}
    show(as_json, result, escape(str(run)))


def _network_spec(name: str, hidden: str, samples: Any, seed: int, initialisation: str) -> dict[str, Any]:
    from lbgap import networks

    try:
        widths = [int(width) for width in hidden.split(",")] if name == "mlp" else None
    except ValueError:
        raise ValueError(f"--hidden must be widths such as 128,128, got {hidden!r}") from None
    return networks.specify(
        name, samples.features, samples.outputs, seed=seed, hidden=widths, initialisation=initialisation
    )
