"""What a user gives of the wrong kind is told in a sentence, at the door where it was given."""

import numpy as np
import pytest

import sbi_dgm
from sbi_dgm import Likelihood, Normal, Parameter, Prior, Samples, Simulations
from sbi_dgm import samples as room
from sbi_dgm.errors import SbiError

PRIOR = Prior([Parameter(name, Normal(0, 1)) for name in "ab"])
THETA = PRIOR.sample(60, 0)
DRAWS = Samples.of(PRIOR, np.stack([THETA, THETA]))
ONE = DRAWS.observation(0)


def arrays(**given):
    return Simulations.from_arrays(THETA, THETA, **given)


def campaign(**given):
    return sbi_dgm.simulate("two_moons", **({"n": 10, "out": "never.h5", "workers": 2} | given))


@pytest.mark.parametrize("door", [sbi_dgm.load, sbi_dgm.load_refined, Likelihood.load, Samples.load, Simulations.open])
@pytest.mark.parametrize("path", [None, 3, ["a.h5"]])
def test_what_is_no_path_is_told(door, path):
    with pytest.raises(SbiError, match=r"path = .*: give the path of a file or folder"):
        door(path)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: arrays(prior="uniform"), "prior = 'uniform': give a Prior"),
        (lambda: arrays(names="ab"), "names = 'ab': give a list of texts"),
        (lambda: arrays(observables={"x": 3}), r"observables\['x'\] = 3: give an Observable"),
        (lambda: arrays(observables=3), "observables = 3: give Observable by name"),
        (lambda: campaign(out=3), "path = 3: give the path"),
        (lambda: campaign(executor=3), "executor = 3: give a concurrent.futures.Executor"),
        (lambda: campaign(timeout="5"), "timeout = '5': give a number"),
        (lambda: campaign(repeats=1.5), "repeats = 1.5: a whole number, at least 1"),
        (lambda: DRAWS.observation(2), "observation 2 is not among the 2, 0 to 1"),
        (lambda: DRAWS.observation(-3), "observation -3 is not among"),
        (lambda: DRAWS.observation("a"), "observation = 'a': give a whole number"),
        (lambda: ONE[None], "unknown parameter None"),
        (lambda: ONE.corner(others=3), "others = 3: give Samples by legend entry"),
        (lambda: ONE.corner(others={"exact": THETA}), r"others\['exact'\] = .*: give Samples"),
        (lambda: sbi_dgm.calibrate(3, arrays()), "posterior = 3: give anything with names, sample and log_prob"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told(call, sentence):
    with pytest.raises(SbiError, match=sentence):
        call()


def test_numbers_of_numpy_are_numbers(tmp_path):
    """Also in what is written."""
    numbers = {"seed": np.int64(1), "shard_rows": np.int64(10), "repeats": np.uint8(2)}
    data = sbi_dgm.simulate("two_moons", np.int64(20), out=tmp_path / "a.h5", progress=False, **numbers)
    assert len(Simulations.open(tmp_path / "a.h5")) == len(data) == 20
    assert np.array_equal(DRAWS.observation(np.int64(1)).array, THETA)
    assert np.array_equal(DRAWS.observation(-1).array, THETA)


@pytest.mark.parametrize(("method", "package"), [("to_arviz", "arviz-base"), ("to_getdist", "getdist")])
def test_a_package_that_is_not_there_is_named(monkeypatch, method, package):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(room, "import_module", missing)
    with pytest.raises(SbiError, match=f"{package} is not installed: pip install {package}"):
        getattr(ONE, method)()
