"""ImageTRVAE, the model of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData
from scvi.utils import setup_anndata_dsp

from trvae._scvi import undone_on_error
from trvae._utils._arguments import (
    POSITIVE_INTEGER,
    check_arguments,
    choice_of,
    list_of,
)
from trvae.data._checks import (
    check_anndata,
    get_matrix,
    name_of_matrix,
    value_range,
)
from trvae.model._hints import MODEL, SETUP, hinting
from trvae.model._image_transfer import WHITE_OF_INTEGERS, BaseImageModel
from trvae.module._images import ImageTRVAEModule, PixelLikelihood
from trvae.module._mmd import BANDWIDTHS
from trvae.train._defaults import TrainingDefaults

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trvae.module._base import MMDLayer
    from trvae.module._mmd import MMDReduction

_N_FOR_MEAN_COLOUR = 1_000
ARGUMENTS = {
    "pixel_likelihood": choice_of(PixelLikelihood),
    "n_latent": POSITIVE_INTEGER,
    "channels": list_of(POSITIVE_INTEGER),
}


class ImageTRVAE(BaseImageModel):
    """Convolutional transfer variational autoencoder (trVAE) of images.

    Each row of the AnnData is an image. Train on images of several conditions, such as thin and
    thick strokes, and see how an image would look under another condition, even if images of its
    kind were never seen under it. Training, saving, queries and support work as in
    :class:`~trvae.TRVAE`; there is no calibration.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a saved model in place of ``adata``.
    n_latent
        Channels of the latent representation: a map that is half as high and wide as the image for
        each of ``channels``. Each part of the image is represented in its own place, so features
        generalise across positions.
    channels
        Channels of the encoder's convolutions; the decoder has them in reverse. The default suits
        28 x 28 pixels; for 64 x 64, use ``(32, 64, 128)``.
    pixel_likelihood
        One of:

        * ``"bernoulli"`` - a grey value is the probability of a pixel to be white
        * ``"normal"`` - normal around the decoded value, with one standard deviation for all
          pixels; training starts at the images' mean colour
    mmd_weight, mmd_within_labels, mmd_bandwidths
        See :class:`~trvae.TRVAE`: weight, grouping and bandwidths of the MMD.
    mmd_reduction
        ``"sum"`` by default, for which ``mmd_weight`` was chosen; see :class:`~trvae.TRVAE`.
    mmd_layer
        What the MMD matches, see :class:`~trvae.TRVAE`. The condition enters the decoder's first
        layer, as in the paper. By default the latent representation before it is matched: if the
        activations after it were the same under all conditions, later layers could not tell the
        conditions apart.
    seed
        Seed of weights, data split and minibatches. ``None`` uses ``scvi.settings.seed``.

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

    _module_cls = ImageTRVAEModule
    # With a constant rate, predictions keep changing from minibatch to minibatch.
    _training_defaults = TrainingDefaults(576_000, 128, {"lr": 4e-3, "lr_schedule": "cosine"})

    @hinting(MODEL)
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
        mmd_reduction: MMDReduction = "sum",
        seed: int | None = None,
    ):
        check_arguments(locals(), ARGUMENTS)
        super().__init__(
            adata,
            registry,
            mmd_weight=mmd_weight,
            mmd_layer=mmd_layer,
            mmd_within_labels=mmd_within_labels,
            mmd_bandwidths=mmd_bandwidths,
            mmd_reduction=mmd_reduction,
            seed=seed,
        )
        network = {
            "image_shape": self.image_shape,
            "pixel_likelihood": pixel_likelihood,
            "n_latent": n_latent,
            "channels": tuple(channels),
        }
        self._make_module(**network)
        has_images = self.adata is not None and self.minified_data_type is None
        if pixel_likelihood == "normal" and has_images:
            self._start_at_mean_colour()
        self._model_summary_string = self._summary(**network)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @setup_anndata_dsp.dedent
    @hinting(SETUP)
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
            Height, width and number of channels (1 if left out). Each row of the matrix is an
            image of that shape, its pixels row by row, with the channels of a pixel side by side.
        %(param_layer)s
        %(param_labels_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        **kwargs
            See :meth:`trvae.TRVAE.setup_anndata`.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.setup_anndata`, or if the rows don't have that shape.
        """
        check_anndata(adata)
        image_shape = _checked_shape(image_shape, adata.n_vars)
        cls._register(adata, cls._get_setup_method_args(**locals()), **kwargs)

    @classmethod
    def load(cls, dir_path: str | Path, adata: Any = None, *args, **kwargs) -> Any:
        """Load a saved model.

        Parameters
        ----------
        dir_path, *args, **kwargs
            See :meth:`trvae.TRVAE.load`: where the model is saved.
        adata
            Images as in training, see :meth:`trvae.TRVAE.load`.

        Returns
        -------
        The model as it was saved.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.load`, or if the images' shape or pixel values differ from those
            in training.
        """
        with undone_on_error(cls, adata):
            model = super().load(dir_path, adata, *args, **kwargs)
            model._check_pixels_as_in_training(adata)
        return model

    @classmethod
    def load_query_data(cls, adata: AnnData | None = None, *args, **kwargs) -> Any:
        """Map images of new conditions onto a trained reference.

        Parameters
        ----------
        adata
            Images as in training, see :meth:`trvae.TRVAE.load_query_data`.
        *args, **kwargs
            See :meth:`trvae.TRVAE.load_query_data`: the reference, and what is trained.

        Returns
        -------
        A model of old and new conditions.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.load_query_data`, or if the images' shape or pixel values differ
            from those in training.
        """
        with undone_on_error(cls, adata):
            model = super().load_query_data(adata, *args, **kwargs)
            model._check_pixels_as_in_training(adata)
        return model

    @torch.no_grad()
    def _start_at_mean_colour(self) -> None:
        # Otherwise all weights first move together to change the brightness, which many rectified
        # units do not survive.
        n_images = self.summary_stats.n_cells
        sample = np.linspace(
            0, n_images - 1, min(n_images, _N_FOR_MEAN_COLOUR), dtype=int
        ).tolist()
        colour = self.get_images(indices=sample).mean((0, 1, 2)) / self.module.white.item()
        self.module.decoder.logits.bias.copy_(torch.from_numpy(colour))

    def _check_pixels_as_in_training(self, adata: Any) -> None:
        """Check pixels once more: the value of white comes with the loaded weights."""
        if isinstance(adata, AnnData) and self.minified_data_type is None:
            layer = self.registered_data.layer
            images = self.registered_data.cells_of(adata)
            self._check_values(get_matrix(images, layer), name_of_matrix(layer))

    def _check_own_values(self) -> None:
        layer = self.registered_data.layer
        matrix, where = get_matrix(self.adata, layer), name_of_matrix(layer)
        is_integer = matrix.dtype.kind in "iu"
        self.module.white.fill_(WHITE_OF_INTEGERS if is_integer else 1.0)
        super()._check_own_values()
        if is_integer and value_range(matrix, where)[1] <= 1:
            raise ValueError(
                f"{where} has only the integers 0 and 1, but 255 is white. Convert them: "
                f"{where}.astype('float32')."
            )

    def _check_values(self, values: Any, where: str) -> None:
        low, high = value_range(values, where)
        white = self.module.white.item()
        # Integers may all be 0 and 1.
        scale_differs = white == WHITE_OF_INTEGERS and values.dtype.kind == "f" and high <= 1
        if low < 0 or high > white or scale_differs:
            raise ValueError(
                f"{where} has pixels from {low:g} to {high:g}, but the model takes pixels from 0 "
                f"to {white:g}. Pass integers from 0 to 255 or other numbers from 0 to 1, as in "
                "training."
            )


def _checked_shape(image_shape: Any, n_vars: int) -> tuple[int, ...]:
    if list_of(POSITIVE_INTEGER).accepts(image_shape):
        shape = tuple(map(int, image_shape))
        shape = (*shape, 1) if len(shape) == 2 else shape
        if len(shape) == 3 and math.prod(shape) == n_vars:
            return shape
    raise ValueError(
        f"image_shape must be (height, width, channels) with {n_vars} values, as many as adata has "
        f"columns, got {image_shape!r}."
    )
