"""The learned likelihood against densities in closed form; roles that change places and back."""

import numpy as np
import pytest
from scipy import stats

import sbi_dgm
from sbi_dgm import Flow, Likelihood, Samples, Simulations, Training, fit
from sbi_dgm.cli import main
from sbi_dgm.data.exchanged import GIVEN, Roles, exchanged, fitted
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.distributions import JohnsonSU, LogNormal, LogUniform, Normal, Uniform
from sbi_dgm.errors import DataError, ExternalError, FileError, ObservationError, OptionError, PriorError, TrainingError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior, PriorTransform

PRIOR = Prior([Parameter("a", Uniform(-1, 1)), Parameter("s", LogUniform(0.1, 10))])
QUICK = {"training": Training(batch_size=200, max_rounds=30), "progress": False, "device": "cpu"}
SMALL = Flow(transforms=2, hidden=24, blocks=1)


def scaled(theta, rng):
    """x ~ N(a, s^2) twice: widths over two decades."""
    return theta[:, :1] + theta[:, 1:] * rng.standard_normal((len(theta), 2))


def log_scaled(theta, x):
    return stats.norm.logpdf(x, theta[..., :1], theta[..., 1:]).sum(-1)


def simulations(n=4000, seed=0):
    theta = PRIOR.sample(n, seed)
    return Simulations.from_arrays(theta, {"x": scaled(theta, np.random.default_rng(seed + 1))}, prior=PRIOR)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Likelihood:
    out = tmp_path_factory.mktemp("likelihood") / "run"
    return fit(simulations(), SMALL, learn="likelihood", out=out, **QUICK)


def check_density(log_q, log_p):
    """The mean of ln p - ln q over draws of p is their divergence: small, and positive up to its standard error."""
    difference = log_p - log_q
    error = difference.std() / np.sqrt(len(difference))
    assert -4 * error < difference.mean() < 0.12


def test_it_is_the_density_of_the_simulator(learned):
    theta = PRIOR.sample(2000, 5)
    x = scaled(theta, np.random.default_rng(6))
    check_density(learned.log_prob(x, theta), log_scaled(theta, x))
    with pytest.raises(AssertionError):
        check_density(learned.log_prob(x, np.minimum(theta * [1, 1.5], 10)), log_scaled(theta, x))


def test_of_nothing_there_is_nothing(learned):
    """No theta, no observations, and refinement where all theta lie outside of the prior."""
    assert learned.log_prob(np.zeros(2), np.empty((0, 2))).shape == (0,)
    assert learned.log_prob(np.empty((0, 2)), np.empty((0, 2))).shape == (0,)
    posterior = fit(simulations(300), SMALL, training=Training(max_rounds=1), progress=False, device="cpu")
    for power in (1.0, 0.5):
        outside = posterior.refined(learned, power=power).log_target([[5.0, 1.0], [-2.0, 1.0]], np.zeros(2))
        assert (outside == -np.inf).all()


def test_draws_for_many_theta_are_made_a_few_theta_at_once(learned, monkeypatch):
    theta = PRIOR.sample(9, 0)
    whole = learned.sample(theta, 400, seed=3)
    monkeypatch.setattr("sbi_dgm.likelihood.AT_ONCE", 4 * 2)
    parts = learned.sample(theta, 400, seed=3)
    np.testing.assert_array_equal(parts, learned.sample(theta, 400, seed=3))
    assert parts.shape == whole.shape == (9, 400, 2)
    assert all(stats.ks_2samp(one[:, 0], other[:, 0]).pvalue > 1e-4 for one, other in zip(parts, whole, strict=True))
    assert not np.array_equal(parts[2:4, :, 0] - parts[2:4].mean(), parts[4:6, :, 0] - parts[4:6].mean())
    assert stats.ks_2samp(parts[theta[:, 1].argmax(), :, 0], whole[theta[:, 1].argmin(), :, 0]).pvalue < 1e-4


def test_observables_may_have_names_that_parameters_may_not(tmp_path):
    name = "observation"
    data = Simulations.from_arrays(PRIOR.sample(200, 0), {name: np.random.default_rng(0).normal(size=200)}, prior=PRIOR)
    how = QUICK | {"training": Training(max_rounds=1)}
    found = fit(data, SMALL, learn="likelihood", out=tmp_path / "run", **how)
    expected = found.log_prob({name: 0.3}, [0.0, 1.0])
    assert Likelihood.load(tmp_path / "run" / "likelihood.safetensors").log_prob({name: 0.3}, [0.0, 1.0]) == expected


