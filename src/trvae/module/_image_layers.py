"""The convolutional encoder and decoder of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from trvae.module._covariates import CovariateOffset
from trvae.module._decoders import DecoderOutput
from trvae.module._layers import posterior_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.module._covariates import Covariates, CovariateSizes


# Of the leaky ReLUs in the paper's networks of images.
_SLOPE = 0.2


def grids(height: int, width: int, n_halvings: int) -> list[tuple[int, int]]:
    """Sizes of an image before and after each halving; odd sizes are rounded up."""
    sizes = [(height, width)]
    for _ in range(n_halvings):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


class ImageEncoder(nn.Module):
    """Convolutional encoder of an image, its condition and its covariates.

    Parameters
    ----------
    image_shape
        Height, width and number of channels.
    n_latent
        Channels of the latent map.
    channels
        Channels of the convolutions, each of which halves height and width.
    sizes
        Covariates that enter, as one more channel of the image.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_latent: int,
        channels: Sequence[int],
        sizes: CovariateSizes,
    ):
        super().__init__()
        self.height, self.width, n_channels = image_shape
        self.plane = CovariateOffset(self.height * self.width, sizes)
        widths = [n_channels + 1, *channels]
        self.convolutions = nn.Sequential(
            *(
                layer
                for before, after in zip(widths[:-1], widths[1:], strict=True)
                for layer in (
                    nn.Conv2d(before, after, 3, stride=2, padding=1),
                    nn.LeakyReLU(_SLOPE),
                )
            )
        )
        self.mean = nn.Conv2d(channels[-1], n_latent, 1)
        self.log_variance = nn.Conv2d(channels[-1], n_latent, 1)

    def forward(
        self, images: torch.Tensor, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``n_images x n_channels x height x width`` to ``q(z | x)``.

        Returns
        -------
        Mean and standard deviation, ``n_images x (n_latent * height * width)`` of the latent map.
        """
        empty = images.new_zeros(len(images), self.height * self.width)
        plane = self.plane.added_to(empty, covariates).view(-1, 1, self.height, self.width)
        hidden = self.convolutions(torch.cat([images, plane], 1))
        return self.mean(hidden).flatten(1), posterior_scale(self.log_variance(hidden).flatten(1))


class ImageDecoder(nn.Module):
    """Convolutional decoder of a latent map; condition and covariates enter the first layer.

    Parameters
    ----------
    image_shape, n_latent, channels, sizes
        See :class:`ImageEncoder`, whose convolutions it reverses.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_latent: int,
        channels: Sequence[int],
        sizes: CovariateSizes,
    ):
        super().__init__()
        height, width, n_channels = image_shape
        *self.larger_grids, self.latent_grid = grids(height, width, len(channels))
        self.n_latent = n_latent
        self.first = nn.Conv2d(n_latent, channels[-1], 3, padding=1)
        self.offset = CovariateOffset(channels[-1], sizes, 9 * n_latent)
        # As wide as thick strokes: a pixel depends on its surroundings.
        self.second = nn.Conv2d(channels[-1], channels[-1], 5, padding=2)
        widths = [*reversed(channels), channels[0]]
        self.enlarging = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.logits = nn.Conv2d(channels[0], n_channels, 3, padding=1)

    def forward(
        self, z: torch.Tensor, covariates: Covariates, base: DecoderOutput | None = None
    ) -> DecoderOutput:
        """Decode ``... x n_images x n_z``; ``base`` is for additive decoders only.

        The first layer is flattened. Logits are in the order of the registered pixels: height,
        width, channels.
        """
        return self._draw(self._enter(z, covariates))

    def between(
        self, z: torch.Tensor, source: Covariates, target: Covariates, shares: torch.Tensor
    ) -> DecoderOutput:
        """Decode with the input of the first layer interpolated between two conditions.

        Parameters
        ----------
        z
            ``n_images x n_z``.
        source, target
            Covariates under both conditions.
        shares
            Positions between source (0) and target (1), ``n_shares``.

        Returns
        -------
        Output of ``n_shares x n_images`` images.
        """
        entered = self._enter(z, source), self._enter(z, target)
        return self._draw(torch.lerp(*entered, shares.view(-1, *[1] * entered[0].ndim)))

    def _enter(self, z: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """First layer before the activation, ``... x n_images x channels x height x width``."""
        maps = self.first(z.reshape(-1, self.n_latent, *self.latent_grid))
        maps = maps.view(*z.shape[:-1], *maps.shape[1:])
        # All positions of an image get the same offset.
        positions_first = maps.flatten(-2).movedim(-1, 0)
        shifted = self.offset.added_to(positions_first, covariates).movedim(0, -1)
        return shifted.reshape(maps.shape)

    def _draw(self, entered: torch.Tensor) -> DecoderOutput:
        *draws, n_images = entered.shape[:-3]
        first = torch.relu(entered).flatten(0, -4)
        hidden = torch.relu(self.second(first))
        for layer, (height, width) in zip(
            self.enlarging, reversed(self.larger_grids), strict=True
        ):
            hidden = torch.relu(layer(hidden)[..., :height, :width])
        logits = self.logits(hidden).movedim(1, -1)
        return DecoderOutput(
            first.reshape(*draws, n_images, -1), logits.reshape(*draws, n_images, -1), None
        )
