"""ImageTRVAE, the model of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from anndata import AnnData
from scvi.utils import setup_anndata_dsp

from trvae._utils._arguments import (
    check_choice,
    check_positive_integer,
    check_positive_integers,
    is_list_of,
    is_positive_integer,
)
from trvae._utils._matrices import dense
from trvae.counterfactual._residual import expected_grey
from trvae.data._checks import (
    cell_positions,
    check_anndata,
    get_matrix,
    is_list_of_conditions,
    name_of_matrix,
    value_range,
)
from trvae.model._base import BaseTRVAE
from trvae.module._images import ImageTRVAEModule, PixelLikelihood
from trvae.module._mmd import BANDWIDTHS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from trvae.counterfactual._residual import Estimate
    from trvae.model._transfer import Minibatch
    from trvae.module._base import MMDLayer


# White, of pixels that are integers and of those that are not.
_WHITE_OF_INTEGERS, _WHITE_OF_FLOATS = 255.0, 1.0


_N_FOR_MEAN_COLOUR = 1_000


class ImageTRVAE(BaseTRVAE):
    """Convolutional transfer variational autoencoder of images.

    A row of the AnnData is an image. Everything else is as in :class:`~trvae.TRVAE`: train on
    images of several conditions, such as strokes thin and thick, and see how an image would look
    under another one, also where that kind of image was never seen so.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model in place of ``adata``.
    n_latent
        Channels of the latent representation, a map that is smaller than the image by a factor of
        two for each of ``channels``. So a place of the image is represented in its own place, and
        what was learnt of strokes holds wherever they are.
    channels
        Channels of the encoder's convolutions; the decoder has them in reverse. The default suits
        28 x 28 pixels; for 64 x 64, take ``(32, 64, 128)``.
    pixel_likelihood
        One of:

        * ``"bernoulli"`` - a grey value is the probability of a pixel to be white
        * ``"normal"`` - around the decoded value, with one standard deviation for all pixels;
          training starts at the images' mean colour
    mmd_weight, mmd_within_labels, mmd_bandwidths
        As in :class:`~trvae.TRVAE`.
    mmd_layer
        As in :class:`~trvae.TRVAE`. The condition enters the first layer of the decoder, as in the
        paper. By default what is matched is what comes before, the latent representation:
        activations that were the same under all conditions could not tell the later layers which
        one to draw.
    seed
        As in :class:`~trvae.TRVAE`.

    Raises
    ------
    ValueError
        If an argument is not one of those allowed, or pixels are neither integers from 0 to 255
        nor numbers from 0 to 1.

    Examples
    --------
    >>> adata = trvae.datasets.stroke_digits()
    >>> held_out = (adata.obs["digit"] == "3") & (adata.obs["condition"] == "thick")
    >>> train = adata[~held_out].copy()
    >>> trvae.ImageTRVAE.setup_anndata(
    ...     train,
    ...     condition_key="condition",
    ...     labels_key="digit",
    ...     image_shape=adata.uns["image_shape"],
    ... )
    >>> model = trvae.ImageTRVAE(train)
    >>> model.train()
    >>> threes = train[(train.obs["digit"] == "3") & (train.obs["condition"] == "normal")]
    >>> thick = model.get_transferred_images(threes, target_condition="thick")

    References
    ----------
    Lotfollahi, Naghipourfar, Theis & Wolf, *Bioinformatics* 36, i610 (2020), section 3.1.
    """

    _CELLS, _GENES = "images", "pixels"
    _module_cls = ImageTRVAEModule
    # With a constant rate, what is drawn changes from minibatch to minibatch up to the last.
    _default_plan_kwargs = {"lr": 4e-3, "lr_schedule": "cosine"}

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        *,
        n_latent: int = 4,
        channels: Sequence[int] = (16, 32),
        pixel_likelihood: PixelLikelihood = "bernoulli",
        mmd_weight: float = 300.0,
        mmd_layer: MMDLayer = "latent",
        mmd_within_labels: bool | None = None,
        mmd_bandwidths: Sequence[float] = BANDWIDTHS,
        seed: int | None = None,
    ):
        check_choice("pixel_likelihood", pixel_likelihood, get_args(PixelLikelihood))
        check_positive_integer("n_latent", n_latent)
        check_positive_integers("channels", channels)
        super().__init__(
            adata,
            registry,
            mmd_weight=mmd_weight,
            mmd_layer=mmd_layer,
            mmd_within_labels=mmd_within_labels,
            mmd_bandwidths=mmd_bandwidths,
            seed=seed,
        )
        self._make_module(
            image_shape=self.image_shape,
            n_latent=n_latent,
            channels=tuple(channels),
            pixel_likelihood=pixel_likelihood,
        )
        has_images = self.adata is not None and self.minified_data_type is None
        if pixel_likelihood == "normal" and has_images:
            self._start_at_mean_colour()
        self._model_summary_string = self._summary(
            image_shape=self.image_shape,
            pixel_likelihood=pixel_likelihood,
            n_latent=n_latent,
            channels=tuple(channels),
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        condition_key: str,
        image_shape: Sequence[int],
        layer: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs,
    ) -> None:
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
        condition_key
            Key in ``adata.obs`` of the conditions between which images are transferred.
        image_shape
            Height, width and number of channels (1 if left out): each row of the matrix is such
            an image, its pixels row by row, with a pixel's channels side by side.
        %(param_layer)s
        %(param_labels_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s

        Raises
        ------
        ValueError
            As in :meth:`trvae.TRVAE.setup_anndata`, or if the rows are not of that shape.
        """
        check_anndata(adata)
        image_shape = _checked_shape(image_shape, adata.n_vars)
        cls._register(adata, cls._get_setup_method_args(**locals()), **kwargs)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels."""
        return self._setup_args["image_shape"]

    @classmethod
    def load(cls, dir_path: str | Path, adata: Any = None, *args, **kwargs) -> Any:
        """Load a saved model.

        Parameters
        ----------
        dir_path, *args, **kwargs
            As in :meth:`trvae.TRVAE.load`.
        adata
            As in :meth:`trvae.TRVAE.load`; images are to be as in training.

        Returns
        -------
        The model as it was saved.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.load`, or if images have another shape or other pixels than in
            training.
        """
        model = super().load(dir_path, adata, *args, **kwargs)
        model._check_is_as_in_training(adata)
        return model

    @classmethod
    def load_query_data(cls, adata: AnnData | None = None, *args, **kwargs) -> Any:
        """Map images of new conditions onto a trained reference.

        Parameters
        ----------
        adata
            As in :meth:`trvae.TRVAE.load_query_data`; images are to be as in training.
        *args, **kwargs
            As in :meth:`trvae.TRVAE.load_query_data`.

        Returns
        -------
        As :meth:`trvae.TRVAE.load_query_data`.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.load_query_data`, or if images have another shape or other pixels
            than in training.
        """
        model = super().load_query_data(adata, *args, **kwargs)
        model._check_is_as_in_training(adata)
        return model

    @torch.no_grad()
    def _start_at_mean_colour(self) -> None:
        # Else all weights first move together, to make everything darker or brighter, and many
        # rectified units never come back from that.
        n_images = self.adata.n_obs
        some = np.linspace(0, n_images - 1, min(n_images, _N_FOR_MEAN_COLOUR), dtype=int).tolist()
        colour = self.get_images(indices=some).mean((0, 1, 2)) / self.module.white.item()
        self.module.decoder.logits.bias.copy_(torch.from_numpy(colour))

    def _check_is_as_in_training(self, adata: Any) -> None:
        """Check what has come with weights of another model, those of its white pixels too."""
        if isinstance(adata, AnnData) and self.minified_data_type is None:
            self._check_values(
                get_matrix(self._cells_of(adata), self._layer), name_of_matrix(self._layer)
            )

    def _cells_of(self, data: AnnData) -> AnnData:
        images = super()._cells_of(data)
        if images.n_vars != math.prod(self.image_shape):
            # Whatever their names: columns are numbered alike in images of any shape.
            raise ValueError(
                f"adata has images of {images.n_vars} values, but the model is of images of "
                f"{' x '.join(map(str, self.image_shape))} (height x width x channels)."
            )
        return images

    def _check_own_data(self) -> None:
        matrix, where = get_matrix(self.adata, self._layer), name_of_matrix(self._layer)
        is_integer = matrix.dtype.kind in "iu"
        self.module.white.fill_(_WHITE_OF_INTEGERS if is_integer else _WHITE_OF_FLOATS)
        super()._check_own_data()
        if is_integer and value_range(matrix, where)[1] <= 1:
            raise ValueError(
                f"{where} has no integers but 0 and 1, of which 255 would be white. Convert them: "
                f"{where}.astype('float32')."
            )

    def _check_values(self, values: Any, where: str) -> None:
        low, high = value_range(values, where)
        white = self.module.white.item()
        # Integers can all be 0 and 1.
        scale_differs = white == _WHITE_OF_INTEGERS and values.dtype.kind == "f" and high <= 1
        if low < 0 or high > white or scale_differs:
            raise ValueError(
                f"{where} has pixels from {low:g} to {high:g}, but the model is of pixels from 0 to "
                f"{white:g}. Give integers from 0 to 255, or other numbers from 0 to 1, as they "
                "were in training."
            )

    # -------------------------------------------------------------------- transfer

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
            As in :meth:`trvae.TRVAE.transfer`.
        estimate
            * ``"counterfactual"``: of this very image. Black and white pixels change as rarely as
              what is decoded allows; pixels of a normal likelihood by as much as that changes.
            * ``"decoded"``: what the decoder gives for the target condition (the paper's).

        Returns
        -------
        As :meth:`trvae.TRVAE.transfer`, of the registered kind: integers from 0 to 255, or
        numbers from 0 to 1.

        Raises
        ------
        ValueError, OSError, RuntimeError
            As :meth:`trvae.TRVAE.transfer`.
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
        indices
            Positions of the images, or a mask of them. By default all.

        Returns
        -------
        ``n_images x height x width x n_channels``.

        Raises
        ------
        ValueError
            If there are no such images.
        """
        adata = self._own_cells() if adata is None else adata
        positions = cell_positions(indices, adata.n_obs, cells=self._CELLS)
        pixels = dense(get_matrix(adata[positions, self._var_names], self._layer))
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
            As in :meth:`transfer`.

        Returns
        -------
        ``n_images x height x width x n_channels``, of the registered kind. Under a list of
        conditions, ``n_conditions x n_images x height x width x n_channels``.

        Raises
        ------
        ValueError, RuntimeError
            As :meth:`transfer`.
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
        """Images on the way from their own condition to another one.

        What the condition adds to the first layer of the decoder goes from that of the one to that
        of the other in equal steps.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            As in :meth:`transfer`, with one target condition.
        n_steps
            Number of images on the way, at least 2: the first is decoded under its own condition,
            the last under the target.

        Returns
        -------
        ``n_steps x n_images x height x width x n_channels``, of the registered kind.

        Raises
        ------
        ValueError
            As :meth:`transfer`, or if ``n_steps`` is below 2.
        RuntimeError
            If the model is not trained.
        """
        check_positive_integer("n_steps", n_steps)
        if n_steps < 2:
            raise ValueError("n_steps=1 leaves no way to go: take at least 2.")
        selection = self._select(
            adata, target_condition, source_condition, indices, "decoded", seed=0
        )
        code = self.conditions.index(target_condition)
        shares = torch.linspace(0, 1, n_steps)
        minibatches = []
        for tensors, inferred in self._encode(selection, batch_size):
            inputs = self.module._get_generative_input(tensors, inferred)
            px = self.module.interpolate(**inputs, transform_batch=code, shares=shares)
            decoded = px.mean.cpu().numpy().clip(0, self.module.white.item())
            minibatches.append(self._as_registered(decoded))
        images = np.concatenate(minibatches, axis=1)
        return images.reshape(*images.shape[:2], *self.image_shape)

    def _expect(self, minibatch: Minibatch, estimate: Estimate) -> np.ndarray:
        white = self.module.white.item()
        if estimate == "counterfactual" and self.module.pixel_likelihood == "bernoulli":
            decoded = minibatch.source / white, minibatch.target / white
            return white * expected_grey(minibatch.x / white, *decoded)
        return super()._expect(minibatch, estimate).clip(0, white)

    def _draw_values(
        self, minibatch: Minibatch, estimate: Estimate, keys: np.ndarray, seed: int
    ) -> np.ndarray:
        # There is no noise to add, as all pixels have the same spread.
        return self._expect(minibatch, estimate)

    def _as_registered(self, predicted: np.ndarray) -> np.ndarray:
        if self.module.white.item() == _WHITE_OF_INTEGERS:
            return predicted.round().astype(np.uint8)
        return super()._as_registered(predicted)


def _checked_shape(image_shape: Sequence[int], n_vars: int) -> tuple[int, ...]:
    if is_list_of(image_shape, is_positive_integer):
        shape = tuple(map(int, image_shape))
        shape = (*shape, 1) if len(shape) == 2 else shape
        if len(shape) == 3 and math.prod(shape) == n_vars:
            return shape
    raise ValueError(
        f"image_shape={image_shape!r} is not (height, width, channels) of images with {n_vars} "
        "values, which is how many columns the AnnData has."
    )
