"""Values of wrong kinds are refused at the door, in one sentence of ours; numbers of numpy and torch become plain."""

import json
import pickle
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from posterior_toys import BOX, UNIT, Half, stubbed

import sbi_dgm
from sbi_dgm import Observable, Parameter, Prior, Simulations, kinds
from sbi_dgm.command import CommandSimulator
from sbi_dgm.distributions import DISTRIBUTIONS, TruncatedNormal, Uniform
from sbi_dgm.embeddings.moped import moped
from sbi_dgm.errors import DataError, ExternalError, ObservationError, OptionError, PriorError
from sbi_dgm.loop import Training
from sbi_dgm.priors import BoundedPrior, MultivariateNormal, PriorTransform, restore
from sbi_dgm.refinement import Refined
from sbi_dgm.simulator import FailedRowsError

FRAME = pd.DataFrame({"a": [1.0] * 9, "b": [2.0] * 9})
NO_NUMBERS = [None, "1", "", [1.0], {}, {1.0}, 1j, True, np.True_, FRAME, np.ones(1), np.array(1j), Decimal(1), print]
NO_NUMBERS += [torch.ones(2), torch.tensor(True), np.timedelta64(1, "ns"), np.datetime64(1, "ns"), np.ma.masked]
NO_WHOLE = [*NO_NUMBERS, 2.0, np.float64(2), float("nan"), float("inf"), torch.tensor(2.0), np.array(2.0)]
PROPER = {"truncated_normal": (0.0, 1.0, -1.0, 1.0), "half_normal": (1.0,), "johnson_su": (0.0, 1.0, 0.0, 1.0)}
HALVES = np.float32(0.5), np.array(0.5), torch.tensor(0.5, requires_grad=True), np.float64(0.5), np.longdouble(0.5)


def name_of(value):
    return type(value).__name__


def check_sentence(error, *words):
    """One sentence of ours, on one line, that ends with a point."""
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 400
    assert said.endswith(".")
    assert all(word in said for word in words)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=name_of)
def test_what_is_no_number_is_refused(value):
    for refused in (kinds.number, kinds.whole):
        with pytest.raises(PriorError) as error:
            refused("sd", value, error=PriorError)
        check_sentence(error, "sd = ", "number")


def test_numbers_become_plain_and_whole_ones_stay_whole():
    assert [type(kinds.number("a", value)) for value in HALVES] == [float] * len(HALVES)
    assert [kinds.number("a", value) for value in HALVES] == [0.5] * len(HALVES)
    for value in (3, np.int8(3), np.array(3), torch.tensor(3), np.uint64(3)):
        assert [type(f("a", value)) for f in (kinds.number, kinds.whole)] == [int, int]
        assert kinds.whole("a", value, 3) == 3
    with pytest.raises(OptionError, match="fits into 64 bits"):
        kinds.number("a", 10**400)


@pytest.mark.parametrize("value", [*NO_WHOLE, -1], ids=name_of)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(OptionError) as error:
        kinds.whole("n", value, 0)
    check_sentence(error, "n = ", "give a whole number, 0 or more")


@pytest.mark.parametrize(
    "value", [None, "1", ["a"], [[1, 2], [3]], 1j, {}, [None], [1, "1"], np.array(["1.0"]), [1 + 0j]]
)
def test_what_is_no_array_of_real_numbers_is_refused(value):
    with pytest.raises(DataError) as error:
        kinds.floats("theta", value, DataError)
    check_sentence(error, "theta = ", "number")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=name_of)
@pytest.mark.parametrize("family", DISTRIBUTIONS)
def test_a_distribution_of_no_numbers_is_refused(family, value):
    numbers = PROPER.get(family, (0.5, 2.0))
    for place in range(len(numbers)):
        with pytest.raises(PriorError) as error:
            DISTRIBUTIONS[family](*numbers[:place], value, *numbers[place + 1 :])
        check_sentence(error, "give a number")


@pytest.mark.parametrize("frozen", [("a",), (None,), (0, None), (0, "1"), (1j,)], ids=str)
def test_a_distribution_of_scipy_without_numbers_is_refused(frozen):
    with pytest.raises(PriorError, match="no distribution of one number"):
        Parameter("a", scipy.stats.norm(*frozen))


