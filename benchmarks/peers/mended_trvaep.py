"""trvaep's trainer without what stops or slows it here."""

from trvaep import Trainer

# So few cells could all be of one condition.
TOO_FEW = 16


class MendedTrainer(Trainer):
    """Reads copies, and has no minibatch of one condition.

    Such a minibatch is an error of its loss; and of a view, it copies the whole matrix for each
    cell that it reads, which takes a minute an epoch.
    """

    def make_dataset(self):
        """As trvaep's, with copies in place of views, without a last minibatch of few cells."""
        datasets = super().make_dataset()
        for dataset in datasets:
            # Larger minibatches, of powers of 2, leave at least as many as 64 leave.
            left = len(dataset) % 64
            n_cells = len(dataset) - (left if left < TOO_FEW else 0)
            dataset.adata = dataset.adata[:n_cells].copy()
        return datasets
