"""What must be the same for a training to resume from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trvae._utils._matrices import digest
from trvae.io._saved import FORMAT_VERSION

if TYPE_CHECKING:
    from trvae.model._interface import Model


def identity_of(
    model: Model, datamodule: Any | None, plan_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Describe model, data and schedule as plain data."""
    known = model.registered_data
    if datamodule is None:
        n_cells = model.summary_stats.n_cells
        values = known.digest(model.adata)
    else:
        n_cells, values = getattr(datamodule, "n_obs", None), None
    settings = {
        **model.init_params_["non_kwargs"],
        "lr_schedule": plan_kwargs.get("lr_schedule", "constant"),
        "reduce_lr_on_plateau": bool(plan_kwargs.get("reduce_lr_on_plateau")),
    }
    # Not used in training.
    for name in ("linear_weight", "response_limit"):
        settings.pop(name, None)
    mapped = {}
    if (mapping := model.mapping_) is not None:
        cells = mapping["reference_cells"]
        mapped = {
            "reference": None if cells is None else digest(*cells.values()),
            "unfrozen": mapping["n_rows"] is None,
            "match_reference": mapping["matches_reference"],
        }
    return {
        **mapped,
        **{
            name: str(list(value) if isinstance(value, tuple) else value)
            for name, value in settings.items()
        },
        "format": FORMAT_VERSION,
        "conditions": list(map(str, model.conditions)),
        "genes": digest(np.asarray(known.var_names).astype(str)),
        "number of cells": n_cells,
        "values": values,
    }