@pytest.mark.parametrize("low", [np.array(0.25), torch.tensor(0.25), np.longdouble(0.25)], ids=name_of)
def test_distributions_of_any_numbers_are_json(low):
    assert json.dumps(Uniform(low, 1).describe()) == '{"uniform": [0.25, 1]}'
    assert Uniform(low, 1) == Uniform(0.25, 1)
    assert hash(TruncatedNormal(low, 1, 0, 1)) == hash(TruncatedNormal(0.25, 1, 0, 1))


@pytest.mark.parametrize("given", [{"name": 5}, {"name": None}, {"label": 5}, {"unit": b"s"}, {"label": None}], ids=str)
def test_names_labels_and_units_are_texts(given):
    with pytest.raises(PriorError) as error:
        Parameter(**{"name": "a", "prior": UNIT.parameters[0].prior} | given)
    check_sentence(error, f"{next(iter(given))} of a parameter = ", "give a text")


WRONG_OBSERVABLES = [
    ({"shape": 3}, "shape = 3: give a list of lengths, such as"),
    ({"shape": None}, "shape = None"),
    ({"shape": "3"}, "shape = '3'"),
    ({"shape": (2.0,)}, "a length in shape = 2.0: give a whole number, 0 or more"),
    ({"shape": (-1,)}, "a length in shape = -1"),
    ({"shape": (None, 2)}, "a length in shape = None"),
    ({"names": "ab"}, "names = 'ab': give a list of texts"),
    ({"names": (1, 2)}, "an entry of names = 1"),
    ({"kind": None}, "kind of an observable = None"),
    ({"kind": ["set"]}, "kind of an observable"),
    ({"unit": 5}, "unit of an observable = 5"),
    ({"label": FRAME}, "label of an observable = a value of type DataFrame"),
    ({"optional": "no"}, "optional = 'no': give True or False"),
]


@pytest.mark.parametrize(("given", "words"), WRONG_OBSERVABLES, ids=str)
def test_an_observable_of_wrong_kinds_is_refused(given, words):
    with pytest.raises(OptionError) as error:
        Observable(**{"shape": (2,)} | given)
    check_sentence(error, words)


@pytest.mark.parametrize("shape", [[2, 3], np.array([2, 3]), (np.int64(2), 3), torch.tensor([2, 3])], ids=name_of)
def test_shapes_and_names_of_an_observable_are_plain(shape):
    made = Observable(shape, names=np.array(["a", "b"]), optional=np.False_)
    assert made == Observable((2, 3), names=("a", "b"))
    assert Observable.restore(json.loads(json.dumps(made.describe()))) == made


def test_files_without_labels_are_read_as_before():
    told = {"name": "a", "prior": {"uniform": [0, 1]}, "label": None, "unit": None}
    assert Parameter.restore(told) == Parameter("a", Uniform(0, 1))


A, B = BOX.parameters
WRONG_PRIORS = [
    (lambda: Prior(A), "parameters = "),
    (lambda: Prior(None), "parameters = None: give a list of parameters"),
    (lambda: Prior([A, 5]), "an entry of parameters = 5: give a Parameter"),
    (lambda: Prior([("a", Uniform(0, 1))]), "an entry of parameters"),
    (lambda: Prior({"a": Uniform(0, 1)}), "give a list of parameters"),
    (lambda: MultivariateNormal("ab", [0, 0], np.eye(2)), "parameters = 'ab': give a list"),
    (lambda: MultivariateNormal(["a"], "0", [[1.0]]), "mean = '0': give real numbers"),
    (lambda: MultivariateNormal(["a", "b"], [0, 0], [[1, 0], [1]]), "covariance = "),
    (lambda: MultivariateNormal(["a"], [1j], [[1.0]]), "mean = "),
    (lambda: PriorTransform("abc", np.copy, np.copy), "parameters = 'abc': give a list"),
    (lambda: PriorTransform(["a"], None, np.copy), "from_cube = None: give a function"),
    (lambda: PriorTransform(["a"], np.copy, "identity"), "to_cube = 'identity': give a function"),
    (lambda: BoundedPrior(["a"], UNIT, 0.0, 1.0), "1 parameters need as many bounds; got () and ()"),
    (lambda: BoundedPrior(["a"], UNIT, ["0"], [1.0]), "low = ['0']: give real numbers"),
    (lambda: BoundedPrior(["a"], None, [0], [1.0]), "density = None: give an object with sample"),
    (lambda: BOX.log_prob("theta"), "theta = 'theta': give real numbers"),
    (lambda: BOX.log_prob([[0.1, 1.0], [0.2]]), "theta = "),
    (lambda: BOX.log_prob([1j, 1]), "theta = "),
    (lambda: BOX.standardise(None), "theta = None: give a number"),
    (lambda: BOX.standardise([3.0, 1.0]), "theta row 0: a = 3.0 is outside its prior [-1, 1] (1 of 1 rows"),
    (lambda: BOX.standardise(np.full((2, 3, 2), 3.0)), "theta row 0: a = 3.0 is outside its prior [-1, 1] (6 of"),
    (lambda: BOX.marginal("ab"), "names = 'ab': give a list of texts"),
    (lambda: BOX.marginal(None), "names = None: give a list of texts"),
    (lambda: BOX.marginal([0]), "an entry of names = 0: give a text"),
    (lambda: PriorTransform(["a"], np.copy, np.copy).marginal("a"), "names = 'a': give a list"),
]


