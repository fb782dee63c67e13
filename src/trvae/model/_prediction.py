"""A prediction as an AnnData or within a MuData, with where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from trvae._scvi import is_registered
from trvae.data._checks import is_list_of_conditions
from trvae.data._mudata import with_prediction
from trvae.model._labels import key_of

if TYPE_CHECKING:
    from trvae.model._base import BaseTRVAE
    from trvae.model._selection import Selection


def as_anndata(model: BaseTRVAE, matrix: Any, selection: Selection, target: Any) -> AnnData:
    """Make the AnnData that :meth:`trvae.TRVAE.transfer` returns.

    The matrix has the cells under one target condition after another; ``None`` leaves it out.
    """
    known, targets = model.registered_data, model.registered_data.targets(target)
    obs = selection.adata.obs.iloc[np.tile(selection.indices, len(targets))].copy()
    obs = obs.drop(columns=list(filter(is_registered, obs)))
    codes = [known.conditions.index(name) for name in targets]
    obs[known.condition_key] = pd.Categorical.from_codes(
        np.repeat(codes, len(selection.indices)), pd.Index(known.conditions)
    )
    if is_list_of_conditions(target):
        obs.index = obs.index.astype(str) + "-" + obs[known.condition_key].astype(str)
        obs.index.name = selection.adata.obs.index.name
    var = selection.registered.var.iloc[selection.gene_order].copy()
    result = AnnData(matrix, obs=obs, var=var)
    if known.layer is not None and matrix is not None:
        result.layers[known.layer] = result.X.copy()
    sources = np.unique([known.conditions.index(name) for name in pd.unique(selection.source)])
    changes = [key_of(source, code) for source in sources for code in codes if source != code]
    result.uns["trvae"] = {
        "target_condition": as_text(target),
        "source_conditions": np.unique(selection.source.astype(str)),
        "estimate": selection.estimate,
        "is_calibrated": selection.estimate == "counterfactual"
        and len(changes) > 0
        and all(change in model.calibration_ for change in changes),
        **model.module.likelihood_setting,
        "seed": selection.seed,
    }
    return result


def in_place_of(
    model: BaseTRVAE, data: AnnData | MuData, selection: Selection, predicted: AnnData
) -> AnnData | MuData:
    """Return the prediction, wrapped in a MuData if one was given."""
    if not isinstance(data, MuData):
        return predicted
    positions = np.tile(selection.indices, predicted.n_obs // len(selection.indices))
    return with_prediction(data, positions, predicted, model.registry["setup_args"])


def as_text(target: Any) -> str | list[str]:
    """One or several conditions as text."""
    return list(map(str, target)) if is_list_of_conditions(target) else str(target)
