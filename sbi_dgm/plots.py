"""Figures: arrays and names in, a `Figure` out. The only file that knows matplotlib; it draws on no screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import corner as corner_package
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from sbi_dgm.errors import OptionError
from sbi_dgm.files import atomic
from sbi_dgm.univariate import Array

COLOURS = ("#1b5e9b", "#d1731d", "#3c8d4f", "#8a4fa3", "#b03a4b", "#2a9d9d", "#a88a1e", "#5a6b7b")
GREY = "#6b7280"
MASS = (0.68, 0.95)
LEGEND = 8  # entries at most


def save(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure atomically, in the format that the suffix of `path` names."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=dpi)


def require_titles(titles: Sequence[str]) -> None:
    """Labels that can be typeset; else `OptionError`, before any work is done."""
    for title in titles:
        try:
            TextPath((0, 0), title)
        except ValueError as error:
            why = str(error).strip().splitlines()[-1]
            raise OptionError(f"label {title!r} is no LaTeX that figures can typeset: {why}.") from None


def corner(layers: Mapping[str, Array], titles: Sequence[str], truth: Sequence[float] | None = None) -> Figure:
    """One- and two-dimensional marginals of draws (S, D), with 68 and 95 % contours.

    Args:
        layers: sets of draws by legend entry; the first is filled.
        titles: (D,), axis labels.
        truth: (D,), marked by lines.

    Raises:
        OptionError: a title cannot be typeset.

    """
    require_titles(titles)
    size = max(4.0, 2.3 * len(titles))
    figure = Figure(figsize=(size, size))
    everything = np.concatenate(list(layers.values()))
    spans = [tuple(span) for span in np.quantile(everything, [0.001, 0.999], axis=0).T]
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


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels two abreast, wide enough to be read on a small screen; their places are fixed, which is drawn fast."""
    columns = min(2, count)
    rows = -(-count // columns)
    width, deep = 3.5 * columns, height * rows
    figure = Figure(figsize=(width, deep))
    axes = []
    for i in range(count):
        left, bottom = 3.5 * (i % columns) + 0.8, deep - height * (i // columns + 1) + 0.5
        axes.append(figure.add_axes((left / width, bottom / deep, 2.55 / width, (height - 0.8) / deep)))
        axes[-1].locator_params(nbins=5)
    return figure, axes


def rank_histograms(panels: Mapping[str, Array], bins: int, band: tuple[float, float]) -> Figure:
    """Histograms of simulation-based calibration: flat where the posterior is calibrated.

    Args:
        panels: ranks (R,) in [0, 1] by title.
        bins: their number.
        band: counts within which a bin of a calibrated posterior lies (99 %).

    """
    figure, axes = _panels(len(panels), 2.2)
    for axis, (title, ranks) in zip(axes, panels.items(), strict=True):
        axis.axhspan(*band, color=GREY, alpha=0.35, lw=0, zorder=3)
        axis.hist(ranks, bins=bins, range=(0, 1), color=COLOURS[0], alpha=0.85)
        axis.set(title=title, xlabel="rank of the truth", ylabel="rows", xlim=(0, 1))
    return figure


Band = tuple[Array, Array]  # lower and upper edge (K,)
Curves = tuple[Mapping[str, Array], Band]  # by legend entry, and the range of calibrated ones


def coverage(nominal: Array, panels: Mapping[str, Curves]) -> Figure:
    """Empirical against nominal coverage: on the diagonal where calibrated, below it where overconfident.

    Args:
        nominal: (K,), in [0, 1].
        panels: curves (K,) and their band by title.

    """
    figure, axes = _panels(len(panels), 3.4)
    for axis, (title, (curves, band)) in zip(axes, panels.items(), strict=True):
        axis.fill_between(nominal, *band, color=GREY, alpha=0.25, lw=0)
        axis.plot([0, 1], [0, 1], color=GREY, lw=1)
        for i, (label, curve) in enumerate(curves.items()):
            axis.plot(nominal, curve, color=COLOURS[i % len(COLOURS)], lw=1.6, label=label)
        axis.set(xlabel="nominal", ylabel="empirical", xlim=(0, 1), ylim=(0, 1), title=title, aspect="equal")
        if 1 < len(curves) <= LEGEND:
            axis.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


Difference = tuple[Array, Array, Array, Array]  # t, F(t) - t, and the edges of its band, each (K,)


def differences(curves: Mapping[str, Difference]) -> Figure:
    """Distribution functions of ranks less the diagonal: within the band everywhere where calibrated."""
    figure, axes = _panels(len(curves), 2.0)
    for axis, (name, (t, difference, low, high)) in zip(axes, curves.items(), strict=True):
        axis.fill_between(t, low, high, color=GREY, alpha=0.25, lw=0)
        axis.plot(t, difference, color=COLOURS[0], lw=1.8)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set(title=name, xlim=(0, 1), xlabel="rank of the truth", ylabel="excess below")
    return figure


def _steps(axis: Axes, edges: Array, lower: Array, upper: Array, alpha: float) -> None:
    """A grey range (K,) in each of K bins, by their edges (K + 1,)."""
    lower, upper = (np.append(end, end[-1]) for end in (lower, upper))
    axis.fill_between(edges, lower, upper, step="post", color=GREY, alpha=alpha, lw=0)


def binned(panels: Mapping[str, tuple[Array, Array, Array]], names: Sequence[str], nominal: float) -> Figure:
    """Coverage in bins: as many truths within the central intervals everywhere.

    Args:
        panels: edges (K + 1,), coverage (K, D), and half the width (K,) of a calibrated one's range, by quantity.
        names: (D,), of the parameters.
        nominal: coverage that the intervals should have.

    """
    figure, axes = _panels(len(panels), 2.2)
    for axis, (title, (edges, covered, spread)) in zip(axes, panels.items(), strict=True):
        _steps(axis, edges, nominal - spread, nominal + spread, alpha=0.25)
        axis.axhline(nominal, color=GREY, lw=0.8)
        for i, column in enumerate(covered.T):
            axis.plot((edges[1:] + edges[:-1]) / 2, column, "o-", color=COLOURS[i % len(COLOURS)], ms=3, label=names[i])
        axis.set(title=title, ylabel="coverage")
    if len(names) <= LEGEND:
        axes[0].legend(frameon=False, fontsize=7, ncols=2)
    return figure


def recovery(panels: Mapping[str, tuple[Array, Array, Array]]) -> Figure:
    """Posterior mean and sd against the truth, each (R,), by parameter."""
    figure, axes = _panels(len(panels), 3.2)
    for axis, (title, (truth, mean, sd)) in zip(axes, panels.items(), strict=True):
        axis.vlines(truth, mean - sd, mean + sd, color=COLOURS[0], alpha=0.15, lw=0.8, rasterized=True)
        axis.plot(truth, mean, ".", color=COLOURS[0], ms=2, rasterized=True)
        ends = [truth.min(), truth.max()]
        axis.plot(ends, ends, color=GREY, lw=1)
        axis.set(title=title, xlabel="truth", ylabel="posterior mean and sd")
    return figure


def contraction(panels: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Error in units of the posterior's sd against the contraction, each (R,), by parameter."""
    figure, axes = _panels(len(panels), 2.2)
    for axis, (title, (of_prior, z)) in zip(axes, panels.items(), strict=True):
        axis.axhspan(-2, 2, color=GREY, alpha=0.2, lw=0)
        axis.plot(of_prior, z, ".", color=COLOURS[0], ms=2, alpha=0.5, rasterized=True)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set(title=title, xlabel="contraction", ylabel="error / sd")
    return figure


def replications(panels: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Another observation of the truth (C,), and the 50 and 95 % range of predicted ones (S, C), by title.

    Each number is shown less the mean of its predictions, in units of their sd.
    """
    figure, axes = _panels(len(panels), 2.2)
    for axis, (title, (truth, drawn)) in zip(axes, panels.items(), strict=True):
        place, spread = np.arange(len(truth)), drawn.std(0)
        truth, drawn = ((one - drawn.mean(0)) / np.where(spread > 0, spread, 1.0) for one in (truth, drawn))
        for low, high in ((0.025, 0.975), (0.25, 0.75)):
            below, above = np.quantile(drawn, [low, high], axis=0)
            _steps(axis, np.append(place, len(place)) - 0.5, below, above, alpha=0.3)
        axis.plot(place, truth, "o", color=COLOURS[0], ms=3)
        axis.set(title=title, xlabel="number of x", ylabel="x, standardised")
        axis.locator_params("x", integer=True)
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
    rows, keys = -(-len(ours) // columns), min(4, columns)
    legend = -(-len({label for lines in (*ours.values(), *theirs.values()) for label in lines}) // keys)
    figure = Figure(figsize=(3.0 * columns + 0.6, 2.5 * rows + 0.4 + 0.2 * legend), layout="constrained")
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
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=keys, frameon=False, fontsize=9
    )
    return figure
