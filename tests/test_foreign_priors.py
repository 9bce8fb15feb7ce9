"""The prior of a file that others wrote: where it comes from, and what theta must be under it."""

import json
import warnings

import h5py
import layouts
import numpy as np
import pytest
from command_toys import SMALL, command

from sbi_dgm import Parameter, Prior, PriorTransform, Simulations, Uniform, load
from sbi_dgm.errors import DataError, ExternalError, PriorError, SbiError


@pytest.mark.parametrize("how", ["table", "prior", "file", "theta", "described", "none"])
def test_the_prior_comes_from_a_table_a_prior_the_file_or_nowhere(tmp_path, how):
    made = layouts.group_of_columns(tmp_path)
    with h5py.File(made.path, "r+") as file:
        if how == "file":
            file.attrs["prior"] = layouts.TOML_AS_JSON
        if how == "theta":
            file["params"].attrs["prior"] = layouts.TOML_AS_JSON.encode()
        if how == "described":
            file.attrs["prior"] = json.dumps(layouts.PRIOR.describe())
    given = {"table": {"prior": layouts.TABLE}, "prior": {"prior": layouts.PRIOR}}.get(how, {})
    data = Simulations.open(made.path, **made.places, **given)
    assert data.prior == (None if how == "none" else layouts.PRIOR)
    assert data.parameters[0].label == ("" if how == "none" else r"\Omega_m")
    np.testing.assert_array_equal(data.theta, made.theta)


def test_the_prior_that_is_given_rules_over_the_files_own(tmp_path):
    made = layouts.failed_rows(tmp_path)
    wider = Prior([Parameter("omega_m", Uniform(0, 1)), Parameter("sigma_8", Uniform(0, 2))])
    with pytest.warns(UserWarning, match="theta is not drawn from its prior, by omega_m; sigma_8"):
        assert Simulations.open(made.path, **made.places, prior=wider).prior == wider


@pytest.mark.parametrize("writer", [layouts.group_of_columns, layouts.camels, layouts.dingo, layouts.madminer])
def test_columns_follow_the_priors_order_where_the_file_names_them(tmp_path, writer):
    made = writer(tmp_path)
    turned = Prior(list(reversed(layouts.PRIOR.parameters)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Simulations.open(made.path, **made.places, prior=turned)
    assert data.names == ["sigma_8", "omega_m"]
    np.testing.assert_array_equal(data.theta, made.theta[:, ::-1])


def test_columns_without_names_are_the_priors_in_its_order(tmp_path):
    made = layouts.plain(tmp_path)
    data = Simulations.open(made.path, **made.places, prior=layouts.PRIOR)
    assert data.names == layouts.NAMES
    np.testing.assert_array_equal(data.theta, made.theta)


@pytest.mark.parametrize("names", [["omega_m", "s8"], ["omega_m"], ["omega_m", "sigma_8", "h"]])
def test_a_prior_of_other_parameters_is_refused_with_both_lists(tmp_path, names):
    made = layouts.group_of_columns(tmp_path)
    prior = Prior([Parameter(name, Uniform(0, 1)) for name in names])
    with pytest.raises(PriorError, match=r"the prior is of \['omega_m'.*but theta has \['omega_m', 'sigma_8'\]"):
        Simulations.open(made.path, **made.places, prior=prior)


@pytest.mark.parametrize("row", [0, 149])
def test_theta_outside_its_prior_is_refused_with_row_name_value_and_bounds(tmp_path, row):
    made = layouts.group_of_columns(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file["params/sigma_8"][row] = 1.25
    with pytest.raises(PriorError, match=rf"theta row {row}: sigma_8 = 1\.25 is outside its prior \[0\.6, 1\]"):
        Simulations.open(made.path, **made.places, prior=layouts.PRIOR)


@pytest.mark.parametrize("prior", [None, layouts.PRIOR])
@pytest.mark.parametrize(("value", "row"), [(np.nan, 3), (np.inf, 149)])
def test_theta_that_is_not_finite_is_refused_with_its_row(tmp_path, prior, value, row):
    made = layouts.group_of_columns(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file["params/omega_m"][row] = value
    with pytest.raises(DataError, match=rf"theta row {row}: omega_m is {value}"):
        Simulations.open(made.path, **made.places, prior=prior)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "theta_1 is nan"), (7.5, r"theta_1 = 7\.5 is outside")])
def test_the_row_is_absolute_beyond_the_first_block(tmp_path, value, words):
    rows = 1_300_000
    theta = np.random.default_rng(0).random((rows, 2)).astype(np.float32)
    theta[1_234_567, 1] = value
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["theta"], file["x"] = theta, theta[:, 0]
    prior = Prior([Parameter(f"theta_{i}", Uniform(0, 1)) for i in range(2)])
    with pytest.raises(SbiError, match=rf"theta row 1234567: {words}"):
        Simulations.open(tmp_path / "a.h5", theta="theta", x="x", prior=prior)


def test_a_prior_that_is_a_function_is_asked_for_and_not_guessed(tmp_path):
    made = layouts.plain(tmp_path)
    cube = PriorTransform(layouts.NAMES, lambda u: layouts.LOW + 0.4 * u, lambda theta: (theta - layouts.LOW) / 0.4)
    with h5py.File(made.path, "r+") as file:
        file.attrs["prior"] = json.dumps(cube.describe())
    with pytest.raises(ExternalError, match=r"pass it as prior=\.\.\."):
        Simulations.open(made.path, **made.places)
    assert Simulations.open(made.path, **made.places, prior=cube).prior is cube


@pytest.mark.parametrize("text", ["flat", "[1, 2]", "3", ""])
def test_a_word_about_the_prior_that_is_no_table_is_no_prior(tmp_path, text):
    made = layouts.plain(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file.attrs["prior"] = text
    assert made.open().prior is None


def test_theta_that_is_not_of_its_prior_is_noted_stored_and_kept_from_what_rests_on_it(tmp_path, capsys):
    rng = np.random.default_rng(0)
    theta = layouts.LOW + 0.4 * rng.random((4000, 2)) ** [1, 1.3]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["theta"], file["x"], file["w"] = theta, layouts.vectors(theta), np.ones(4000)
    (tmp_path / "p.toml").write_text(layouts.TOML)
    words = ["--theta", "theta", "--x", "x", "--config", tmp_path / "p.toml", *SMALL]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert command("train", tmp_path / "a.h5", "-o", tmp_path / "a", *words) == 0
    assert "theta is not drawn from its prior, by sigma_8" in capsys.readouterr().err
    accused = load(tmp_path / "a" / "posterior.safetensors")
    assert accused.record["agreement"]["differs"] == ["sigma_8"]
    with pytest.raises(PriorError, match="evidence needs theta drawn from its prior, and by sigma_8 it was not"):
        accused.require_prior("evidence")
    assert command("train", tmp_path / "a.h5", "-o", tmp_path / "b", *words, "--proposal-weight", "w") == 0
    assert "not drawn" not in capsys.readouterr().err
    assert load(tmp_path / "b" / "posterior.safetensors").require_prior("evidence") == layouts.PRIOR
    command("train", tmp_path / "a.h5", "-o", tmp_path / "c", *words[:4], *SMALL)
    with pytest.raises(PriorError, match="evidence needs the prior, and training had none"):
        load(tmp_path / "c" / "posterior.safetensors").require_prior("evidence")
