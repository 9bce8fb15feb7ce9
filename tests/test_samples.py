"""Named draws: numbers against known arrays, files against what other programs expect."""

from unittest import mock

import h5py
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from sbi_dgm import plots
from sbi_dgm.distributions import HalfNormal, Normal, Uniform
from sbi_dgm.errors import FileError, ObservationError, OptionError
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.samples import Samples

PRIOR = Prior(
    [
        Parameter("omega_m", Uniform(0, 1), r"\Omega_m"),
        Parameter("height", Normal(0, 1), unit="m"),
        Parameter("width", HalfNormal(2.0), r"w", "mm"),
    ]
)


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return PRIOR.sample(int(np.prod(shape)), seed).reshape(*shape, 3)


def samples(*shape: int, log_prob: bool = True) -> Samples:
    array = draws(*shape)
    return Samples.of(PRIOR, array, PRIOR.log_prob(array) if log_prob else None)


def check_summary(array: np.ndarray) -> None:
    """0, 1, ..., 100 in the first parameter: every number is known."""
    row = Samples.of(Prior([Parameter("a", Normal(0, 1))]), array[:, None]).summary().loc["a"]
    known = {"mean": 50, "sd": np.sqrt((101**2 - 1) / 12), "median": 50, "16%": 16, "84%": 84}
    assert row[list(known)].to_dict() == pytest.approx(known)


def test_summary_of_a_ladder():
    check_summary(np.random.default_rng(0).permutation(np.arange(101.0)))
    with pytest.raises(AssertionError):
        check_summary(1.01 * np.arange(101.0))


def test_summary_has_a_row_for_each_parameter():
    table = samples(200).summary()
    assert table.index.tolist() == ["omega_m", "height", "width"]
    assert table.index.name == "parameter"
    assert table["mean"].to_numpy() == pytest.approx(samples(200).array.mean(0))


@pytest.mark.parametrize(
    ("u", "edge"),
    [
        (np.random.default_rng(0).uniform(0, 1, 4000), "low high"),
        (np.abs(np.random.default_rng(0).normal(0, 0.1, 4000)), "low"),
        (1 - np.abs(np.random.default_rng(0).normal(0, 0.1, 4000)), "high"),
        (np.random.default_rng(0).normal(0.5, 0.1, 4000), ""),
        (np.random.default_rng(0).normal(0.5, 0.1, 4000).clip(0.3, 0.6), ""),
    ],
)
def test_the_edge_column_names_the_edges_that_draws_reach(u, edge):
    array = np.column_stack([u, np.random.default_rng(1).normal(size=4000), 5 + 0 * u + u])
    table = Samples.of(PRIOR, array).summary()
    assert table["edge"].tolist() == [edge, "", ""]


def test_without_bounds_no_edge_is_reached():
    assert Samples(draws(50), PRIOR.parameters).summary()["edge"].tolist() == [""] * 3


def test_columns_by_name():
    s = samples(4, 20)
    assert np.array_equal(s["height"], s.array[..., 1])
    assert np.array_equal(np.asarray(s), s.array)
    assert len(s) == 20
    with pytest.raises(OptionError, match="did you mean 'width'"):
        s["widht"]


def test_one_of_several_observations():
    s = samples(4, 20)
    one = s.observation(2)
    assert np.array_equal(one.array, s.array[2])
    assert np.array_equal(one.log_prob, s.log_prob[2])
    with pytest.raises(ObservationError, match="one observation already"):
        one.observation(0)
    with pytest.raises(ObservationError, match=r"draws for 4 observations: choose one"):
        s.summary()


def test_pandas_of_one_and_of_several_observations():
    one, several = samples(5).to_pandas(), samples(2, 5).to_pandas()
    assert one.columns.tolist() == several.columns.tolist() == ["omega_m", "height", "width"]
    assert np.array_equal(one.to_numpy(), samples(5).array)
    assert several.index.names == ["observation", "draw"]
    assert np.array_equal(several.loc[1].to_numpy(), samples(2, 5).array[1])
    assert several.loc[(1, 3), "width"] == samples(2, 5).array[1, 3, 2]


@pytest.mark.parametrize("log_prob", [True, False])
@pytest.mark.parametrize("shape", [(30,), (4, 30), (1, 30), (30, 1)])
def test_files_give_back_what_was_saved(tmp_path, shape, log_prob):
    saved = samples(*shape, log_prob=log_prob)
    saved.save(tmp_path / "s.h5")
    loaded = Samples.load(tmp_path / "s.h5")
    assert np.array_equal(loaded.array, saved.array)
    assert (loaded.log_prob is None) == (not log_prob)
    if log_prob:
        assert np.array_equal(loaded.log_prob, saved.log_prob)
    assert [(p.name, p.label, p.unit) for p in loaded.parameters] == [
        (p.name, p.label, p.unit) for p in PRIOR.parameters
    ]
    assert np.array_equal(loaded.bounds, saved.bounds)


