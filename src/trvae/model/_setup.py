"""Registering the cells that a model of expression is set up with."""

from __future__ import annotations

from typing import Any

from anndata import AnnData
from mudata import MuData
from scvi.data.fields import MuDataWrapper
from scvi.utils import setup_anndata_dsp

from trvae._utils._choices import DEFAULT_MODALITY
from trvae.data._checks import check_not_view
from trvae.data._fields import InOrderDataManager, fields_of
from trvae.data._mudata import anndata_arguments, cells_of
from trvae.data._registration import check_setup
from trvae.model._hints import SETUP, hinting

# For type checkers, scvi-tools' base class has what is missing here.
_BaseModelClass: Any = object


class SetupMixin(_BaseModelClass):
    """Set up an AnnData or a MuData."""

    @classmethod
    @setup_anndata_dsp.dedent
    @hinting(SETUP)
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        condition_key: str,
        layer: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        library_key: str | None = None,
        **kwargs,
    ) -> None:
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
        condition_key
            Key in ``adata.obs`` of the conditions between which cells are transferred.
        %(param_layer)s
        %(param_labels_key)s
        %(param_size_factor_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        library_key
            Key in ``adata.obs`` of each cell's library size over all measured genes. Use it if the
            genes are a selection, such as highly variable genes, whose share of all counts can
            differ between conditions; counterfactuals account for that difference. Only training
            cells need this column.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        ValueError
            If a column or one of its values is missing, there are fewer than two conditions, gene
            names are not unique, or ``adata`` is a view or lazy. ``adata`` is left unchanged.

        Warns
        -----
        UserWarning
            If no label occurs under more than one condition, so nothing is matched within labels; or if
            fewer than three do, so errors of predictions can't be known.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if isinstance(adata, MuData):
            raise ValueError("expected an AnnData, got a MuData. Use setup_mudata.")
        cls._register(adata, setup_method_args, **kwargs)

    @classmethod
    @setup_anndata_dsp.dedent
    @hinting(SETUP)
    def setup_mudata(
        cls,
        mdata: MuData,
        *,
        condition_key: str,
        rna_layer: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        library_key: str | None = None,
        modalities: dict[str, str] | None = None,
        **kwargs,
    ) -> None:
        """%(summary_mdata)s.

        The model uses one modality. Transferred cells keep the others as they are.

        Parameters
        ----------
        %(param_mdata)s
        condition_key, labels_key, size_factor_key, library_key
            See :meth:`setup_anndata`: columns of ``mdata.obs``, or of the ``obs`` of a modality
            that ``modalities`` names.
        rna_layer
            Layer of the modality with the expression, by default its ``X``.
        categorical_covariate_keys, continuous_covariate_keys
            See :meth:`setup_anndata`: lists of such columns.
        modalities
            Modality of each argument that is not taken from ``mdata.obs``. The one with the
            expression, ``"rna_layer"``, is ``"rna"`` by default.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        ValueError
            As :meth:`setup_anndata`, if a modality is missing or has other cells, or a column is
            not where it should be. ``mdata`` is left unchanged.

        Examples
        --------
        >>> trvae.TRVAE.setup_mudata(
        ...     mdata,
        ...     condition_key="condition",
        ...     rna_layer="counts",
        ...     modalities={"rna_layer": "rna", "condition_key": "rna"},
        ... )
        >>> model = trvae.TRVAE(mdata)
        """
        modalities = {"rna_layer": DEFAULT_MODALITY} | (modalities or {})
        setup_method_args = cls._get_setup_method_args(**locals())
        if not isinstance(mdata, MuData):
            raise ValueError(f"expected a MuData, got a {type(mdata).__name__}.")
        check_not_view(mdata, "mdata")
        modality_of = cls._create_modalities_attr_dict(modalities, setup_method_args)
        setup_args = setup_method_args["setup_args"]
        cells = cells_of(mdata, setup_args)
        arguments = anndata_arguments(setup_args)
        check_setup(cells, arguments, kwargs)
        fields = [
            MuDataWrapper(spec.field)(
                spec.registry_key, spec.key, mod_key=modality_of[spec.argument], **spec.options
            )
            for spec in fields_of(arguments)
        ]
        manager = InOrderDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)
