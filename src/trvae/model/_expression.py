"""scvi-tools' questions about expression, seeded and with genes in the order of the cells' AnnData."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.model.base import RNASeqMixin

from trvae._scvi import LATENT_POSTERIOR, minify_type
from trvae._utils._arguments import check_arguments, choice, join_names
from trvae.data._cells import loaded
from trvae.data._checks import cell_positions, check_obs_column
from trvae.model._seeds import overriding

if TYPE_CHECKING:
    from anndata import AnnData

    from trvae.model._interface import Model
else:
    Model = object


class ExpressionMixin(RNASeqMixin, Model):
    """Decoded expression, its likelihood, and differential expression."""

    @overriding(RNASeqMixin.posterior_predictive_sample)
    def posterior_predictive_sample(self, adata: AnnData | None = None, *args, **kwargs) -> Any:
        """Genes are in the order of ``adata``."""
        inherited = super().posterior_predictive_sample
        gene_list = (
            inspect.signature(inherited).bind(adata, *args, **kwargs).arguments.get("gene_list")
        )
        if gene_list is not None:
            self.registered_data.gene_positions(gene_list)
        drawn = inherited(adata, *args, **kwargs)
        if adata is None:
            return drawn
        return drawn[:, self.registered_data.gene_order(adata, gene_list)]

    @overriding(RNASeqMixin.get_feature_correlation_matrix)
    def get_feature_correlation_matrix(self, *args, **kwargs) -> pd.DataFrame:
        """Only for the negative binomial and its zero-inflated form."""
        self._check_has_dispersion("get_feature_correlation_matrix")
        return super().get_feature_correlation_matrix(*args, **kwargs)

    @overriding(RNASeqMixin.get_likelihood_parameters)
    def get_likelihood_parameters(self, *args, **kwargs) -> dict[str, np.ndarray]:
        """Parameters are at the posterior mean of ``z`` unless draws are asked for.

        Genes are in the order of ``adata``. Only for the negative binomial and its zero-inflated
        form.
        """
        self._check_has_dispersion("get_likelihood_parameters")
        inherited = super().get_likelihood_parameters
        adata = inspect.signature(inherited).bind(*args, **kwargs).arguments.get("adata")
        with self.module.posterior_mean():
            parameters = inherited(*args, **kwargs)
        if adata is None:
            return parameters
        order = self.registered_data.gene_order(adata)
        return {name: values[..., order] for name, values in parameters.items()}

    @overriding(RNASeqMixin.get_normalized_expression)
    def get_normalized_expression(self, *args, **kwargs) -> pd.DataFrame | np.ndarray:
        """Expression is at the posterior mean of ``z`` unless draws are asked for.

        Genes are in the order of ``adata``. Log-normalised values have no ``library_size``, and
        importance weights are not supported. With ``n_samples_overall``, rows are draws of random
        cells and have no names.
        """
        self._check_if_trained(warn=False)
        inherited = super().get_normalized_expression
        given = inspect.signature(inherited).bind(*args, **kwargs)
        given.apply_defaults()
        arguments = given.arguments
        conditions = arguments["transform_batch"]
        for condition in conditions if isinstance(conditions, list | tuple) else [conditions]:
            if condition is not None:
                self.registered_data.condition_code(condition, "transform_batch")
        check_arguments(arguments, {"weights": choice(None, "uniform")})
        if not self.module.is_count_model and arguments["library_size"] != 1:
            raise ValueError(
                "gene_likelihood='normal' is for log-normalised values, which have no "
                f"library_size, got {arguments['library_size']!r}."
            )
        adata, gene_list = arguments["adata"], arguments["gene_list"]
        if gene_list is not None:
            self.registered_data.gene_positions(gene_list)
        overall = arguments["n_samples_overall"] is not None
        with self.module.posterior_mean(arguments["n_samples"] == 1 and not overall):
            if overall and not arguments["return_numpy"]:
                # scvi-tools would give the draws the names of all cells.
                arguments["return_numpy"] = True
                genes = self.registered_data.var_names
                genes = genes if gene_list is None else genes[np.isin(genes, gene_list)]
                expression = pd.DataFrame(inherited(*given.args, **given.kwargs), columns=genes)
            else:
                expression = inherited(*args, **kwargs)
        if adata is None:
            return expression
        order = self.registered_data.gene_order(adata, gene_list)
        if isinstance(expression, pd.DataFrame):
            return expression.iloc[:, order]
        return expression[..., order]

    @overriding(RNASeqMixin.differential_expression)
    def differential_expression(self, *args, **kwargs) -> pd.DataFrame:
        """For log-normalised values, the change is their difference, in units of log2.

        File-backed cells are read into memory.
        """
        self._check_if_trained(warn=False)
        given = inspect.signature(super().differential_expression).bind(*args, **kwargs)
        self._check_groups(**given.arguments)
        cells = given.arguments.get("adata")
        if minify_type(self.adata if cells is None else cells) == LATENT_POSTERIOR:
            raise ValueError(
                "differential_expression needs the cells' own expression, which this minified "
                "AnnData does not have. Pass the full AnnData."
            )
        if not self.module.is_count_model:
            kwargs.setdefault("change_fn", _log2_fold_change_of_log_values)
            kwargs.setdefault("pseudocounts", 0.0)
        on_disk = self.registered_data.cells_of(self.adata if cells is None else cells)
        if (in_memory := loaded(on_disk)) is not on_disk:
            args, kwargs = args[1:], kwargs | {"adata": in_memory}
        return super().differential_expression(*args, **kwargs)

    def _check_groups(
        self, adata=None, groupby=None, group1=None, group2=None, idx1=None, idx2=None, **_
    ) -> None:
        """Check which cells are to be compared; queries in ``idx`` are left to pandas."""
        adata = self.registered_data.cells_of(self.adata if adata is None else adata)
        for argument, idx in {"idx1": idx1, "idx2": idx2}.items():
            if idx is not None and not isinstance(idx, str):
                cell_positions(idx, adata.n_obs, argument)
        if idx1 is not None:
            return
        groups = check_obs_column(adata, "groupby", groupby, complete=False).unique()
        for argument, names in {"group1": group1, "group2": group2}.items():
            for name in [names] if names is None or pd.api.types.is_scalar(names) else names:
                if name is not None and name not in groups:
                    raise ValueError(
                        f"{argument} {name!r} is not in adata.obs[{groupby!r}]: "
                        f"{join_names(groups)}."
                    )

    def _check_has_dispersion(self, method: str) -> None:
        likelihood = self.module.gene_likelihood
        if likelihood not in ("nb", "zinb"):
            raise ValueError(
                f"{method} needs gene_likelihood 'nb' or 'zinb', but the model has {likelihood!r}."
            )


def _log2_fold_change_of_log_values(values1: np.ndarray, values2: np.ndarray, pseudocounts: float):
    """Difference of natural logarithms, in units of log2; scvi-tools passes three arguments."""
    return (values1 - values2) / np.log(2)
