"""How cells are represented: latent space, first decoder layer, and the losses of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from anndata import AnnData
from scvi.model.base import VAEMixin

from trvae._scvi import LATENT_POSTERIOR, adopt, latest_manager
from trvae.data._cells import loaded, unregistered
from trvae.model._seeds import with_seed
from trvae.module._base import FIRST_LAYER_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.model._interface import Model
else:
    Model = object


class RepresentationMixin(VAEMixin, Model):
    """Represent cells, and keep no more of them than that."""

    @torch.inference_mode()
    def get_mmd_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Activations of the first decoder layer (of the base, if the decoder is additive).

        The MMD matches the conditions there, unless the model has ``mmd_layer="latent"``.

        Parameters
        ----------
        adata
            Cells, by default those that the model was trained on. Genes are matched by name.
        indices
            Positions of the cells to use, or a mask. By default all.
        batch_size
            Minibatch size, by default ``scvi.settings.batch_size``; on a GPU that holds the cells, as
            many as suit it.

        Returns
        -------
        ``n_cells x n_features``, at the posterior mean of ``z``; ``n_features`` is the last of
        ``hidden_sizes``, or, for :class:`ImageTRVAE`, height times width times channels of the first
        map that is decoded.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the cells don't fit the model.

        References
        ----------
        Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size)
        with self.module.posterior_mean():
            outputs = [self.module(tensors, compute_loss=False)[1] for tensors in loader]
        return np.concatenate([output[FIRST_LAYER_KEY].cpu().numpy() for output in outputs])

    get_latent_representation = with_seed(VAEMixin.get_latent_representation)
    get_elbo = with_seed(VAEMixin.get_elbo)
    get_marginal_ll = with_seed(VAEMixin.get_marginal_ll)
    get_reconstruction_error = with_seed(VAEMixin.get_reconstruction_error)

    def minify_adata(
        self,
        minified_data_type: str = LATENT_POSTERIOR,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Keep only the latent representation of the model's cells.

        The model's AnnData is replaced by a copy in memory without expression; if it is
        file-backed, it is read once. What is decoded from the
        latent representation stays the same; what needs expression raises an error unless other
        cells are passed. The model can't be trained further.

        Parameters
        ----------
        minified_data_type
            ``"latent_posterior_parameters"``, or ``"latent_posterior_parameters_with_counts"`` to
            keep the expression, too.
        use_latent_qzm_key, use_latent_qzv_key
            Keys in ``adata.obsm`` of the mean and the variance of ``z``, as returned by
            ``get_latent_representation(return_dist=True)``.

        Raises
        ------
        ValueError
            If the model has no AnnData, or a key is missing.
        """
        if not isinstance(self.adata, AnnData):
            raise ValueError("only an AnnData can be minified, and the model has none.")
        keys = {"use_latent_qzm_key": use_latent_qzm_key, "use_latent_qzv_key": use_latent_qzv_key}
        for argument, key in keys.items():
            if key not in self.adata.obsm:
                raise ValueError(
                    f"{argument} {key!r} is not in model.adata.obsm. Store there what "
                    "model.get_latent_representation(return_dist=True) returns."
                )
        if (cells := loaded(self.adata)) is not self.adata:
            type(self).setup_anndata(
                unregistered(cells),
                source_registry=self.registry,
                **self.registered_data.arguments,
            )
            adopt(self, cells, latest_manager(type(self), cells))
        super().minify_adata(minified_data_type, use_latent_qzm_key, use_latent_qzv_key)
