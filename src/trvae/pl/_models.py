"""The model and the cells to plot."""

from __future__ import annotations

from typing import Any

from anndata import AnnData
from mudata import MuData


def check_is_one_model(model: Any, what: str) -> None:
    """Raise a ``ValueError`` unless it is a model; ``what`` is to be plotted of it."""
    if isinstance(model, AnnData | MuData):
        raise ValueError(f"expected a model, got an object of type {type(model).__name__}.")
    if hasattr(model, "models"):
        raise ValueError(
            f"{type(model).__name__} has no {what} to plot. Plot that of one of its models, such "
            "as model.models[0]."
        )


def cells_to_plot(model: Any, adata: AnnData | MuData | None) -> AnnData:
    """Return the given cells or the model's own, or raise a ``ValueError`` if it has none."""
    cells = model.adata if adata is None else adata
    if cells is None:
        raise ValueError("The model has no AnnData of its own. Pass the cells: adata=...")
    # Columns of a MuData can be those of a modality.
    return cells if isinstance(cells, AnnData) else model.registered_data.cells_of(cells)


def condition_key(model: Any) -> str:
    """Return the column of ``obs`` with the conditions."""
    return model.registry["setup_args"]["condition_key"]
