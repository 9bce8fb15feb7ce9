r"""A resonance on a falling background: where is the bump, how wide is it, how many events are in it?

The signal has a true mass t of the Breit-Wigner (Cauchy) density about m of full width Gamma, non-relativistic; the
background falls as exp(-t / tau) between t_0 = a - 8 sigma and t_1 = b + 8 sigma. The detector adds N(0, sigma^2), and
what falls into the window [a, b] is seen. There the signal's density is Voigt's, divided by its share A of the window,
and the background's is exponential still, but for 1e-15 of it:

.. math::
    s(y) &= \frac{V(y - m;\, \sigma, \Gamma / 2)}{A(m, \Gamma)}, \qquad
    A = \int N(e; 0, \sigma^2) \big[F(b - e) - F(a - e)\big] de, \quad
    F(t) = \tfrac1\pi \arctan \frac{t - m}{\Gamma / 2}, \\
    b(y) &= \frac{e^{-y / \tau} / \tau}{e^{-a / \tau} - e^{-b / \tau}} .

A's integral is Gauss-Hermite's: as m stays 10 sigma inside the window, F is smooth there. N_b background events are
expected in the window, and f is the signal's share of what is expected, r = f / (1 - f) its ratio to the background. So
the number of events speaks of f too, in the extended likelihood (Barlow 1990, doi:10.1016/0168-9002(90)91334-8) of n
events, in an order that means nothing,

.. math::
    p(y_1 \ldots y_n, n \,|\, m, \Gamma, f) = \frac{e^{-N_b (1 + r)}}{n!} \prod_i N_b \big[r\, s(y_i) + b(y_i)\big] .
"""

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, voigt_profile
from scipy.stats import poisson

from sbi_dgm.distributions import Uniform
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.collider.members import padded

LOW, HIGH = 100.0, 160.0  # GeV, the window
RESOLUTION, SLOPE = 1.5, 40.0  # GeV, sigma and tau
BIRTH = LOW - 8 * RESOLUTION, HIGH + 8 * RESOLUTION  # true masses of the background
MOST = 0.5  # the largest f
OVERFLOW = 1e-10  # the largest chance that a row has no room
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
BINS = 60  # of the quick likelihood
TERMS = 2**18  # of the likelihood in memory at once


class Events(NamedTuple):
    """Events of all rows behind each other, (n,) each."""

    row: np.ndarray
    signal: np.ndarray
    mass: np.ndarray
    seen: np.ndarray


