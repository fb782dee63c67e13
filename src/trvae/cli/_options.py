"""The command-line app and the options that its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trvae.module._expression import GeneLikelihood

if TYPE_CHECKING:
    pass


app = typer.Typer(
    help="Predict cells under conditions in which they were not measured, with trVAE.",
    epilog="Exit status: 0 if all is done, 1 with one line on what is wrong, 2 for wrong usage.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)


Data = Annotated[Path, typer.Argument(help="h5ad, h5mu or zarr with the cells.")]


ConditionKey = Annotated[str, typer.Option(help="Column of obs with the conditions.")]


LabelsKey = Annotated[str | None, typer.Option(help="Column of obs with the cell types.")]


Layer = Annotated[str | None, typer.Option(help="Layer with the counts; X if not given.")]


LibraryKey = Annotated[
    str | None, typer.Option(help="Column of obs with library sizes over all genes.")
]


Modality = Annotated[str, typer.Option(help="Modality with the expression, of an h5mu.")]


Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


MaxEpochs = Annotated[int | None, typer.Option(help="Passes over the data.", min=1)]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")]


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print a summary as JSON; all else goes to standard error."),
]


LikelihoodOption = Annotated[
    GeneLikelihood, typer.Option(help="'normal' for log-normalised values, else one of counts.")
]
