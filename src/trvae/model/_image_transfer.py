"""Questions about images across conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trvae._scvi import LATENT_POSTERIOR, minify_type
from trvae._utils._arguments import AT_LEAST_2, check_arguments
from trvae._utils._matrices import dense
from trvae.counterfactual._residual import expected_grey
from trvae.data._cells import loaded, positions_of_genes
from trvae.data._checks import cell_positions, get_matrix, is_list_of_conditions
from trvae.model._base import BaseTRVAE
from trvae.model._decoding import encode
from trvae.model._selection import own_data, select

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from trvae._utils._choices import Estimate
    from trvae.model._decoding import Minibatch
    from trvae.model._selection import Selection

WHITE_OF_INTEGERS = 255.0
"""Value of a white pixel if pixels are integers; otherwise it is 1."""


class BaseImageModel(BaseTRVAE):
    """A model of images: transfer, and images as arrays."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels."""
        return self.registered_data.arguments["image_shape"]

    def transfer(
        self,
        adata: AnnData | None = None,
        target_condition: Any = None,
        *,
        estimate: Estimate = "counterfactual",
        **kwargs,
    ) -> AnnData | Path:
        """Predict images as they would be under another condition.

        Parameters
        ----------
        adata, target_condition, **kwargs
            See :meth:`trvae.TRVAE.transfer`: images and conditions.
        estimate
            * ``"counterfactual"``: this very image. Black and white pixels change as rarely as the
              decoded images allow; pixels of a normal likelihood change by as much as the decoded
              images do.
            * ``"decoded"``: what the decoder gives for the target condition (the paper's
              prediction).

        Returns
        -------
        See :meth:`trvae.TRVAE.transfer`: an AnnData of integers from 0 to 255 or numbers from 0 to
        1, as registered.

        Raises
        ------
        ValueError, OSError, RuntimeError
            See :meth:`trvae.TRVAE.transfer`: a condition is unknown, images do not fit the model,
            ``out`` can't be written, or the model is not trained.
        """
        return super().transfer(adata, target_condition, estimate=estimate, **kwargs)

    def get_images(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Images of an AnnData as they are.

        Parameters
        ----------
        adata
            Images, by default those that the model was trained on. Columns are matched by name.
            File-backed images are read into memory.
        indices
            Positions of the images, or a mask. By default all.

        Returns
        -------
        ``n_images x height x width x n_channels``.

        Raises
        ------
        ValueError
            If there are no such images, or a minified AnnData has none.
        """
        known = self.registered_data
        adata = loaded(known.cells_of(own_data(self) if adata is None else adata))
        if minify_type(adata) == LATENT_POSTERIOR:
            raise ValueError("the minified AnnData has no images. Pass one that has.")
        positions = cell_positions(indices, adata.n_obs, cells=known.cells)
        order = positions_of_genes(adata, known.var_names, known.genes)
        pixels = dense(get_matrix(adata[positions, order], known.layer))
        return pixels.reshape(-1, *self.image_shape)

    def get_transferred_images(
        self,
        adata: AnnData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        estimate: Estimate = "counterfactual",
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Images as they would be under another condition.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, estimate, batch_size
            See :meth:`transfer`: images and conditions.

        Returns
        -------
        ``n_images x height x width x n_channels``, of the registered type. For a list of
        conditions, ``n_conditions x n_images x height x width x n_channels``.

        Raises
        ------
        ValueError, RuntimeError
            See :meth:`transfer`: a condition is unknown, images do not fit the model, or the model
            is not trained.
        """
        predicted = self.transfer(
            adata,
            target_condition,
            source_condition=source_condition,
            indices=indices,
            estimate=estimate,
            batch_size=batch_size,
        )
        images = self.get_images(predicted)
        if is_list_of_conditions(target_condition):
            return images.reshape(len(target_condition), -1, *self.image_shape)
        return images

    @torch.inference_mode()
    def get_interpolated_images(
        self,
        adata: AnnData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        n_steps: int = 7,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Images between their own condition and another one.

        What the condition adds to the decoder's first layer is interpolated in equal steps.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            See :meth:`transfer`: images and conditions, with one target condition.
        n_steps
            Number of images, at least 2: the first is decoded under the image's own condition, the
            last under the target.

        Returns
        -------
        ``n_steps x n_images x height x width x n_channels``, of the registered type.

        Raises
        ------
        ValueError
            If a condition is unknown or images do not fit the model (see :meth:`transfer`), or if
            ``n_steps`` is below 2.
        RuntimeError
            If the model is not trained.
        """
        check_arguments(locals(), {"n_steps": AT_LEAST_2})
        selection = select(self, adata, target_condition, source_condition, indices, "decoded", 0)
        code = self.conditions.index(target_condition)
        shares = torch.linspace(0, 1, n_steps)
        minibatches = []
        for tensors, inferred in encode(self, selection, batch_size):
            inputs = self.module._get_generative_input(tensors, inferred)
            px = self.module.interpolate(**inputs, transform_batch=code, shares=shares)
            decoded = px.mean.clamp(0, self.module.white.item())
            minibatches.append(self._as_registered(decoded).cpu().numpy())
        images = np.concatenate(minibatches, axis=1)
        return images.reshape(*images.shape[:2], *self.image_shape)

    def _default_batch_size(self) -> None:
        # Hidden layers of images are many times as large as the images.
        return None

    def _expected(self, minibatch: Minibatch, estimate: Estimate) -> torch.Tensor:
        white = self.module.white.item()
        if estimate == "counterfactual" and self.module.pixel_likelihood == "bernoulli":
            decoded = minibatch.source / white, minibatch.target / white
            return white * expected_grey(minibatch.x / white, *decoded)
        return super()._expected(minibatch, estimate).clamp(0, white)

    def _drawn(self, minibatch: Minibatch, selection: Selection) -> torch.Tensor:
        # All pixels have the same spread, so there is no noise to add.
        return self._expected(minibatch, selection.estimate)

    def _as_registered(self, predicted: torch.Tensor) -> torch.Tensor:
        if self.module.white.item() == WHITE_OF_INTEGERS:
            return predicted.round().to(torch.uint8)
        return super()._as_registered(predicted)
