"""Arguments of related tools get an error that names ours."""

import inspect

import pytest

import trvae
from trvae.model import _hints

CALLS = {
    trvae.TRVAE.setup_anndata: _hints.SETUP,
    trvae.TRVAE.setup_mudata: _hints.SETUP,
    trvae.TRVAE.__init__: _hints.MODEL,
    trvae.TRVAE.train: _hints.TRAIN,
    trvae.TRVAE.load_query_data: _hints.MAPPING,
    trvae.ImageTRVAE.setup_anndata: _hints.SETUP,
    trvae.ImageTRVAE.__init__: _hints.MODEL,
}
ARGUMENTS = {name for function in CALLS for name in inspect.signature(function).parameters}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__qualname__)
def test_hints_name_arguments_that_there_are(function):
    for name, instead in CALLS[function].items():
        assert name not in inspect.signature(function).parameters
        assert any(word.strip(",") in ARGUMENTS for word in instead.replace("=", " ").split())


def test_arguments_of_other_tools():
    cells = trvae.datasets.simulated(n_cells=20, n_genes=30)
    with pytest.raises(TypeError, match="no argument 'batch_key'. Use condition_key"):
        trvae.TRVAE.setup_anndata(cells, batch_key="condition")
    trvae.TRVAE.setup_anndata(cells, condition_key="condition")
    with pytest.raises(TypeError, match="no argument 'n_hidden'. Use hidden_sizes"):
        trvae.TRVAE(cells, n_hidden=128)
    with pytest.raises(TypeError, match="no argument 'n_hidden'"):
        trvae.TRVAEEnsemble(cells, n_hidden=128)
    model = trvae.TRVAE(cells)
    with pytest.raises(TypeError, match="no argument 'n_epochs'. Use max_epochs"):
        model.train(n_epochs=3)
    assert not model.is_trained
