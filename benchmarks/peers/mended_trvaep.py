"""trvaep's trainer without what stops or slows it here."""

from trvaep import Trainer


class MendedTrainer(Trainer):
    """Reads copies, and has no minibatch of one cell.

    Such a minibatch is an error of its batch normalisation; and of a view, it copies the whole
    matrix for each cell that it reads, which takes a minute an epoch.
    """

    def make_dataset(self):
        """As trvaep's, with copies in place of views, and a cell less where one would be left."""
        datasets = super().make_dataset()
        for dataset in datasets:
            # Minibatches of powers of 2 from 64 on leave none where 64 leaves none.
            n_cells = len(dataset) - (len(dataset) % 64 == 1)
            dataset.adata = dataset.adata[:n_cells].copy()
        return datasets
