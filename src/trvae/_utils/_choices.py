"""Values of arguments that the command line offers, too; without imports, so that it starts at once."""

from typing import Literal

Estimate = Literal["counterfactual", "decoded", "linear"]

# A new likelihood is made in ``TRVAEModule._likelihood``; ``model/_decoding.py`` says how cells are
# drawn from it, ``data/_checks.py`` which values suit it.
GeneLikelihood = Literal["nb", "zinb", "poisson", "normal"]

DEFAULT_MODALITY = "rna"
