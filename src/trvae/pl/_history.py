"""The loss during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from trvae._utils._arguments import join_names
from trvae.pl._models import check_is_one_model
from trvae.pl._output import BLUE, ORANGE, SMALL_FONT, Output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Terms of the loss, with their units; ``one`` is a cell or an image.
_TERMS = {
    "objective": "objective [nats per {unit}]",
    "reconstruction_loss": "reconstruction [nats per {unit}]",
    "kl_local": "KL divergence [nats per {unit}]",
    "mmd": "squared MMD",
}
_STYLES = {"training": (BLUE, "-", "o"), "validation": (ORANGE, "--", "s")}
# Lines of at most this many epochs have markers. A line of one epoch would be invisible.
_EPOCHS_MARKED = 30


def history(
    model: Any,
    *,
    terms: Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Training and validation loss over epochs, one panel per term.

    Parameters
    ----------
    model
        A trained :class:`~trvae.TRVAE`, or any other model with the ``history`` of scvi-tools.
    terms
        Keys of ``model.history`` without ``_train`` or ``_validation``. By default those of
        ``"objective"``, ``"reconstruction_loss"`` and ``"kl_local"`` (in nats per cell or image)
        and ``"mmd"`` (squared, not weighted) that the history has.
    ax
        Axes to draw into, one per term. By default those of a new figure.
    show, save, return_fig
        See :func:`mean_scatter`: show, save or return the figure.

    Returns
    -------
    The axes, a list of them if there are several terms, or the figure if ``return_fig``, or
    nothing if the figure is shown.

    Raises
    ------
    RuntimeError
        If the model has no history.
    ValueError
        If a term is not in the history, the number of axes does not match that of the terms, or
        the model is an ensemble, whose members each have a history.
    """
    curves = _curves(model)
    if terms is None:
        terms = [term for term in _TERMS if term in curves] or list(curves)
    elif isinstance(terms, str):
        terms = [terms]
    unknown = [term for term in terms if term not in curves]
    if unknown or not terms:
        raise ValueError(f"terms={terms!r} are not among {join_names(curves)}.")
    output = Output(ax, show, save, return_fig)
    axes = output.axes(len(terms), panel_size=(3.1, 2.3), n_columns=2)
    unit = "image" if hasattr(model, "image_shape") else "cell"
    for panel, term in zip(axes, terms, strict=True):
        label = _TERMS[term].format(unit=unit) if term in _TERMS else term
        _draw(panel, label, curves[term])
    return output.finish(axes)


def _curves(model: Any) -> dict[str, dict[str, pd.Series]]:
    """Return the training and the validation curve of each term, where there are such."""
    check_is_one_model(model, "history")
    logged = getattr(model, "history", None)
    if not logged:
        raise RuntimeError(
            f"{type(model).__name__} has no training history: it was not trained, or with a "
            "logger that keeps none. Call model.train() first."
        )
    curves: dict[str, dict[str, pd.Series]] = {}
    for name, table in logged.items():
        # scvi-tools has train_loss, but elbo_train.
        suffixed = {"train_loss": "loss_train", "validation_loss": "loss_validation"}.get(
            name, name
        )
        term = suffixed.removesuffix("_train").removesuffix("_validation")
        kind = "validation" if suffixed.endswith("_validation") else "training"
        curves.setdefault(term, {})[kind] = table.iloc[:, 0].astype(float)
    return curves


def _draw(ax: Axes, label: str, curves: dict[str, pd.Series]) -> None:
    for kind in [kind for kind in _STYLES if kind in curves]:
        values, (color, line, marker) = curves[kind], _STYLES[kind]
        style = line + (marker if len(values) <= _EPOCHS_MARKED else "")
        ax.plot(values.index, values, style, color=color, label=kind, markersize=3)
    ax.set_xlabel("epoch", fontsize=SMALL_FONT + 1)
    ax.set_ylabel(label, fontsize=SMALL_FONT + 1)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.tick_params(labelsize=SMALL_FONT)
    ax.legend(frameon=False, fontsize=SMALL_FONT)
    ax.spines[["top", "right"]].set_visible(False)
