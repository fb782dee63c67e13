"""Select the cells and conditions of a transfer."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import join_names
from trvae.counterfactual._draws import cell_keys
from trvae.counterfactual._label_response import ResponseOfLabels, Weights
from trvae.data._checks import cell_positions, check_not_empty, check_not_lazy
from trvae.model._labels import libraries_of, response_of_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from trvae._utils._choices import Estimate
    from trvae.data._registered import RegisteredData
    from trvae.model._base import BaseTRVAE
    from trvae.model._interface import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Cells to transfer into one target condition."""

    adata: AnnData
    """The user's cells, untouched."""
    registered: AnnData
    """The same cells with the model's genes, as the model reads them."""
    indices: np.ndarray
    """Positions of the selected cells, ``n_selected``."""
    gene_order: np.ndarray
    """Positions of the user's genes among the model's, in the user's order."""
    source: np.ndarray
    """Source condition of each selected cell, ``n_selected``."""
    keys: np.ndarray
    """Key of each selected cell's random numbers, see :func:`cell_keys`."""
    target: Any
    """The target condition."""
    estimate: Estimate
    seed: int
    weights: Weights | None
    """Weights of the parts of a counterfactual, or ``None`` for the model's."""
    responses: dict[int, ResponseOfLabels]
    """Mean responses of the labels, by code of the source condition, where they are used."""

    @property
    def names(self) -> pd.Index:
        """Names of the selected cells."""
        return self.registered.obs_names[self.indices]

    def of_cells(self, positions: np.ndarray) -> Selection:
        """The cells at these positions among the selected ones."""
        of_cell = {name: getattr(self, name)[positions] for name in ("indices", "source", "keys")}
        return replace(self, **of_cell)


def select(
    model: BaseTRVAE,
    data: AnnData | MuData | None,
    target: Any,
    source: Any,
    indices: Any,
    estimate: Estimate,
    seed: int,
    weights: Weights | None = None,
) -> Selection:
    """Validate arguments and select cells; see :meth:`trvae.TRVAE.transfer`."""
    model._check_if_trained(warn=False)
    known = model.registered_data
    known.condition_code(target, "target_condition")
    if data is model.adata:
        data = None
    adata = known.cells_of(own_data(model) if data is None else data)
    check_not_lazy(adata)
    check_not_empty(adata)
    positions, conditions = chosen_cells(known, adata.obs, source, indices)
    if data is None:
        model._check_columns_unchanged(positions)
        registered = model._validate_anndata(None)
    else:
        # Columns of the others don't matter: those of a selected cell will do.
        rows = np.full(adata.n_obs, positions[0])
        rows[positions] = positions
        obs = with_condition(known, adata.obs.iloc[rows], source)
        obs.index = adata.obs.index
        registered = model._validate_anndata(adata, obs=obs)
    # Files were checked when the model was made.
    if estimate != "decoded" and not registered.isbacked:
        model._check_library(registered, positions)
    if estimate != "decoded" and not _has_expression(model, registered):
        raise ValueError(
            f"estimate={estimate!r} needs the {known.cells}' own values, which this minified "
            "AnnData does not have. Use estimate='decoded', or pass the full AnnData."
        )
    selection = Selection(
        adata,
        registered,
        positions,
        known.gene_order(adata),
        conditions,
        cell_keys(registered.obs_names)[positions],
        target,
        estimate,
        seed,
        Weights(0.0, 1.0, 0.0) if estimate == "linear" else weights,
        {},
    )
    return with_target(model, selection, target)


def with_target(model: BaseTRVAE, selection: Selection, target: Any) -> Selection:
    """Select the same cells for another target condition, which the model knows."""
    if selection.estimate == "decoded":
        return replace(selection, target=target)
    target_code = model.conditions.index(target)
    sources = {model.conditions.index(name) for name in pd.unique(selection.source)}
    responses = {
        code: response
        for code in sources - {target_code}
        if (response := response_of_labels(model, code, target_code, selection.weights))
        is not None
    }
    without = [model.conditions[code] for code in sources - {target_code} - set(responses)]
    if selection.estimate == "linear" and without:
        raise ValueError(
            f"estimate='linear' needs a model of expression with labels that were measured under "
            f"both {target!r} and {join_names(sorted(without, key=str))}."
        )
    return replace(selection, target=target, responses=responses)


def log_what_stays(source: np.ndarray, targets: Sequence[Any], cells: str) -> None:
    """Say how many cells are under a target condition already, which transfer doesn't change."""
    for target in targets:
        n_same = int((source == target).sum())
        if n_same:
            logger.warning(
                f"{n_same:,} of {len(source):,} {cells} are of {target} already and stay as they are. "
                "source_condition=... selects those of one condition."
            )


def own_data(model: Model) -> AnnData | MuData:
    """Return the model's own data; a ``ValueError`` if there are none or their values have changed."""
    if model.adata is None:
        raise ValueError(
            f"the model has no AnnData of its own. Pass the {model.registered_data.cells}: adata=..."
        )
    model._check_data_unchanged()
    return model.adata


def chosen_cells(
    known: RegisteredData, obs: pd.DataFrame, source: Any, indices: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of the selected cells and the condition that each was measured under.

    Raises a ``ValueError`` if the source is unknown, no cell is selected or ``obs`` does not have the
    conditions.
    """
    key = known.condition_key
    if source is not None:
        known.condition_code(source, "source_condition")
    positions = cell_positions(indices, len(obs), cells=known.cells)
    if key not in obs and source is None:
        raise ValueError(
            f"condition_key {key!r} is not in adata.obs. If all {known.cells} were measured under "
            "one condition, name it: source_condition=..."
        )
    conditions = with_condition(known, obs, source)[key]
    if isinstance(conditions, pd.DataFrame):
        raise ValueError(f"condition_key {key!r} names several columns of adata.obs.")
    conditions = conditions.iloc[positions]
    if source is not None:
        chosen = conditions.eq(source).fillna(False).to_numpy(bool)
        positions, conditions = positions[chosen], conditions[chosen]
    if len(positions) == 0:
        raise ValueError(f"no {known.cells} are selected: none of them has {key}={source!r}.")
    return positions, conditions.to_numpy()


def with_condition(known: RegisteredData, obs: pd.DataFrame, source: Any) -> pd.DataFrame:
    """Return ``obs``, with the source condition if it has no conditions."""
    key = known.condition_key
    return obs if key in obs else obs.assign(**{key: source})


def _has_expression(model: BaseTRVAE, registered: AnnData) -> bool:
    manager = model.get_anndata_manager(registered, required=True)
    return (
        REGISTRY_KEYS.MINIFY_TYPE_KEY not in manager.data_registry
        or "counts" in manager.get_from_registry(REGISTRY_KEYS.MINIFY_TYPE_KEY)
    )


def own_values(model: BaseTRVAE, selection: Selection) -> Any:
    """The selected cells' own counts or values, dense or sparse, ``n_cells x n_genes``."""
    manager = model.get_anndata_manager(selection.registered, required=True)
    return manager.get_from_registry(REGISTRY_KEYS.X_KEY)[selection.indices]


def own_libraries(model: BaseTRVAE, selection: Selection, own: Any) -> np.ndarray | None:
    """Library sizes of the selected cells with these values, ``n_cells``; see :func:`libraries_of`."""
    obs = selection.adata.obs.iloc[selection.indices]
    library = np.empty(len(obs))
    for name in pd.unique(selection.source):
        cells = np.flatnonzero(selection.source == name)
        of_source = libraries_of(model, obs.iloc[cells], own[cells], model.conditions.index(name))
        if of_source is None:
            return None
        library[cells] = of_source
    return library
