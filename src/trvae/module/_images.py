"""The network of images and its likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from scvi.module.base import auto_move_data
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from trvae.module._base import BaseTRVAEModule, MMDLayer
from trvae.module._covariates import Covariates, CovariateSizes
from trvae.module._image_layers import ImageDecoder, ImageEncoder, grids
from trvae.module._likelihood import Normal
from trvae.module._mmd import BANDWIDTHS, MMDReduction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch.distributions import Distribution

    from trvae.module._decoders import DecoderOutput


PixelLikelihood = Literal["bernoulli", "normal"]

# Initial log standard deviation of grey values between 0 and 1.
_LOG_SD = -1.5


class GreyBernoulli(torch.distributions.Bernoulli):
    """Bernoulli distribution of pixels; a grey value is the probability of being white.

    Parameters
    ----------
    logits
        ``... x n_pixels``.
    white
        The value of a white pixel, a scalar.
    """

    def __init__(self, logits: torch.Tensor, white: torch.Tensor):
        super().__init__(logits=logits, validate_args=False)
        self.white = white

    @property
    def mean(self) -> torch.Tensor:
        """Grey values, of the shape of ``logits``."""
        return self.white * self.probs

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Expected log-probability of black and white pixels whose mean is ``value``."""
        share = (value / self.white).expand_as(self.logits)
        return -binary_cross_entropy_with_logits(self.logits, share, reduction="none")

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draw black and white pixels."""
        return self.white * super().sample(torch.Size(sample_shape))


class ImageTRVAEModule(BaseTRVAEModule):
    r"""The convolutional network of :class:`~trvae.ImageTRVAE`.

    The loss is that of :class:`~trvae.module.BaseTRVAEModule`. ``z`` is a map of
    ``n_latent`` channels, ``height`` and ``width`` halved by each of the ``channels``, and
    flattened. With the decoder :math:`f` and the grey value :math:`x_p` of a pixel from 0 to 1,
    the likelihood is

    .. math::

        \log p(x_p \mid z, c) = x_p \log \mathrm{sigmoid}(f(z, c)_p)
        + (1 - x_p) \log(1 - \mathrm{sigmoid}(f(z, c)_p))

    for ``"bernoulli"``, and :math:`\mathcal{N}(f(z, c)_p, \sigma^2)` for ``"normal"``.

    Parameters
    ----------
    image_shape
        Height, width and number of channels.
    n_batch
        Number of conditions, which scvi-tools registers as batches.
    n_labels
        Number of labels.
    n_continuous_cov
        Number of continuous covariates.
    n_cats_per_cov
        Number of categories of each categorical covariate.
    n_latent, channels, pixel_likelihood
        See :class:`~trvae.ImageTRVAE`: channels of the latent map and of the convolutions, and
        the likelihood.
    mmd_weight, mmd_layer, mmd_within_labels, mmd_bandwidths, mmd_reduction
        See :class:`~trvae.ImageTRVAE`: weight of the MMD, what it compares and how.

    References
    ----------
    Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 3.1.
    """

    decoder: ImageDecoder
    white: torch.Tensor
    """The value of a white pixel, the largest value: a scalar."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_batch: int,
        n_labels: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        *,
        n_latent: int,
        channels: Sequence[int],
        pixel_likelihood: PixelLikelihood,
        mmd_weight: float,
        mmd_layer: MMDLayer,
        mmd_within_labels: bool,
        mmd_bandwidths: Sequence[float] = BANDWIDTHS,
        mmd_reduction: MMDReduction = "mean",
    ):
        height, width, n_channels = image_shape
        latent_height, latent_width = grids(height, width, len(channels))[-1]
        super().__init__(
            height * width * n_channels,
            n_batch,
            n_labels,
            n_latent=n_latent * latent_height * latent_width,
            mmd_weight=mmd_weight,
            mmd_layer=mmd_layer,
            mmd_within_labels=mmd_within_labels,
            mmd_bandwidths=mmd_bandwidths,
            mmd_reduction=mmd_reduction,
        )
        self.image_shape = image_shape
        # Saved with the weights, for models without images.
        self.register_buffer("white", torch.tensor(1.0))
        self.pixel_likelihood = pixel_likelihood
        sizes = CovariateSizes(n_batch, tuple(n_cats_per_cov or ()), n_continuous_cov)
        self.encoder = ImageEncoder(image_shape, n_latent, channels, sizes)
        self.decoder = ImageDecoder(image_shape, n_latent, channels, sizes)
        if pixel_likelihood == "normal":
            self.log_sd = nn.Parameter(torch.full((1, 1), _LOG_SD))
        # Makes convolutions a fifth faster on CPUs.
        self.to(memory_format=torch.channels_last)

    @property
    def likelihood_setting(self) -> dict[str, str]:
        """Name and value of the argument that chose the likelihood."""
        return {"pixel_likelihood": self.pixel_likelihood}

    def _encode(
        self, x: torch.Tensor, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = (x / self.white).reshape(-1, *self.image_shape).movedim(-1, 1)
        return self.encoder(images, covariates)

    def _likelihood(
        self, decoded: DecoderOutput, log_size: torch.Tensor, condition: torch.Tensor
    ) -> Distribution:
        if self.pixel_likelihood == "bernoulli":
            return GreyBernoulli(decoded.logits, self.white)
        return Normal(self.white * decoded.logits, self.white * self.log_sd.exp())

    @auto_move_data
    def interpolate(
        self,
        z: torch.Tensor,
        library: torch.Tensor,
        batch_index: torch.Tensor,
        transform_batch: int,
        shares: torch.Tensor,
        cont_covs: torch.Tensor | None = None,
        cat_covs: torch.Tensor | None = None,
        size_factor: torch.Tensor | None = None,
    ) -> Distribution:
        """Decode images between two conditions.

        Parameters
        ----------
        z, library, batch_index, cont_covs, cat_covs, size_factor
            See :meth:`generative`: ``n_images`` images and their source condition.
        transform_batch
            Code of the target condition.
        shares
            Positions between source (0) and target (1), ``n_shares``.

        Returns
        -------
        The likelihood, ``n_shares x n_images x n_pixels``.
        """
        source = Covariates.from_columns(batch_index, cat_covs, cont_covs)
        target = source._replace(condition=torch.full_like(source.condition, transform_batch))
        decoded = self.decoder.between(z, source, target, shares)
        return self._likelihood(decoded, library, source.condition)

    def _mean(self, decoded: DecoderOutput, size: torch.Tensor) -> tuple[torch.Tensor, None]:
        # Neither the size nor the condition matters to pixels.
        return self._likelihood(decoded, size, size).mean, None

    def spread(self, condition: torch.Tensor) -> torch.Tensor:
        """One for all pixels: a counterfactual carries over the residual unscaled."""
        return self.white.new_ones(1, 1)
