"""Hold cells out, predict them, and compare the prediction with baselines."""

from trvae.evaluation._evaluate import evaluate
from trvae.evaluation._methods import TransferMethod, TRVAEMethod

__all__ = ["TRVAEMethod", "TransferMethod", "evaluate"]
