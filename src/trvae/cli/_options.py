"""The command-line app, and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trvae import __version__
from trvae._utils._choices import GeneLikelihood

app = typer.Typer(
    help="Predict cells under conditions they were not measured in, with trVAE.",
    epilog="Exit status: 0 on success, 1 after an error (described on one line), 2 for wrong usage.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trvae-tools {__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


Data = Annotated[Path, typer.Argument(help="Cells as h5ad, h5mu or zarr.", exists=True)]
ConditionKey = Annotated[str, typer.Option(help="Column of obs with the conditions.")]
LabelsKey = Annotated[str | None, typer.Option(help="Column of obs with the cell types.")]
Layer = Annotated[str | None, typer.Option(help="Layer to use, by default X.")]
LibraryKey = Annotated[
    str | None, typer.Option(help="Column of obs with library sizes over all genes.")
]
Modality = Annotated[str, typer.Option(help="For MuData: the modality with the expression.")]
Likelihood = Annotated[
    GeneLikelihood,
    typer.Option(help="'normal' for log-normalised values, the others for raw counts."),
]
MaxEpochs = Annotated[int | None, typer.Option(help="Number of training epochs.", min=1)]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print a summary as JSON; all else goes to standard error."),
]
