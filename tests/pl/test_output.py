"""How plots look, and what becomes of the figure.

``tests/fixtures/images`` has pictures of plots of known values. After a change of how a plot looks,
redraw them, look at them and commit them::

    TRVAE_DRAW_BASELINES=1 pytest tests/pl -k looks_as
"""

import os
import shutil
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import FIXTURES
from matplotlib.testing.compare import compare_images

import trvae

IMAGES = FIXTURES / "images"
# Root mean square of the differences in grey levels, for pictures without letters. That of a plot
# of other data is at least 2.
TOLERANCE = 1
FEW = {"n_genes": 3, "title": "Title"}
BY_LABEL = {"labels_key": "cell_type"} | FEW
# Each with the number of its rows and columns.
OF_GROUPS = {
    "mean_scatter": (
        (1, 2),
        lambda groups, **k: trvae.pl.mean_scatter(*groups, statistic="both", **FEW, **k),
    ),
    "response": ((1, 1), lambda groups, **k: trvae.pl.response(*groups, **FEW, **k)),
    "by_label_dots": (
        (1, 1),
        lambda groups, **k: trvae.pl.response_by_label(*groups, **BY_LABEL, **k),
    ),
    "by_label_violins": (
        (1, 1),
        lambda groups, **k: trvae.pl.response_by_label(*groups, kind="violin", **BY_LABEL, **k),
    ),
}


@pytest.fixture
def draw(monkeypatch, given_groups, given_model):
    """Draw a plot of given values into axes, without letters and what is placed beside them."""

    def coordinates(values, *_):
        angle = np.linspace(0, 2 * np.pi, len(values))
        return np.column_stack([np.cos(angle), np.sin(2 * angle)]) * (1 + values[:, :1])

    monkeypatch.setattr("trvae.pl._umap._coordinates", coordinates)

    def drawn(name, path, change):
        (n_rows, n_columns), plot = OF_GROUPS.get(name, ((2, 2), trvae.pl.umap))
        figure, axes = plt.subplots(n_rows, n_columns, figsize=(4.4 * n_columns, 3.4 * n_rows))
        if "by_label" in name:  # has its own margins
            figure.subplots_adjust(0, 0, 1, 1)
        else:
            figure.subplots_adjust(0.16, 0.16, 0.78, 0.9, 0.9, 0.4)
        plot(given_model(change) if name == "umap" else given_groups(change), ax=axes)
        figure.draw_without_rendering()
        for kind in (mpl.text.Text, mpl.legend.Legend, mpl.patches.FancyArrowPatch):
            for artist in figure.findobj(kind):
                artist.set_visible(False)
        figure.savefig(path, dpi=50, metadata={"Software": None})

    return drawn


@pytest.mark.parametrize("name", [*OF_GROUPS, "umap"])
def test_plot_looks_as_before(draw, tmp_path, name):
    before, now, other = IMAGES / f"{name}.png", tmp_path / "now.png", tmp_path / "other.png"
    draw(name, now, change=0.0)
    if "TRVAE_DRAW_BASELINES" in os.environ:
        shutil.copy(now, before)
    assert compare_images(str(before), str(now), TOLERANCE) is None
    draw(name, other, change=0.3)
    assert "did not match" in compare_images(str(before), str(other), TOLERANCE)


def texts_of(ax):
    """Texts that are seen."""
    yield from [*ax.texts, ax.title]
    if ax.axison:
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            yield axis.label
            for tick in axis.get_major_ticks():
                if min(limits) <= tick.get_loc() <= max(limits):
                    yield from (tick.label1, tick.label2)
    if ax.get_legend() is not None:
        yield from ax.get_legend().get_texts()


def check_texts(figure, n_at_least=4):
    """Texts are large enough, within the figure, and don't overlap."""
    figure.draw_without_rendering()
    texts = [text for ax in figure.axes for text in texts_of(ax)]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    assert len(texts) >= n_at_least
    assert min(text.get_fontsize() for text in texts) > 6.9
    boxes = {text: mpl.text.Text.get_window_extent(text) for text in texts}
    assert not [(a, b) for a, b in combinations(texts, 2) if boxes[a].overlaps(boxes[b])]
    for text, box in boxes.items():
        assert figure.bbox.padded(1).contains(*box.min), text
        assert figure.bbox.padded(1).contains(*box.max), text


@pytest.mark.parametrize("name", OF_GROUPS)
def test_texts_are_legible(given_groups, name):
    plot = OF_GROUPS[name][1]
    check_texts(plot(given_groups(), return_fig=True))
    if name != "mean_scatter":
        figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
        for ax in axes:
            plot(given_groups(), ax=ax)
        check_texts(figure, 12)


def test_texts_about_models_are_legible(model, image_model):
    check_texts(trvae.pl.history(model, return_fig=True))
    check_texts(trvae.pl.umap(model, n_neighbors=5, color=["gene_1", "batch"], return_fig=True))
    images = {"source_condition": "normal", "title": "Title", "return_fig": True}
    check_texts(trvae.pl.transferred_images(image_model, **images))
    check_texts(trvae.pl.interpolated_images(image_model, target_condition="thick", **images))


def test_many_names_do_not_overlap(groups):
    _, ax = plt.subplots(figsize=(4, 4), layout="constrained")
    trvae.pl.response(*groups, n_genes=16, ax=ax)
    check_texts(ax.figure, 17)


def test_output(groups, tmp_path):
    _, given = plt.subplots()
    assert trvae.pl.response(*groups, ax=given) is given
    assert isinstance(trvae.pl.response(*groups, return_fig=True), mpl.figure.Figure)
    trvae.pl.mean_scatter(*groups, save=tmp_path / "means.png")
    assert (tmp_path / "means.png").stat().st_size > 5_000
    assert trvae.pl.mean_scatter(*groups, show=True) is None
    with pytest.raises(ValueError, match="is not a list of 2 Axes"):
        trvae.pl.mean_scatter(*groups, statistic="both", ax=[given] * 3)
    with pytest.raises(ValueError, match="ax='left' is not one Axes"):
        trvae.pl.response(*groups, ax="left")


def test_subfigures_are_drawn_into(groups, tmp_path):
    figure = plt.figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    trvae.pl.response(*groups, ax=left.subplots(), save=tmp_path / "whole.pdf")
    assert (tmp_path / "whole.pdf").read_bytes().startswith(b"%PDF")
    ax = right.subplots()
    drawn = trvae.pl.response_by_label(*groups, labels_key="cell_type", ax=ax, return_fig=True)
    assert drawn is figure
