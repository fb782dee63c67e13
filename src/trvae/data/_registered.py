"""What a registry says about the data that a model was set up with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mudata import MuData
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import join_names
from trvae._utils._matrices import digest, digest_of_matrix
from trvae.data._cells import loaded, positions_of_genes, unregistered
from trvae.data._checks import (
    check_anndata,
    check_not_empty,
    check_not_lazy,
    get_matrix,
    is_list_of_conditions,
)
from trvae.data._mudata import (
    anndata_arguments,
    cells_of,
    expression_modality,
    registered_columns,
    with_genes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class RegisteredData:
    """Columns, conditions and genes that a model was set up with, and how to find them again."""

    registry: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``setup_anndata``, or those of ``setup_mudata`` in its terms."""
        return anndata_arguments(self.registry["setup_args"])

    @property
    def modality(self) -> str | None:
        """Modality with the expression, or ``None`` if an AnnData was set up."""
        return expression_modality(self.registry["setup_args"])

    @property
    def layer(self) -> str | None:
        """Layer with the values, ``X`` if ``None``."""
        return self.arguments["layer"]

    @property
    def condition_key(self) -> str:
        """Column of ``obs`` with the conditions."""
        return self.state(REGISTRY_KEYS.BATCH_KEY)["original_key"]

    @property
    def conditions(self) -> list[Any]:
        """The conditions, in the order of their codes."""
        return list(self.state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])

    @property
    def labels(self) -> np.ndarray:
        """The labels, in the order of their codes."""
        return np.asarray(self.state(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"])

    @property
    def var_names(self) -> np.ndarray:
        """The genes, in order."""
        return np.asarray(self.state(REGISTRY_KEYS.X_KEY)["column_names"])

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and number of channels, or ``None`` if cells were set up."""
        return self.arguments.get("image_shape")

    @property
    def cells(self) -> str:
        """Name of the rows in messages."""
        return "cells" if self.image_shape is None else "images"

    @property
    def genes(self) -> str:
        """Name of the columns in messages."""
        return "genes" if self.image_shape is None else "pixels"

    def state(self, registry_key: str) -> dict[str, Any]:
        """What was registered under a key, empty if nothing was."""
        return self.registry["field_registries"].get(registry_key, {}).get("state_registry", {})

    def categories(self, *, with_labels: bool = False) -> dict[str, Sequence[Any]]:
        """Categories of condition, covariates and perhaps labels, by their column of ``obs``."""
        covariates = self.state(REGISTRY_KEYS.CAT_COVS_KEY).get("mappings", {})
        labels_key = self.arguments["labels_key"]
        labels = {labels_key: self.labels} if with_labels and labels_key is not None else {}
        return {self.condition_key: self.conditions, **covariates, **labels}

    def cells_of(self, data: AnnData | MuData) -> AnnData:
        """Return an AnnData as it is, and of a MuData the cells as the model reads them."""
        if isinstance(data, MuData):
            self._check_takes_mudata(data)
            return cells_of(data, self.registry["setup_args"])
        check_anndata(data)
        if self.image_shape is not None and data.n_vars != math.prod(self.image_shape):
            # Columns are numbered alike in images of any shape.
            raise ValueError(
                f"adata has images of {data.n_vars} values, but the model takes images of "
                f"{' x '.join(map(str, self.image_shape))} (height x width x channels)."
            )
        return data

    def digest(self, data: AnnData | MuData) -> str:
        """Hash of all that a model reads of cells: their names, columns and values."""
        adata = self.cells_of(data)
        columns = dict.fromkeys(key for _, key in registered_columns(self.arguments))
        obs = [adata.obs[key].astype(str).to_numpy() for key in columns if key in adata.obs]
        values = np.array([digest_of_matrix(get_matrix(adata, self.layer))])
        return digest(adata.obs_names.to_numpy(), *obs, values)

    def with_genes(self, data: AnnData | MuData) -> AnnData | MuData:
        """Return data with the model's genes in its order, copied in memory unless they are so."""
        if isinstance(data, MuData):
            self._check_takes_mudata(data)
            cells = data.mod.get(self.modality)
            # A missing modality is reported by setup_mudata.
            if cells is None or (same := self._cells_with_genes(cells)) is cells:
                return data
            return with_genes(data, str(self.modality), same)
        if self.modality is not None:
            raise ValueError(f"the model was set up with a MuData, got {type(data).__name__}.")
        check_anndata(data)
        check_not_lazy(data)
        return self._cells_with_genes(data)

    def _cells_with_genes(self, adata: AnnData) -> AnnData:
        check_not_empty(adata)
        if np.array_equal(adata.var_names, self.var_names):
            return adata
        positions = positions_of_genes(adata, self.var_names, self.genes)
        return unregistered(loaded(adata)[:, positions].copy())

    def _check_takes_mudata(self, mdata: MuData) -> None:
        if self.modality is None:
            raise ValueError(
                "the model was set up with an AnnData, got a MuData. Pass one modality, such as "
                f"mdata[{next(iter(mdata.mod))!r}]."
            )

    # ---------------------------------------------------------------- conditions and genes

    def condition_code(self, name: Any, argument: str) -> int:
        """Code of a condition; a ``ValueError`` lists the conditions if it is not one of them."""
        # A list or an array would be compared with its elements.
        if not pd.api.types.is_scalar(name) or name not in self.conditions:
            raise ValueError(
                f"{argument} {name!r} is not one of the model's conditions: "
                f"{join_names(self.conditions)}."
            )
        return self.conditions.index(name)

    def targets(self, target_condition: Any) -> list[Any]:
        """One or several target conditions as a list, each known and named once."""
        if not is_list_of_conditions(target_condition):
            self.condition_code(target_condition, "target_condition")
            return [target_condition]
        targets = list(target_condition)
        for target in targets:
            self.condition_code(target, "target_condition")
        if len(targets) == 0 or len(set(targets)) < len(targets):
            raise ValueError(f"target_condition must name each condition once, got {targets}.")
        return targets

    def gene_positions(self, gene_list: Sequence[str]) -> np.ndarray:
        """Positions of a list of genes among the model's; a ``ValueError`` names unknown ones."""
        if isinstance(gene_list, str):
            raise ValueError(f"gene_list must be a list of genes, got {gene_list!r}.")
        positions = pd.Index(self.var_names).get_indexer(list(gene_list))
        if (positions < 0).any():
            unknown = np.asarray(list(gene_list))[positions < 0]
            raise ValueError(f"gene_list has genes unknown to the model: {join_names(unknown)}.")
        return positions

    def gene_order(
        self, data: AnnData | MuData, gene_list: Sequence[str] | None = None
    ) -> np.ndarray:
        """Positions, among the model's genes (of the list), of the genes of ``data`` in its order."""
        genes = pd.Index(self.var_names)
        if gene_list is not None:
            genes = genes[genes.isin(gene_list)]
        order = genes.get_indexer(self.cells_of(data).var_names)
        return order[order >= 0]
