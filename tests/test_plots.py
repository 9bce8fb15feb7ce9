"""Figures: what is drawn is what was given."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from sbi_dgm import plots
from sbi_dgm.errors import OptionError


def test_rank_histograms_hold_every_row_in_bins_of_a_twentieth():
    ranks = np.random.default_rng(0).uniform(size=(400, 2))
    figure = plots.rank_histograms({"a": ranks[:, 0], "b": ranks[:, 1]}, 20, (8.0, 33.0))
    for i, axis in enumerate(figure.axes):
        heights = [bar.get_height() for bar in axis.patches if abs(bar.get_width() - 0.05) < 1e-9]
        assert heights == np.histogram(ranks[:, i], 20, (0, 1))[0].tolist()
        assert axis.get_xlim() == (0, 1)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]


@pytest.mark.parametrize("parameters", [1, 4, 6])
def test_rank_histograms_have_a_panel_for_each_parameter(parameters):
    names = [f"p{i}" for i in range(parameters)]
    figure = plots.rank_histograms(dict.fromkeys(names, np.full(50, 0.5)), 20, (0, 10))
    shown = [axis.get_title() for axis in figure.axes if axis.axison]
    assert shown == names


def test_coverage_draws_the_curve_the_diagonal_and_the_band():
    nominal = np.linspace(0, 1, 11)
    figure = plots.coverage(nominal, {"overconfident": ({"a": nominal**2}, (nominal - 0.1, nominal + 0.1))})
    (axis,) = figure.axes
    diagonal, curve = axis.lines
    assert np.array_equal(curve.get_xydata(), np.column_stack([nominal, nominal**2]))
    assert np.array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(-0.1)
    assert band[:, 1].max() == pytest.approx(1.1)
    assert axis.get_title() == "overconfident"


def draws(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(800, size))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_corner_has_a_panel_for_each_pair(size):
    figure = plots.corner({"ours": draws(size)}, [f"$x_{i}$" for i in range(size)])
    assert isinstance(figure, Figure)
    assert len(figure.axes) == size**2


def test_corner_marks_the_truth_in_its_place():
    figure = plots.corner({"ours": draws(2)}, ["a", "b"], truth=[0.25, -0.5])
    vertical = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert 0.25 in vertical
    assert -0.5 not in vertical


def test_corner_marks_the_truth_of_a_single_parameter():
    figure = plots.corner({"ours": draws(1), "exact": draws(1, seed=1)}, ["a"], truth=[0.25])
    marked = [path.vertices[0, 0] for lines in figure.axes[0].collections for path in lines.get_paths()]
    assert marked == [0.25]


def test_corner_contours_hold_68_and_95_percent():
    """The share of draws inside each contour, within 0.02 (binning, smoothing, and 20,000 draws)."""
    points = np.random.default_rng(0).normal(size=(20_000, 2))
    figure = plots.corner({"ours": points}, ["a", "b"])
    outlines = [p for c in figure.axes[2].collections for p in c.get_paths() if len(p.vertices) > 3]
    shares = [path.contains_points(points).mean() for path in outlines]
    for mass in plots.MASS:
        assert min(abs(share - mass) for share in shares) < 0.02, f"{mass}: shares {sorted(shares)}"


def test_labels_that_cannot_be_typeset_are_refused():
    plots.require_titles([r"$\Omega_m$", "plain_name", "5 $ and no more", r"$10^{-3}$ [eV]"])
    with pytest.raises(
        OptionError, match=r"label '\$\\\\omga\$' is no LaTeX that figures can typeset: .*nknown symbol"
    ):
        plots.corner({"ours": draws(1)}, [r"$\omga$"])


def test_figures_need_no_screen_and_leave_pyplot_alone():
    code = (
        "import sys, numpy as np; from sbi_dgm import plots;"
        "plots.corner({'a': np.random.default_rng(0).normal(size=(200, 2))}, ['x', 'y']);"
        "plt = sys.modules.get('matplotlib.pyplot'); print(plt.get_fignums() if plt else [])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_replications_are_shown_in_units_of_the_prediction():
    rng = np.random.default_rng(0)
    truth, drawn = np.array([103.0, 5.0]), 100 + 2 * rng.normal(size=(4000, 2))
    drawn[:, 1] = 4.0
    figure = plots.replications({"row 1": (truth, drawn)})
    (points,) = figure.axes[0].lines
    assert points.get_ydata() == pytest.approx([1.5, 1.0], abs=0.06), "a number that never varies has no unit"
    wide = figure.axes[0].collections[0].get_paths()[0].vertices
    first = wide[np.abs(wide[:, 0]) < 0.6, 1]
    assert (first.min(), first.max()) == pytest.approx((-1.96, 1.96), abs=0.1)
    assert wide[wide[:, 0] > 0.6, 1] == pytest.approx(0.0), "a number that never varies has no range"


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_the_legend_of_scores_lies_within_the_picture_and_leaves_room_for_the_panels(tasks):
    line = ([1000, 10_000], [0.8, 0.6], [0.0, 0.01])
    ours = dict.fromkeys([f"task {i}" for i in range(tasks)], dict.fromkeys(["flow", "diffusion", "vae"], line))
    published = {f"lowest published of {word} methods": line for word in ("all", "amortized", "sequential")}
    figure = plots.against_budget(ours, dict.fromkeys(ours, published), "C2ST")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= figure.bbox.width
    heights = [axis.get_window_extent().height for axis in figure.axes if axis.axison]
    assert min(heights) > 0.4 * figure.bbox.height / -(-tasks // 5)


@pytest.mark.parametrize(("suffix", "head"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_is_written_in_the_format_of_its_name(tmp_path, suffix, head):
    plots.save(Figure(), tmp_path / f"new/figure.{suffix}")
    assert (tmp_path / f"new/figure.{suffix}").read_bytes().startswith(head)
    assert len(list((tmp_path / "new").iterdir())) == 1
