"""Mapping cells of new conditions onto a trained reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mudata import MuData
from scvi import REGISTRY_KEYS

from trvae._scvi import adopt, latest_manager, undone_on_error
from trvae._utils._arguments import join_names
from trvae._utils._seeds import seeded
from trvae.data._cells import check_not_backed, loaded
from trvae.data._checks import (
    check_anndata,
    check_data,
    check_not_lazy,
    check_unique_genes,
    get_matrix,
    name_of_matrix,
)
from trvae.model._hints import MAPPING, hinting

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from trvae.model._interface import Model
else:
    Model = object


class MappingMixin(Model):
    """Map cells of new conditions onto a trained reference."""

    @classmethod
    def prepare_query_anndata(
        cls,
        adata: AnnData,
        reference_model: str | Path | Any,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> AnnData | pd.Index | None:
        """Give cells the genes of a reference, in its order; missing genes are filled with zeros.

        Parameters
        ----------
        adata
            The cells. If they are file-backed, they can't be changed in place; with
            ``inplace=False`` they are read into memory.
        reference_model
            The trained model, or the folder it is saved in.
        return_reference_var_names
            Whether to return only the names of the reference's genes.
        inplace
            Whether to change ``adata`` rather than a copy.

        Returns
        -------
        The cells, or ``None`` if ``adata`` is changed in place, which is the default.

        Raises
        ------
        ValueError
            If gene names are not unique, none is one of the reference's, the reference can't be
            loaded, or file-backed cells would be changed in place. ``adata`` is left unchanged.
        """
        reference = cls._loaded(reference_model)
        if not return_reference_var_names:
            check_anndata(adata)
            check_not_lazy(adata)
            check_unique_genes(adata)
            if inplace:
                check_not_backed(adata, "prepare_query_anndata(inplace=True)")
            else:
                # Without genes to add, scvi-tools changes the cells even if it should not.
                adata = loaded(adata).copy()
        return super().prepare_query_anndata(adata, reference, return_reference_var_names, inplace)

    @classmethod
    def prepare_query_mudata(
        cls,
        mdata: MuData,
        reference_model: str | Path | Any,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> MuData | dict[str, pd.Index] | None:
        """Give a MuData the genes of a reference, see :meth:`~trvae.TRVAE.prepare_query_anndata`.

        Parameters
        ----------
        mdata
            The cells.
        reference_model, return_reference_var_names, inplace
            See :meth:`prepare_query_anndata`: the reference, and whether to change in place.

        Returns
        -------
        The cells, or ``None`` if ``mdata`` is changed in place, which is the default.

        Raises
        ------
        ValueError
            See :meth:`prepare_query_anndata`: genes that do not fit, or cells in files. ``mdata``
            is left unchanged.
        """
        reference = cls._loaded(reference_model)
        if not isinstance(mdata, MuData):
            raise ValueError(f"expected a MuData, got a {type(mdata).__name__}.")
        check_not_backed(mdata, "prepare_query_mudata")
        # MuData draws random names for temporary columns.
        with seeded(0):
            if not return_reference_var_names:
                check_unique_genes(reference.registered_data.cells_of(mdata))
                mdata = mdata if inplace else mdata.copy()
            return super().prepare_query_mudata(
                mdata, reference, return_reference_var_names, inplace
            )

    @classmethod
    @hinting(MAPPING)
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
            Cells with the columns that the reference was set up with, including new conditions and
            new categories of covariates. They are registered as by :meth:`setup_anndata` or
            :meth:`setup_mudata`. Genes are matched by name; if they differ from the reference's or
            its order, the model has a copy of the cells.
        reference_model
            The trained model, or the folder it is saved in.
        unfrozen
            Whether :meth:`train` changes all weights. By default only those of new conditions and
            categories change, and what the reference predicts stays the same.
        match_reference
            Whether the MMD also compares the query with the reference, of which at most 5,000
            cells are kept with the model. By default only the query's own conditions are compared.
        **kwargs
            Passed to :meth:`scvi.model.base.ArchesMixin.load_query_data`.

        Returns
        -------
        A model of old and new conditions. It has to be trained on ``adata`` if that has any new
        ones.

        Raises
        ------
        ValueError
            If there is no reference model, a column, a gene or a modality is missing, or with
            ``match_reference`` no cells were kept with the reference.
            :meth:`prepare_query_anndata` fills in missing genes.
        RuntimeError
            If the reference is not trained, such as a query with new conditions that was only loaded.

        References
        ----------
        Lotfollahi et al., *Nature Biotechnology* 40, 121 (2022).
        """
        if reference_model is None:
            raise ValueError(
                "Pass reference_model: a trained model, or the folder it is saved in."
            )
        check_data(adata)
        if kwargs.get("inplace_subset_query_vars") and adata is not None:
            check_not_backed(adata, "inplace_subset_query_vars=True")
        reference = cls._loaded(reference_model)
        if not reference.is_trained_:
            raise RuntimeError(
                "The reference is not trained, so there is nothing to map cells onto. Train it first."
            )
        reference_cells = reference._kept_reference_cells() if match_reference else None
        if adata is not None:
            with_genes = reference.registered_data.with_genes(adata)
            adata = adata if kwargs.get("inplace_subset_query_vars") else with_genes
        with undone_on_error(cls, adata):
            if isinstance(adata, MuData):
                model = cls._load_query_mudata(adata, reference, **kwargs)
            else:
                model = super().load_query_data(adata, reference, unfrozen=True, **kwargs)
            model._take_from_reference(reference)
            if reference_cells is not None and adata is not None:
                model._check_shares_labels(reference_cells)
        known_rows = {name: len(weight) for name, weight in reference.module.named_parameters()}
        model.mapping_ = {
            "reference_cells": reference.reference_cells_,
            "n_rows": None if unfrozen else known_rows,
            "matches_reference": match_reference,
        }
        model._prepare_mapped()
        if not unfrozen:
            # A query without anything new needs no training.
            model.is_trained_ = not any(p.requires_grad for p in model.module.parameters())
        return model

    @classmethod
    def _loaded(cls, model: str | Path | Any) -> Any:
        """Return a model as it is; load one from a folder without its cells."""
        return cls.load(model, adata=False) if isinstance(model, str | Path) else model

    @classmethod
    def _load_query_mudata(
        cls, mdata: MuData, reference: Any, inplace_subset_query_vars: bool = False, **kwargs
    ) -> Any:
        """Load a MuData; scvi-tools refuses one with modalities that the model does not use."""
        if inplace_subset_query_vars:
            raise ValueError("inplace_subset_query_vars=True needs an AnnData, got a MuData.")
        known = reference.registered_data
        matrix = get_matrix(known.cells_of(mdata), known.layer)
        reference._check_values(matrix, name_of_matrix(known.layer))
        cls.setup_mudata(
            mdata,
            source_registry=reference.registry,
            extend_categories=True,
            **reference.registry["setup_args"],
        )
        manager = latest_manager(cls, mdata)
        model = super().load_query_data(
            None, reference, registry=manager.registry, unfrozen=True, **kwargs
        )
        adopt(model, mdata, manager)
        return model

    def _take_from_reference(self, reference: Any) -> None:
        """Take over what a reference has learnt from its cells besides the weights."""
        self.reference_cells_ = reference.reference_cells_

    def _check_shares_labels(self, reference_cells: dict[str, np.ndarray]) -> None:
        if not self.module.mmd_within_labels:
            return
        labels = self.registered_data.labels
        own = np.unique(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY))
        known = np.unique(reference_cells["label"])
        if not np.isin(own, known).any():
            raise ValueError(
                "match_reference=True compares cells of the same label, but the query's labels "
                f"({join_names(labels[own])}) are not among the reference's: "
                f"{join_names(labels[known])}."
            )

    def _prepare_mapped(self) -> None:
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