def test_no_draws_at_all_can_be_saved_but_not_summarised(tmp_path):
    samples(0).save(tmp_path / "s.h5")
    assert Samples.load(tmp_path / "s.h5").array.shape == (0, 3)
    with pytest.raises(ObservationError, match="no draws"):
        samples(0).summary()


def test_draws_without_bounds_stay_without(tmp_path):
    Samples(draws(5), PRIOR.parameters).save(tmp_path / "s.h5")
    assert Samples.load(tmp_path / "s.h5").bounds is None


@pytest.mark.parametrize(("shape", "axes"), [((30,), ["chain", "draw"]), ((4, 30), ["chain", "draw", "observation"])])
def test_files_name_their_axes_as_arviz_and_xarray_expect(tmp_path, shape, axes):
    saved = samples(*shape)
    saved.save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        group = file["posterior"]
        assert list(group)[: len(axes)] == axes
        for name in (*saved.names, "log_prob"):
            dataset = group[name]
            assert [axis[0].name for axis in dataset.dims] == [f"/posterior/{axis}" for axis in axes]
            assert dataset.shape == (1, *reversed(shape))
            assert dataset.fletcher32
        for axis in axes:
            assert group[axis].is_scale
            assert np.array_equal(group[axis], np.arange(len(group[axis])))
        assert group["height"].attrs["units"] == "m"
        assert np.array_equal(group["height"][0].T, saved["height"])


def test_an_existing_file_is_kept_unless_told(tmp_path):
    samples(30).save(tmp_path / "s.h5")
    with pytest.raises(FileError, match="overwrite=True"):
        samples(5).save(tmp_path / "s.h5")
    assert len(Samples.load(tmp_path / "s.h5")) == 30
    samples(5).save(tmp_path / "s.h5", overwrite=True)
    assert len(Samples.load(tmp_path / "s.h5")) == 5


def test_other_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileError, match="there is no file"):
        Samples.load(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name in ("text.h5", "empty.h5"):
        with pytest.raises(FileError, match="no readable file of samples"):
            Samples.load(tmp_path / name)


def test_a_newer_version_is_refused_with_both_numbers(tmp_path):
    samples(5).save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["posterior"].attrs["format_version"] = 7
    with pytest.raises(FileError, match=r"version 7.*up to 1"):
        Samples.load(tmp_path / "s.h5")


def test_a_flipped_byte_among_the_draws_is_found(tmp_path):
    samples(3000).save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        place = file["posterior/height"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "s.h5").read_bytes())
    content[place + 100] ^= 1
    (tmp_path / "s.h5").write_bytes(content)
    with pytest.raises(FileError):
        Samples.load(tmp_path / "s.h5")


def test_corner_draws_every_pair_without_pyplot():
    settings = {key: value for key, value in matplotlib.rcParams.items() if key != "backend"}
    figure = samples(500).corner(truth=[0.5, 0.0, 1.0], others={"exact": samples(400)}, label="ours")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 9
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "exact"]
    assert figure.axes[6].get_xlabel() == r"$\Omega_m$"
    assert figure.axes[7].get_xlabel() == "height [m]"
    assert {k: v for k, v in matplotlib.rcParams.items() if k != "backend"} == settings  # which reading resolves


def test_layers_of_a_corner_go_by_name():
    """Others in another order lie where these do, and so does a truth by name."""
    one = samples(500)
    turned = Samples(one.array[:, ::-1], one.parameters[::-1])
    truth = dict(zip(one.names, [0.5, 0.0, 1.0], strict=True))
    with mock.patch.object(plots, "corner") as drawn:
        one.corner(truth=truth, others={"turned": turned})
    layers, _, marked = drawn.call_args.args
    np.testing.assert_array_equal(layers["turned"], layers["posterior"])
    assert marked == [0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"truth": [0.5]}, "give a number for each of"),
        ({"truth": {"nothing": 0.5}}, "give a number for each of"),
        ({"others": {"posterior": samples(400)}}, "each its own label, none of them 'posterior'"),
        ({"others": {str(i): samples(400) for i in range(8)}}, "8 layers at most"),
    ],
)
def test_what_no_corner_can_show_is_refused(given, sentence):
    with pytest.raises(OptionError, match=sentence):
        samples(500).corner(**given)


def test_corner_of_several_observations_asks_which():
    with pytest.raises(ObservationError, match=r"\.observation\(i\)"):
        samples(4, 20).corner()
