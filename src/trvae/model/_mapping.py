"""Mapping cells of new conditions onto a trained reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import (
    join_names,
)
from trvae._utils._seeds import seeded
from trvae.data._checks import (
    check_data,
    get_matrix,
    name_of_matrix,
)
from trvae.data._registration import (
    with_genes_of_model,
)

if TYPE_CHECKING:
    from typing import Any


if TYPE_CHECKING:
    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


class MappingMixin(_Model):
    """Map cells of new conditions onto a trained reference."""

    def _train_as_mapped(self) -> None:
        """Freeze the reference weights and set the MMD's comparison set."""
        if self.mapping_ is None:
            return
        if self.mapping_["n_rows"] is not None:
            self.module.train_new_categories_only(self.mapping_["n_rows"])
        if self.mapping_["matches_reference"]:
            self.module.compare_with(self.mapping_["reference_cells"])

    @property
    def _is_frozen(self) -> bool:
        """Whether only the weights of a query's new conditions and categories are trained."""
        return not all(parameter.requires_grad for parameter in self.module.parameters())

    @classmethod
    def _loaded(cls, model: str | Path | Any) -> Any:
        """A model as it is, or without cells from the folder it is saved in."""
        return cls.load(model, adata=False) if isinstance(model, str | Path) else model

    @classmethod
    def prepare_query_anndata(
        cls, adata: AnnData, reference_model: str | Path | Any, *args, **kwargs
    ) -> AnnData | pd.Index | None:
        """Give cells the genes of a reference in its order, filled up with zeros.

        Parameters
        ----------
        adata
            The cells.
        reference_model
            The trained model, or the folder it is saved in.
        *args, **kwargs
            Passed to :meth:`scvi.model.base.ArchesMixin.prepare_query_anndata`:
            ``return_reference_var_names`` and ``inplace``.

        Returns
        -------
        The cells, or ``None`` if ``adata`` is changed in place, which is the default.

        Raises
        ------
        ValueError
            If no gene is the reference's, or as :meth:`load`.
        """
        return super().prepare_query_anndata(adata, cls._loaded(reference_model), *args, **kwargs)

    @classmethod
    def prepare_query_mudata(
        cls, mdata: MuData, reference_model: str | Path | Any, *args, **kwargs
    ) -> MuData | dict[str, pd.Index] | None:
        """As :meth:`prepare_query_anndata`, of a MuData.

        Parameters
        ----------
        mdata
            The cells.
        reference_model, *args, **kwargs
            As in :meth:`prepare_query_anndata`.

        Returns
        -------
        As :meth:`prepare_query_anndata`.

        Raises
        ------
        ValueError
            As :meth:`prepare_query_anndata`.
        """
        reference = cls._loaded(reference_model)
        # MuData draws names for columns that it makes for a while.
        with seeded(0):
            return super().prepare_query_mudata(mdata, reference, *args, **kwargs)

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | MuData | None = None,
        reference_model: str | Path | Any | None = None,
        *,
        unfrozen: bool = False,
        match_reference: bool = False,
        **kwargs,
    ) -> Any:
        """Map cells of new conditions onto a trained reference.

        Parameters
        ----------
        adata
            Cells with the columns that the reference was set up with; new conditions and new
            categories of covariates are allowed. It is registered as by :meth:`setup_anndata` or
            :meth:`setup_mudata`.
            Genes are matched by name: unless they are the reference's in its order, the model
            has a copy of the cells in which they are.
        reference_model
            The trained model, or the folder it is saved in.
        unfrozen
            Whether :meth:`train` changes all weights. By default only those of new conditions
            and categories: what the reference predicts stays the same.
        match_reference
            Whether the MMD compares the query with the reference, too, of which a sample of at
            most 5,000 cells is kept with the model. By default only the query's own conditions
            are compared.
        **kwargs
            Passed to :meth:`scvi.model.base.ArchesMixin.load_query_data`.

        Returns
        -------
        A model of old and new conditions, yet to be trained on ``adata`` if that has any new
        ones.

        Raises
        ------
        ValueError
            If there is no reference model, a column, a gene or a modality is missing, or
            ``match_reference`` and no cells are kept with the reference.
            ``TRVAE.prepare_query_anndata`` fills up missing genes with zeros.

        References
        ----------
        Lotfollahi et al., *Nature Biotechnology* 40, 121 (2022).
        """
        if reference_model is None:
            raise ValueError(
                "Give reference_model: a trained model, or the folder it is saved in."
            )
        check_data(adata)
        reference = cls._loaded(reference_model)
        reference_cells = reference._kept_reference_cells() if match_reference else None
        if adata is not None and not kwargs.get("inplace_subset_query_vars"):
            adata = with_genes_of_model(
                adata, reference._var_names, reference._modality, cls._GENES
            )
        if isinstance(adata, MuData):
            model = cls._load_query_mudata(adata, reference, **kwargs)
        else:
            model = super().load_query_data(adata, reference, unfrozen=True, **kwargs)
        model._take_from_reference(reference)
        if reference_cells is not None and model.module.mmd_within_labels and adata is not None:
            model._check_shares_labels(reference_cells)
        known_rows = {name: len(weight) for name, weight in reference.module.named_parameters()}
        model.mapping_ = {
            "reference_cells": reference.reference_cells_,
            "n_rows": None if unfrozen else known_rows,
            "matches_reference": match_reference,
        }
        model._train_as_mapped()
        if not unfrozen:
            # A query without anything new is mapped already.
            model.is_trained_ = not any(p.requires_grad for p in model.module.parameters())
        return model

    def _check_shares_labels(self, reference_cells: dict[str, np.ndarray]) -> None:
        labels = self._field_state(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"]
        own = np.unique(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY))
        known = np.unique(reference_cells["label"])
        if not np.isin(own, known).any():
            raise ValueError(
                "match_reference=True compares cells of the same label, but the query's labels "
                f"({join_names(labels[own])}) are not among the reference's: "
                f"{join_names(labels[known])}."
            )

    @classmethod
    def _load_query_mudata(
        cls, mdata: MuData, reference: Any, inplace_subset_query_vars: bool = False, **kwargs
    ) -> Any:
        """As scvi-tools does, which takes no MuData with modalities that the model is not of."""
        if inplace_subset_query_vars:
            raise ValueError("inplace_subset_query_vars=True is of AnnData, not of MuData.")
        cells, layer = reference._cells_of(mdata), reference._layer
        reference._check_values(get_matrix(cells, layer), name_of_matrix(layer))
        cls.setup_mudata(
            mdata,
            source_registry=reference.registry,
            extend_categories=True,
            **reference.registry["setup_args"],
        )
        manager = cls._get_most_recent_anndata_manager(mdata, required=True)
        model = super().load_query_data(
            None, reference, registry=manager.registry, unfrozen=True, **kwargs
        )
        model._register_manager_for_instance(manager)
        model._adata, model._adata_manager, model.registry_ = mdata, manager, manager.registry
        return model

    def _take_from_reference(self, reference: Any) -> None:
        """Take over what a reference keeps of its cells."""
        self.reference_cells_ = reference.reference_cells_
