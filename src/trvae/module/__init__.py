"""Networks, likelihoods and the loss: everything that works on tensors only."""

from trvae.module._base import BaseTRVAEModule
from trvae.module._expression import TRVAEModule
from trvae.module._images import ImageTRVAEModule
from trvae.module._mmd import BANDWIDTHS, multi_scale_mmd

__all__ = ["BANDWIDTHS", "BaseTRVAEModule", "ImageTRVAEModule", "TRVAEModule", "multi_scale_mmd"]