@pytest.mark.parametrize(("refused", "words"), WRONG_PRIORS)
def test_a_prior_of_wrong_kinds_is_refused(refused, words):
    with pytest.raises(PriorError) as error:
        refused()
    check_sentence(error, words)


def test_a_prior_passed_for_that_of_a_file_has_to_be_one():
    told = PriorTransform(["a"], np.copy, np.copy).describe()
    with pytest.raises(ExternalError, match="prior = 5: give the prior of the file"):
        restore(told, 5)


@pytest.mark.parametrize("n", [*NO_WHOLE, -1], ids=name_of)
def test_numbers_of_draws_are_whole(n):
    for prior in (BOX, MultivariateNormal(["a"], [0], [[1]])):
        with pytest.raises(OptionError, match=r"n = .*: give a whole number, 0 or more"):
            prior.sample(n, 0)


TOY = stubbed(UNIT, Half(), 1)
LINE = np.linspace(0.1, 0.9, 300)[:, None]
DATA = Simulations.from_arrays(LINE, {"x": LINE}, prior=UNIT)
REFINED = TOY.refined(lambda theta, x: np.zeros(len(theta)), effective=100)
NO_FUNCTION = TOY.refined(lambda theta, x: "none", effective=100)
WRONG_USE = [
    *((lambda v=v: Refined(TOY, print, effective=v), OptionError, "effective = ") for v in (None, "5", [5], True)),
    *((lambda v=v: Refined(TOY, print, effective=9, cap=v), OptionError, "cap = ") for v in (None, 1e6, "5")),
    *((lambda v=v: Refined(TOY, print, effective=9, power=v), OptionError, "power = ") for v in (None, "1", [1])),
    *((lambda v=v: REFINED.sample(v, [0.5]), OptionError, "n = ") for v in (2.5, None, float("nan"), "3")),
    (lambda: REFINED.sample(3, [0.5], report=5), OptionError, "report = 5: give a function"),
    (lambda: REFINED.log_prob("theta", [0.5]), ObservationError, "theta"),
    (lambda: REFINED.log_prob(np.zeros((2, 3, 1)), [0.5]), ObservationError, "theta has shape (2, 3, 1); expected"),
    (lambda: NO_FUNCTION.log_prob([0.5], [0.5]), ObservationError, "the log-likelihood = 'none': give real numbers"),
    (lambda: REFINED.pooled("sims.h5"), OptionError, "data = 'sims.h5': give sbi_dgm.Simulations"),
    (lambda: REFINED.pooled(DATA, draws="512"), OptionError, "draws = '512': give a whole number"),
    (lambda: REFINED.pooled(DATA, draws=float("nan")), OptionError, "draws = nan"),
    (lambda: REFINED.pooled(DATA, max_rows=None), OptionError, "max_rows = None"),
    (lambda: TOY.repaired("sims.h5"), OptionError, "data = 'sims.h5': give sbi_dgm.Simulations"),
    (lambda: TOY.repaired(DATA, draws=None), OptionError, "draws = None"),
    (lambda: TOY.repaired(DATA, draws=200.5), OptionError, "draws = 200.5"),
    (lambda: sbi_dgm.pretrained(3), OptionError, "posterior = 3: give what fit(...) or load(...) returned"),
    (lambda: sbi_dgm.pretrained("run/posterior.safetensors"), OptionError, "give what fit(...)"),
    (lambda: sbi_dgm.pretrained(REFINED), OptionError, "give what fit(...)"),
    (lambda: moped("two_mons"), OptionError, "unknown simulator 'two_mons': did you mean 'two_moons'"),
    (lambda: moped(5), OptionError, "5 is no simulator"),
    (lambda: moped("gaussian_linear", np.zeros(10), log="x"), OptionError, "log = 'x': give a list of texts"),
    (lambda: moped("gaussian_linear", np.zeros(10), simulations="9"), OptionError, "simulations = '9'"),
    (lambda: sbi_dgm.run_benchmark("quick", out="x"), OptionError, "suite = 'quick': give a Suite"),
    (lambda: sbi_dgm.run_benchmark(SUITE, out=None), OptionError, "out = None: give a folder"),
    (lambda: sbi_dgm.run_benchmark(SUITE, out="x", workers="2"), OptionError, "workers = '2'"),
    (lambda: sbi_dgm.run_benchmark(SUITE, out="x", workers=2, timeout="9"), OptionError, "timeout = '9'"),
    (lambda: Training(decay=float("inf")), OptionError, "Training(decay=inf)"),
]
SUITE = sbi_dgm.Suite(tasks=["two_moons"])