def test_a_number_that_is_the_same_in_all_training_rows_is_named():
    x = np.random.default_rng(0).normal(size=(200, 2))
    x[:, 1], label = 0.5, np.repeat([0, 1], [180, 20])
    x[190, 1] = 0.7
    data = Simulations.from_arrays(PRIOR.sample(200, 0), {"x": x}, prior=PRIOR, split=label)
    with pytest.warns(UserWarning, match="x"), pytest.raises(DataError, match=r"x\[1\] is 0.5 in all training rows"):
        fit(data, SMALL, learn="likelihood", **QUICK)


def test_it_is_normalised(learned):
    grid = np.linspace(-60, 60, 1201)
    x = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_q = learned.log_prob(x, np.broadcast_to([0.3, 3.0], (len(x), 2)))
    assert abs(np.exp(log_q).sum() * 0.01 - 1) < 2e-3


def test_draws_have_the_simulators_moments(learned):
    for theta in ([0.5, 0.4], [-0.3, 1.0], [0.2, 5.0]):
        x = np.asarray(learned.sample(theta, 4000, seed=3))
        assert x.shape == (4000, 2)
        assert (np.abs(x.mean(0) - theta[0]) < 0.12 * theta[1]).all()
        assert (np.abs(x.std(0) / theta[1] - 1) < 0.12).all()


