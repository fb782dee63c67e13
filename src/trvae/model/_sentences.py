"""What is known of the error of a prediction, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trvae.model._labels import labels_of_both

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from trvae.model._interface import Model

_CLOSER = {
    "linear": "The linear response alone was closer to them: estimate='linear'.",
    "shift": "The mean change of the others was closer to them.",
    "no_change": "No change was closer to them.",
}


def summary_of(
    model: Model,
    group: str,
    row: dict[str, Any],
    sources: np.ndarray,
    target: Any,
    groupby: str | None,
    left_out: pd.DataFrame | None,
) -> str:
    """What is known of the error of a group's prediction, in words.

    ``left_out`` is :func:`table_of_left_out`, or ``None`` if too few labels were measured.
    """
    known = model.registered_data
    if len(sources) > 1:
        return f"{group}: the {known.cells} are of several conditions, choose one to assess it."
    (source,) = sources
    if source == target:
        return f"{group}: nothing is predicted, as the {known.cells} are of {target}."
    codes = model.conditions.index(source), model.conditions.index(target)
    labels = labels_of_both(model, *codes)
    is_label = groupby is not None and groupby == known.arguments["labels_key"]
    names = list(map(str, known.labels))
    sentences = []
    if is_label and group not in names:
        sentences.append(f"{group} is not a label of the training {known.cells}.")
    if is_label and group in [names[code] for code in labels]:
        sentences.append(
            f"{group} was measured under {target}, so cells like these were in the training data."
        )
    if left_out is None:
        return " ".join([*sentences, f"{group}: {_too_few(model, len(labels), source, target)}"])
    sentences += _of_left_out(left_out)
    an_error = "an error" if "r2_mean" in left_out else "an error of the linear response"
    expected = (
        f"For {group}, whose mean log expression is predicted to change by {row['change']:.2g} (root mean "
        f"square over {known.genes}), expect {an_error} of {row['error']:.2g} ({row['error_low']:.2g} to "
        f"{row['error_high']:.2g})"
    )
    if row["change"] > 0:
        expected += f", {row['error'] / row['change']:.0%} of the change"
    if row["remoteness"] > 1:
        expected += (
            f", or more: it is {row['remoteness']:.1f} times as far from these labels as they are from "
            "each other"
        )
    return " ".join([*sentences, f"{expected}."])


def _too_few(model: Model, n_labels: int, source: Any, target: Any) -> str:
    """Why the error is not known, in words."""
    if model.registered_data.arguments.get("labels_key") is None:
        return "without labels (labels_key), it is not known how large the error will be."
    number = "1 label was" if n_labels == 1 else f"{n_labels} labels were"
    sentence = f"{number} measured under both {source} and {target}, too few to say how large the error will be."
    return sentence if n_labels < 2 else f"{sentence} Hold out each with trvae.evaluate."


def _of_left_out(table: pd.DataFrame) -> list[str]:
    """What happened to labels that were left out, in words; see :func:`table_of_left_out`."""
    is_calibrated = "r2_mean" in table
    own, mean = table["r2_mean" if is_calibrated else "r2_mean_linear"], table.mean()
    numbers = f"{own.mean():.2f} ({own.min():.2f} to {own.max():.2f})"
    no_change = f"no change {mean['r2_mean_no_change']:.2f}"
    if not is_calibrated:
        return [
            f"Not calibrated. Left out one at a time, {len(own)} measured labels are predicted by the "
            f"linear response of the others with an R2 of means of {numbers}; {no_change}. What the "
            "network adds is only known after calibrate."
        ]
    sentences = [
        f"Left out one at a time, {len(own)} measured labels were predicted with an R2 of means of "
        f"{numbers}; the linear response of the others {mean['r2_mean_linear']:.2f}, {no_change}."
    ]
    # By the digits that are printed: a smaller difference says nothing.
    if round(mean["r2_mean_network"], 2) < round(mean["r2_mean_linear"], 2):
        sentences.append(
            f"The network alone has {mean['r2_mean_network']:.2f}, less than the linear response: it "
            "may need longer training."
        )
    closest = mean[["rmse", *(f"rmse_{name}" for name in _CLOSER)]].idxmin()
    if closest != "rmse":
        sentences.append(_CLOSER[closest.removeprefix("rmse_")])
    return sentences
