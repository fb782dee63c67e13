"""What can be plotted of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


def check_is_one_model(model: Any, what: str) -> None:
    """Raise a ``ValueError`` if it is an ensemble.

    Parameters
    ----------
    model
        A model, or an ensemble, which has ``models``.
    what
        What of it is to be plotted, for the message.
    """
    if hasattr(model, "models"):
        raise ValueError(
            f"{type(model).__name__} has no {what} of its own, but each of its models has: plot "
            "that of one, such as model.models[0]."
        )


def cells_to_plot(model: Any, adata: AnnData | None) -> AnnData:
    """Return the cells given, or the model's own; a ``ValueError`` if there are none.

    Parameters
    ----------
    model
        A model.
    adata
        Cells, or ``None``.
    """
    cells = model.adata if adata is None else adata
    if cells is None:
        raise ValueError("The model has no cells of its own. Give some: adata=...")
    return cells


def condition_key(model: Any) -> str:
    """Return the column of ``obs`` with the conditions of a model's cells.

    Parameters
    ----------
    model
        A model.
    """
    return model.registry["setup_args"]["condition_key"]
