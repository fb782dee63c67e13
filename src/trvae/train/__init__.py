"""Training: the plan, minibatches, interruption and checkpoints."""

from trvae.train._plan import TRVAETrainingPlan
from trvae.train._sampling import ConditionBalancedDataSplitter, ConditionBalancedSampler

__all__ = ["ConditionBalancedDataSplitter", "ConditionBalancedSampler", "TRVAETrainingPlan"]
