"""Figures: arrays and names in, a `Figure` out. The only file that knows matplotlib; it draws on no screen."""

from collections.abc import Mapping, Sequence

import corner as corner_package
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sbi_dgm.univariate import Array

COLOURS = ("#1b5e9b", "#d1731d", "#3c8d4f", "#8a4fa3")
GREY = "#6b7280"
MASS = (0.68, 0.95)


def corner(layers: Mapping[str, Array], titles: Sequence[str], truth: Sequence[float] | None = None) -> Figure:
    """One- and two-dimensional marginals of draws (S, D), with 68 and 95 % contours.

    Args:
        layers: sets of draws by legend entry; the first is filled.
        titles: (D,), axis labels.
        truth: (D,), marked by lines.

    """
    size = max(4.0, 2.3 * len(titles))
    figure = Figure(figsize=(size, size))
    everything = np.concatenate(list(layers.values()))
    spans = [tuple(span) for span in np.quantile(everything, [0.0001, 0.9999], axis=0).T]
    for position, (draws, colour) in enumerate(zip(layers.values(), COLOURS, strict=False)):
        corner_package.corner(
            draws,
            weights=np.full(len(draws), 1 / len(draws)),
            fig=figure,
            labels=list(titles),
            range=spans,
            bins=40,
            smooth=1.0,
            smooth1d=1.0,
            levels=MASS,
            color=colour,
            plot_datapoints=False,
            plot_density=False,
            fill_contours=position == 0,
            no_fill_contours=position > 0,
            hist_kwargs={"linewidth": 1.6, "linestyle": "-" if position == 0 else "--"},
            contour_kwargs={"linewidths": 1.4, "linestyles": "-" if position == 0 else "--"},
            truths=None if truth is None or len(titles) == 1 else list(truth),
            truth_color=GREY,
            max_n_ticks=4,
        )
    if len(titles) == 1:  # here corner neither sets margins nor marks a truth
        figure.set_layout_engine("constrained")
        figure.axes[0].vlines(
            [] if truth is None else truth, 0, 1, GREY, transform=figure.axes[0].get_xaxis_transform()
        )
    handles = [
        Line2D([], [], color=c, ls="-" if i == 0 else "--", label=n)
        for i, (n, c) in enumerate(zip(layers, COLOURS, strict=False))
    ]
    figure.legend(handles=handles, loc="upper right", frameon=False, fontsize=11, title="68 and 95 %")
    return figure


def rank_histograms(ranks: Array, names: Sequence[str], band: tuple[float, float], p_values: Sequence[float]) -> Figure:
    """Histograms of simulation-based calibration: flat where the posterior is calibrated.

    Args:
        ranks: (R, D), in [0, 1].
        band: counts within which a bin of a calibrated posterior lies (99 %).
        p_values: (D,), of uniformity.

    """
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for i, axis in enumerate(axes):
        if i >= len(names):
            axis.set_axis_off()
            continue
        axis.axhspan(*band, color=GREY, alpha=0.35, lw=0, zorder=3)
        axis.hist(ranks[:, i], bins=20, range=(0, 1), color=COLOURS[0], alpha=0.85)
        axis.set(title=f"{names[i]}   p = {p_values[i]:.2g}", xlabel="rank of the truth", xlim=(0, 1))
    axes[0].set_ylabel("rows")
    return figure


def coverage(nominal: Array, empirical: Array, band: tuple[Array, Array], verdict: str) -> Figure:
    """Empirical against nominal coverage: on the diagonal where calibrated, below it where overconfident.

    Args:
        nominal, empirical: (K,), in [0, 1].
        band: lower and upper edge (K,) of a calibrated posterior's range (99 %).

    """
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(nominal, *band, color=GREY, alpha=0.25, lw=0, label="calibrated, 99 %")
    axis.plot([0, 1], [0, 1], color=GREY, lw=1)
    axis.plot(nominal, empirical, color=COLOURS[0], lw=2, label="this posterior")
    axis.set(
        xlabel="nominal coverage", ylabel="empirical coverage", xlim=(0, 1), ylim=(0, 1), title=verdict, aspect="equal"
    )
    axis.legend(frameon=False, loc="upper left")
    return figure


Difference = tuple[Array, Array, Array, Array]  # t, F(t) - t, and the edges of its band, each (K,)


def differences(curves: Mapping[str, Difference]) -> Figure:
    """Distribution functions of ranks less the diagonal: within the band everywhere where calibrated."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, sharey=True)).ravel()
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, (t, difference, low, high)) in zip(axes, curves.items(), strict=False):
        axis.fill_between(t, low, high, color=GREY, alpha=0.25, lw=0)
        axis.plot(t, difference, color=COLOURS[0], lw=1.8)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set(title=name, xlim=(0, 1))
    for axis in axes[max(0, len(curves) - columns) : len(curves)]:
        axis.set_xlabel("rank of the truth")
    for axis in axes[::columns]:
        axis.set_ylabel("rows below, less expected")
    return figure


Line = tuple[Sequence[float], Sequence[float], Sequence[float]]  # budgets, scores, standard errors


def against_budget(
    ours: Mapping[str, Mapping[str, Line]], theirs: Mapping[str, Mapping[str, Line]], score: str
) -> Figure:
    """A score against the number of simulations: one panel a task, with published lines behind.

    Args:
        ours: task -> method -> line.
        theirs: the same, of published figures, which may be not a number.
        score: title of the axis.

    """
    columns = min(5, len(ours))
    rows = -(-len(ours) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.6, 2.5 * rows + 0.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, sharey=True)).ravel()
    for axis in axes[len(ours) :]:
        axis.set_axis_off()
    for axis, (task, lines) in zip(axes, ours.items(), strict=False):
        for style, (label, (budgets, scores, _)) in zip((":", "--", "-."), theirs[task].items(), strict=False):
            axis.plot(budgets, scores, color=GREY, ls=style, lw=1.2, marker=".", ms=4, label=label)
        for i, (label, (budgets, scores, errors)) in enumerate(lines.items()):
            axis.errorbar(
                budgets, scores, errors, color=COLOURS[i % len(COLOURS)], marker="o", ms=4, lw=1.8, label=label
            )
        axis.set(xscale="log", title=task, ylim=(0.48, 1.02))
    for axis in axes[max(0, len(ours) - columns) : len(ours)]:
        axis.set_xlabel("simulations")
    for axis in axes[::columns]:
        axis.set_ylabel(score)
    handles = {text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
