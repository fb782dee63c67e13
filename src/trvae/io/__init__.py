"""Files: saved models, chunks of predictions, and writing without half-written results."""