@pytest.mark.parametrize(("refused", "kind", "words"), WRONG_USE)
def test_wrong_kinds_in_use_are_refused(refused, kind, words):
    with pytest.raises(kind) as error:
        refused()
    check_sentence(error, words)


@pytest.fixture(scope="module")
def likelihood():
    x = np.random.default_rng(0).normal(size=(200, 2))
    data = Simulations.from_arrays(BOX.sample(200, 0), {"x": x}, prior=BOX)
    quick = {"training": Training(max_rounds=1), "progress": False, "device": "cpu"}
    return sbi_dgm.fit(data, sbi_dgm.Flow(transforms=1, hidden=4, blocks=1), learn="likelihood", **quick)


@pytest.mark.parametrize("theta", ["theta", [[0.1, 1], [2]], np.zeros((2, 2, 2)), np.empty((0, 2))], ids=name_of)
def test_a_likelihood_refuses_what_is_no_theta(likelihood, theta):
    with pytest.raises(ObservationError) as error:
        likelihood.sample(theta, 3)
    check_sentence(error, "theta")


def test_theta_of_a_likelihood_may_be_a_frame(likelihood):
    frame = pd.DataFrame({"b": [1.0], "a": [0.5]})
    assert likelihood.log_prob(np.zeros((1, 2)), frame) == likelihood.log_prob(np.zeros((1, 2)), [[0.5, 1.0]])
    with pytest.raises(ObservationError, match="theta is no array of numbers"):
        likelihood.log_prob(np.zeros(2), "theta")


WRONG_COMMANDS = [
    ({"name": 5}, "name = 5: give a text"),
    ({"prior": None}, "prior = None: give a Prior"),
    ({"observables": Observable((1,))}, "give a dict of observables by name"),
    ({"observables": {}}, "there is no observable"),
    ({"observables": {"x": (1,)}}, "observable 'x' = (1,): give an Observable"),
    ({"observables": {1: Observable((1,))}}, "the name of an observable = 1"),
    ({"command": 5}, "command = 5: give a list of arguments"),
    ({"command": {"sh": 1}}, "give a list of arguments"),
    ({"output": None}, "output = None: give a file"),
    ({"output": {"x": 5}}, "output = 5: give a file"),
    ({"timeout": "9"}, "timeout = '9': give a number"),
    ({"timeout": 0}, "timeout = 0: give seconds above 0"),
    ({"version": 2}, "version = 2: give a text"),
]


@pytest.mark.parametrize(("given", "words"), WRONG_COMMANDS, ids=str)
def test_a_command_of_wrong_kinds_is_refused(given, words):
    usual = {"name": "toy", "prior": UNIT, "observables": {"x": Observable((1,))}, "output": Path("x.npy")}
    with pytest.raises(OptionError) as error:
        CommandSimulator(**usual | {"command": ["toy", "{theta}"]} | given)
    check_sentence(error, words)


def test_failed_rows_survive_pickling():
    found = pickle.loads(pickle.dumps(FailedRowsError({"x": np.ones(2)}, {1: ValueError("no")})))
    assert str(found) == "1 rows failed, first row 1: ValueError: no"
    assert found.x["x"].tolist() == [1, 1]
    assert list(found.errors) == [1]


def test_failed_rows_without_a_failed_row_are_refused():
    with pytest.raises(OptionError, match="return x instead"):
        FailedRowsError(np.ones(2), {})
