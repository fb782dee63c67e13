"""The convolutional encoder and decoder of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from trvae.module._layers import CovariateOffset, DecoderOutput, posterior_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.module._layers import Covariates, CovariateSizes


# Of leaky ReLUs, as in the paper's networks of images.
_SLOPE = 0.2


def grids(height: int, width: int, n_halvings: int) -> list[tuple[int, int]]:
    """Sizes of an image halved repeatedly, the image's own first; odd sizes are rounded up."""
    sizes = [(height, width)]
    for _ in range(n_halvings):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


class ImageEncoder(nn.Module):
    """An image and a plane of its condition and covariates to a map of ``q(z | x)``.

    Parameters
    ----------
    image_shape
        Height, width and number of channels.
    n_latent
        Channels of the latent map.
    channels
        Channels of the convolutions, each of which halves height and width.
    sizes
        Covariates that enter, in a plane beside the image's channels.
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
        """Map ``n_images x n_channels x height x width`` to mean and standard deviation.

        Both are ``n_images x (n_latent * height * width of the latent map)``.
        """
        empty = images.new_zeros(len(images), self.height * self.width)
        plane = self.plane.added_to(empty, covariates).view(-1, 1, self.height, self.width)
        hidden = self.convolutions(torch.cat([images, plane], 1))
        return self.mean(hidden).flatten(1), posterior_scale(self.log_variance(hidden).flatten(1))


class ImageDecoder(nn.Module):
    """A latent map to an image; condition and covariates enter the first layer.

    Parameters
    ----------
    image_shape, n_latent, channels, sizes
        As in :class:`ImageEncoder`, whose convolutions it reverses.
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
        # As wide as thick strokes are: what is drawn depends on more than its own place.
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
        """Decode ``... x n_images x n_z``; there is no ``base`` here.

        The first layer is flattened, and logits are in the order of the registered pixels: height,
        width, channels.
        """
        return self._draw(self._enter(z, covariates))

    def between(
        self, z: torch.Tensor, source: Covariates, target: Covariates, shares: torch.Tensor
    ) -> DecoderOutput:
        """As :meth:`forward`, with what enters the first layer between that of two conditions.

        Of ``shares``, each from 0 for the source to 1 for the target, decode
        ``n_shares x n_images``.
        """
        entered = self._enter(z, source), self._enter(z, target)
        return self._draw(torch.lerp(*entered, shares.view(-1, *[1] * entered[0].ndim)))

    def _enter(self, z: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """First layer before its activation, ``... x n_images x channels x height x width``."""
        maps = self.first(z.reshape(-1, self.n_latent, *self.latent_grid))
        maps = maps.view(*z.shape[:-1], *maps.shape[1:])
        # Every position of an image gets the same.
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