class Bump:
    """The problem "bump".

    Args:
        background: N_b, the number of background events expected in the window.

    """

    name = "bump"
    version = "1"
    fiducial = np.array([125.0, 2.0, 0.25])

    def __init__(self, background: float = 180.0) -> None:
        self.background = background
        self.prior = Prior(
            [
                Parameter("mass", Uniform(115, 145), "m", "GeV"),
                Parameter("width", Uniform(0.5, 6), r"\Gamma", "GeV"),
                Parameter("fraction", Uniform(0.1, MOST), "f"),
            ]
        )
        self.room = int(poisson(background / (1 - MOST)).isf(OVERFLOW))
        widest = np.array([[145.0, 6.0, MOST]])
        signal, falls = self._expected(widest)
        self.birth_room = int(poisson(signal[0] + falls[0]).isf(OVERFLOW))
        self.observables = {"events": Observable((self.room, 2), "GeV", names=("mass", "there"), kind="set")}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._selected(self._events(theta, rng), len(theta))

    def stages(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The stages of one draw, sets of events.

        "parton" (B, P, 3): true mass [GeV], 1 for signal, there; "detector" (B, P, 2): seen mass [GeV], there, of the
        same events; "events" (B, M, 2): those in the window.
        """
        events, size = self._events(theta, rng), (len(theta), self.birth_room)
        return {
            "parton": padded(events.row, (events.mass, events.signal), size),
            "detector": padded(events.row, (events.seen,), size),
            "events": self._selected(events, len(theta)),
        }

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 3), (M, 2) -> (...); -inf where an event is outside the window."""
        mass = x[x[:, 1] > 0, 0].astype(np.float64)
        return self._log_likelihood(theta, mass, np.ones(len(mass)))

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 3) for any x, by importance resampling; masses in bins of a GeV lead there, x makes the weights."""
        return posterior_draws(self.log_likelihood, self.prior, x, n, rng, rough=self._binned)[0]

    def intensity(self, theta: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """Expected events for each GeV at a seen mass [GeV] in the window: (B, 3), (n,) -> (B, n)."""
        place, width, fraction = theta.T
        ratio = fraction / (1 - fraction) / acceptance(place, width)
        signal = voigt_profile(mass - place[:, None], RESOLUTION, width[:, None] / 2)
        return self.background * (ratio[:, None] * signal + falling(mass))

    def _expected(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected events (B,) of signal and background, wherever they are seen."""
        mass, width, fraction = theta.T
        share = (np.exp(-LOW / SLOPE) - np.exp(-HIGH / SLOPE)) * np.exp(RESOLUTION**2 / (2 * SLOPE**2))
        share /= np.exp(-BIRTH[0] / SLOPE) - np.exp(-BIRTH[1] / SLOPE)
        signal = self.background * fraction / (1 - fraction) / acceptance(mass, width)
        return signal, np.full(len(theta), self.background / share)

    def _events(self, theta: np.ndarray, rng: np.random.Generator) -> Events:
        signal, background = self._expected(theta)
        row = np.repeat(np.arange(len(theta)), rng.poisson(signal + background))
        mass, width, _ = theta[row].T
        is_signal = rng.random(len(row)) < (signal / (signal + background))[row]
        u = rng.random(len(row))
        first, last = np.exp(-np.array(BIRTH) / SLOPE)
        true = np.where(
            is_signal, mass + width / 2 * np.tan(np.pi * (u - 0.5)), -SLOPE * np.log(first + (last - first) * u)
        )
        return Events(row, is_signal, true, true + RESOLUTION * rng.standard_normal(len(row)))

    def _selected(self, events: Events, rows: int) -> np.ndarray:
        inside = (events.seen >= LOW) & (events.seen <= HIGH)
        return padded(events.row[inside], (events.seen[inside],), (rows, self.room))

    def _binned(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        count, edge = np.histogram(x[x[:, 1] > 0, 0], BINS, (LOW, HIGH))
        there = count > 0
        return self._log_likelihood(theta, 0.5 * (edge[1:] + edge[:-1])[there], count[there])

    def _log_likelihood(self, theta: np.ndarray, mass: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Of so many events `count` (n,) at each `mass` (n,)."""
        theta = np.asarray(theta, np.float64)
        if ((mass < LOW) | (mass > HIGH)).any():
            return np.full(theta.shape[:-1], -np.inf)
        flat = theta.reshape(-1, 3)
        parts = np.array_split(flat, max(1, flat.shape[0] * len(mass) // TERMS))
        log_density = np.concatenate([np.log(self.intensity(part, mass)) @ count for part in parts])
        expected = self.background / (1 - theta[..., 2])
        return log_density.reshape(theta.shape[:-1]) - expected - gammaln(count.sum() + 1)


def acceptance(mass: np.ndarray, width: np.ndarray) -> np.ndarray:
    """A, the share of the signal that is seen in the window: (B,), (B,) -> (B,)."""
    smear = RESOLUTION * NODES
    high, low = (np.arctan((edge - smear - mass[:, None]) / (width[:, None] / 2)) for edge in (HIGH, LOW))
    return (high - low) @ NODE_WEIGHTS / (np.pi * NODE_WEIGHTS.sum())


def falling(seen: np.ndarray) -> np.ndarray:
    """The background's density [1/GeV] in the window."""
    return np.exp(-seen / SLOPE) / SLOPE / (np.exp(-LOW / SLOPE) - np.exp(-HIGH / SLOPE))