def test_one_x_with_many_theta_and_stacks_agree(learned):
    theta, x = PRIOR.sample(6, 1), np.array([[0.1, 0.2], [1.0, -1.0]])
    many = learned.log_prob(x[0], theta)
    assert many.shape == (6,)
    assert learned.log_prob(x[0], theta[0]) == pytest.approx(float(many[0]), abs=1e-5)
    stack = learned.log_prob(x, np.stack([theta, theta]))
    np.testing.assert_allclose(stack[0], many, rtol=0, atol=1e-4)
    np.testing.assert_allclose(learned.log_prob(x, theta[:2]), stack[[0, 1], [0, 1]], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(learned.log_likelihood(theta, x[0]), many)
    assert learned.sample(theta, 3, seed=0).shape == (6, 3, 2)


def test_it_saves_and_loads_to_the_bit(learned, tmp_path):
    theta, x = PRIOR.sample(4, 1), np.array([0.1, 0.2])
    learned.save(tmp_path / "l.safetensors")
    again = Likelihood.load(tmp_path / "l.safetensors")
    assert repr(again) == "Likelihood(x | a, s; flow)"
    np.testing.assert_array_equal(again.log_prob(x, theta), learned.log_prob(x, theta))
    np.testing.assert_array_equal(again.sample(theta, 5, seed=2), learned.sample(theta, 5, seed=2))
    with pytest.raises(FileError, match=r"holds a likelihood: Likelihood.load"):
        sbi_dgm.load(tmp_path / "l.safetensors")


def test_a_posterior_is_no_likelihood(tmp_path):
    posterior = fit(simulations(200), SMALL, training=Training(max_rounds=1), progress=False)
    posterior.save(tmp_path / "p.safetensors")
    with pytest.raises(FileError, match=r"holds a posterior: load"):
        Likelihood.load(tmp_path / "p.safetensors")


def test_a_run_of_one_kind_is_not_resumed_as_the_other(tmp_path):
    short = {"training": Training(max_rounds=1), "progress": False, "out": tmp_path}
    fit(simulations(200), SMALL, learn="likelihood", **short)
    assert (tmp_path / "likelihood.safetensors").exists()
    with pytest.raises(FileError, match="finished run"):
        fit(simulations(200), SMALL, **short)
    (tmp_path / "likelihood.safetensors").unlink()
    with pytest.raises(TrainingError, match="started with learn = likelihood"):
        fit(simulations(200), SMALL, resume=True, **short)


def test_theta_outside_its_prior_is_refused(learned):
    with pytest.raises(PriorError, match="outside its prior"):
        learned.log_prob(np.zeros(2), [0.0, 20.0])
    with pytest.raises(ObservationError, match="theta has shape"):
        learned.sample([0.0, 1.0, 2.0], 3)


def test_a_posterior_refined_by_it_is_nearer_to_the_truth(learned):
    """The posterior of s for one x, against quadrature: an untrained posterior (the prior) becomes right."""
    posterior = fit(simulations(200), SMALL, training=Training(max_rounds=1, learning_rate=1e-9), progress=False)
    x = np.array([0.1, 0.25])
    rough = posterior.sample(4000, x, seed=0)["s"]
    fine = posterior.refined(learned, effective=3000).sample(4000, x, seed=0)["s"]
    a, z = np.linspace(-1, 1, 400), np.linspace(np.log(0.1), np.log(10), 400)
    grid = np.stack(np.meshgrid(a, np.exp(z), indexing="ij"), -1)
    share = np.exp(log_scaled(grid, x)).sum(0)
    mean, size = share @ z / share.sum(), np.log(fine).std()
    assert abs(np.log(rough).mean() - mean) > 3 * abs(np.log(fine).mean() - mean)
    assert abs(np.log(fine).mean() - mean) < 0.15 * size


# Whole numbers


# Roles


def test_rows_keep_their_part_of_the_split_and_failed_ones_drop_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    x[::7] = np.nan
    data = Simulations.from_arrays(rng.normal(size=(300, 2)), {"x": x}, group=np.arange(300) // 3)
    parts = data.split(SplitRule())
    found = exchanged(data, parts, 0)
    again = found.split(SplitRule())
    for name, rows in vars(parts).items():
        np.testing.assert_array_equal(found.theta[vars(again)[name]], x[rows])
    np.testing.assert_array_equal(found.columns[f"x/{GIVEN}"][:], data.theta[data.valid])


def test_vectors_become_observables_again():
    roles = Roles({"a": Observable((2, 3)), "n": Observable(())}, {"a": "<f4", "n": "|u1"}, ["t"], None)
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(5, 2, 3)).astype("f4"), "n": rng.integers(0, 9, 5)}
    v = roles.vector(x) + 0.5 * roles.whole
    back = roles.observed(v)
    assert {name: (a.shape, a.dtype.name) for name, a in back.items()} == {
        "a": ((5, 2, 3), "float32"),
        "n": ((5,), "int64"),
    }
    assert all(np.array_equal(back[name], x[name]) for name in x)
    assert len(roles.entries) == 7


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        (lambda z: 5 + 2 * z, Normal),
        (lambda z: np.exp(1 + z), LogNormal),
        (lambda z: 3 + np.sinh(1.5 * z), JohnsonSU),
        (lambda z: 1000 + z, Normal),
        (lambda z: z * (1 + 0.3 * np.abs(z)), Normal),
    ],
)
def test_the_coordinate_is_the_one_that_makes_an_entry_normal(draw, kind):
    v = draw(np.random.default_rng(0).standard_normal(5000))
    found = fitted(v, bool((v > 0).all()))
    assert isinstance(found, kind)
    straight = np.corrcoef(np.sort(found.to_normal(v)), stats.norm.ppf((np.arange(5000) + 0.5) / 5000))[0, 1]
    assert straight > 0.98


def test_without_the_knowledge_that_they_are_positive_numbers_are_not_log_normal():
    v = np.exp(np.random.default_rng(0).standard_normal(5000))
    assert not isinstance(fitted(v, positive=False), LogNormal)


def made(x, kind="array"):
    observable = Observable(x.shape[1:], kind=kind)
    return Simulations.from_arrays(
        np.random.default_rng(0).normal(size=(len(x), 1)), {"x": x}, observables={"x": observable}
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (made(np.random.default_rng(0).normal(size=(60, 513))), "x has 513 numbers: a likelihood takes up to 512"),
        (made(np.ones((60, 4, 2)), "set"), "is a set"),
        (made(np.ones((60, 2))), r"x\[0\], x\[1\]: the same in all rows: x has no density"),
    ],
)
def test_what_has_no_likelihood_is_refused(data, sentence):
    with pytest.raises(DataError, match=sentence):
        fit(data, learn="likelihood", progress=False)


