"""Messages of other packages during a training."""

import warnings

from helpers import QUIET
from lightning.pytorch import Callback

import trvae


class Warns(Callback):
    """A callback of the user."""

    def on_train_start(self, trainer, plan):
        warnings.warn("the user's own", stacklevel=1)


def test_only_what_users_can_use_is_printed(adata, caplog, recwarn):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    # 216 cells to train on: a last minibatch of one.
    trvae.TRVAE(adata).train(max_epochs=1, batch_size=43, callbacks=[Warns()], **QUIET)
    assert not any("Tip" in message for message in caplog.messages)
    messages = [str(warning.message) for warning in recwarn]
    assert "the user's own" in messages
    for words in ("moved from training", "LeafSpec", "logging interval"):
        assert not any(words in message for message in messages)
