"""Draws that a report rests on: kept in a file, and taken from there where they are the same."""

import h5py
import numpy as np
import pytest

from sbi_dgm import Simulations, calibrate
from sbi_dgm.diagnostics.evidence import Evidence, gathered
from sbi_dgm.errors import FileError, OptionError
from sbi_dgm.samples import Samples


class Counting:
    """N(x, width^2), which counts how often it is drawn from."""

    names = ("a",)

    def __init__(self, width: float = 1.0) -> None:
        self.width, self.calls = width, 0

    def fingerprint(self) -> str:
        return f"counting {self.width}"

    def sample(self, n, x, *, seed=None, log_prob=False):
        self.calls += 1
        noise = np.random.default_rng(seed).normal(size=(len(x["x"]), n, 1))
        return Samples(x["x"][:, None] + self.width * noise, (), -0.5 * noise[..., 0] ** 2)

    def log_prob(self, theta, x):
        return -0.5 * ((theta[:, 0] - x["x"][:, 0]) / self.width) ** 2


THETA = np.linspace(0, 1, 60)[:, None]
X = {"x": THETA + 0.1}


def made(posterior, path, theta=THETA, draws=30, seed=0) -> Evidence:
    return gathered(posterior, theta, X, draws, seed, path=path)


def test_the_same_draws_are_taken_from_the_file(tmp_path):
    posterior = Counting()
    before = made(posterior, tmp_path / "draws.h5")
    again = made(posterior, tmp_path / "draws.h5")
    assert posterior.calls == 1
    for one, other in zip(before[3:6], again[3:6], strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(made(posterior, None).draws, before.draws), "and are those that would have been drawn"


@pytest.mark.parametrize("change", [{"seed": 1}, {"draws": 31}, {"theta": THETA + 1}])
def test_what_decides_them_decides_whether_they_are_the_same(tmp_path, change):
    posterior = Counting()
    made(posterior, tmp_path / "draws.h5")
    made(posterior, tmp_path / "draws.h5", **change)
    assert posterior.calls == 2


def test_other_weights_draw_anew(tmp_path):
    made(Counting(), tmp_path / "draws.h5")
    other = Counting(2.0)
    assert made(other, tmp_path / "draws.h5").draws.std() > 1.5
    assert other.calls == 1


def test_a_posterior_without_a_fingerprint_is_drawn_from_again(tmp_path, monkeypatch):
    monkeypatch.delattr(Counting, "fingerprint")
    posterior = Counting()
    for calls in (1, 2):
        made(posterior, tmp_path / "draws.h5")
        assert posterior.calls == calls


def test_a_file_that_holds_none_is_refused_and_a_changed_byte_too(tmp_path):
    path = tmp_path / "draws.h5"
    path.write_text("no")
    with pytest.raises(FileError, match=r"draws.h5 holds no draws that can be read .*: remove it"):
        made(Counting(), path)
    path.unlink()
    made(Counting(), path)
    with h5py.File(path) as file:
        offset = file["draws"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as file:
        file.seek(offset + 8)
        file.write(b"\xff")
    with pytest.raises(FileError, match="remove it"):
        made(Counting(), path)


class Bounded(Counting):
    """It knows its density by a bound, below; with the latents of its own draws it would be above."""

    density = "bound"

    def sample(self, n, x, *, seed=None, log_prob=False):
        drawn = super().sample(n, x, seed=seed)
        return Samples(drawn.array, (), drawn.log_prob + 0.5)

    def log_prob(self, theta, x):
        centre = x["x"][:, :1] if theta.ndim == 3 else x["x"][:, 0]
        return -0.5 * (theta[..., 0] - centre) ** 2


def test_truths_and_draws_have_one_bound():
    found = made(Bounded(), None)
    assert found.drawn_log_prob.max() <= 0
    assert made(Counting(), None).drawn_log_prob.shape == (60, 30)


def test_what_lacks_a_constant_is_not_judged():
    class Unnormalised(Counting):
        density = "unnormalised"

    with pytest.raises(OptionError, match="known but for a constant cannot be judged"):
        calibrate(Unnormalised(), Simulations.from_arrays(THETA, X), progress=False)