def test_numbers_that_never_vary_are_no_part_of_the_density():
    """The likelihood is that of x without them, to the last digit; for other values of them there is none."""
    data, how = simulations(300), QUICK | {"learn": "likelihood", "training": Training(max_rounds=2)}
    x = data.columns["x/x"][:]
    wide = np.insert(x, 1, 4.5, axis=1)
    with pytest.warns(UserWarning, match=r"^x\[1\] = 4.5 in all rows"):
        found = fit(Simulations.from_arrays(data.theta, {"x": wide}, prior=data.prior), SMALL, **how)
    expected = fit(data, SMALL, **how)
    np.testing.assert_array_equal(found.log_prob(wide[:9], data.theta[:9]), expected.log_prob(x[:9], data.theta[:9]))
    drawn = found.sample(data.theta[:2], 7, seed=1)
    np.testing.assert_array_equal(drawn, np.insert(expected.sample(data.theta[:2], 7, seed=1), 1, 4.5, axis=-1))
    wide[3, 1] = 5
    with pytest.raises(ObservationError, match=r"observation 3: x\[1\] is 5, and 4.5 in all simulations"):
        found.log_prob(wide[:9], data.theta[:9])


def test_what_only_posteriors_do_is_refused():
    data = simulations(100)
    with pytest.raises(OptionError, match="parameters belongs to posteriors"):
        fit(data, learn="likelihood", parameters=["a"])  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="unknown role 'evidence'"):
        fit(data, learn="evidence")  # type: ignore[call-overload]


def test_a_prior_that_is_a_function_must_be_given_again(tmp_path):
    prior = PriorTransform(["a"], lambda u: 2 * u, lambda v: v / 2)
    theta = prior.sample(200, 0)
    data = Simulations.from_arrays(theta, {"x": theta + np.random.default_rng(0).normal(size=(200, 1))}, prior=prior)
    likelihood = fit(data, SMALL, learn="likelihood", training=Training(max_rounds=1), progress=False)
    likelihood.save(tmp_path / "l.safetensors")
    with pytest.raises(ExternalError, match="pass it as prior"):
        Likelihood.load(tmp_path / "l.safetensors")
    again = Likelihood.load(tmp_path / "l.safetensors", prior=prior)
    np.testing.assert_array_equal(again.log_prob([0.3], [0.5]), likelihood.log_prob([0.3], [0.5]))


def test_members_make_a_mixture():
    likelihood = fit(
        simulations(300),
        SMALL,
        learn="likelihood",
        members=2,
        workers=1,
        **(QUICK | {"training": Training(max_rounds=1)}),
    )
    assert len(likelihood.record["members"]) == 2
    assert np.isfinite(likelihood.log_prob(np.zeros((3, 2)), PRIOR.sample(3, 0))).all()


# The command line


def test_the_commands_train_one_and_refine_by_it(tmp_path, capsys):
    data = simulations(300).save(tmp_path / "sims.h5")
    np.save(tmp_path / "x.npy", np.array([0.1, 0.3]))
    quick = ["--set", "training.max_rounds=1", "--device", "cpu"]
    for learn in ("posterior", "likelihood"):
        assert main(["train", str(data.path), "--learn", learn, "-o", str(tmp_path / learn), *quick]) == 0
    assert f"{tmp_path}/likelihood/likelihood.safetensors: flow" in capsys.readouterr().out
    files = {name: str(tmp_path / name / f"{name}.safetensors") for name in ("posterior", "likelihood")}
    drawn = ["sample", files["posterior"], str(tmp_path / "x.npy"), "-n", "200", "-o", str(tmp_path / "s.h5")]
    assert main([*drawn, "--refine", files["likelihood"], "--effective", "500"]) == 0
    said = capsys.readouterr().out
    assert "observation 0: " in said
    assert "Pareto k" in said
    assert Samples.load(tmp_path / "s.h5").array.shape == (200, 2)
    assert main(["inspect", files["likelihood"]]) == 0
    said = capsys.readouterr().out
    assert "likelihood of x[0], x[1]" in said
    assert "prior: known" in said


@pytest.mark.parametrize(
    ("likelihood", "sentence"),
    [("missing.safetensors", "unknown simulator"), ("benchmark_toys:Line", "has no log_likelihood")],
)
def test_what_cannot_refine_is_refused(tmp_path, capsys, likelihood, sentence):
    fit(simulations(100), SMALL, training=Training(max_rounds=1), progress=False).save(tmp_path / "p.safetensors")
    np.save(tmp_path / "x.npy", np.zeros(2))
    words = ["sample", str(tmp_path / "p.safetensors"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "s.h5")]
    assert main([*words, "--refine", likelihood]) == 2
    assert sentence in capsys.readouterr().err
