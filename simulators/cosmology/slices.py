r"""Periodic slices through the density field: their wavenumbers, their power, and fields of a given power.

A slice of thickness T holds the density contrast averaged along the line of sight. The average is a product with
sinc(k_z T / 2) in Fourier space, hence with P the power in three dimensions the slice has

.. math::
    P_2(k) = \int \frac{dk_z}{2 \pi}\, \frac{\sin^2(k_z T / 2)}{(k_z T / 2)^2}\, P\big(\sqrt{k^2 + k_z^2}\big)
    \quad [(\mathrm{Mpc}/h)^2] .

On a periodic square of side L with n x n pixels, delta(x) = sum_k delta_k e^{ikx} over the n^2 wavevectors
2 pi / L (i, j) up to the Nyquist frequency, <|delta_k|^2> = P_2(k) / L^2: no modes beyond, no averaging over pixels.
So the covariance of the pixels is a circulant matrix, and its eigenvalues are n^2 P_2(k) / L^2: the variance of one
pixel is their mean. A field with these is white noise w of unit variance, filtered by their square roots.
"""

from functools import cached_property

import numpy as np
import scipy.fft

from sbi_dgm.errors import DataError
from simulators.cosmology.linear_power import Universes, shape

Array = np.ndarray
LOBES = 24  # of sinc^2 that the projection takes in
NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)  # for each
BLOCK = 32  # rows that are transformed together: they stay in the processor's cache


class Slice:
    """The geometry of a square, periodic slice.

    Args:
        pixels: n, even.
        side: L [Mpc/h].
        thickness: T [Mpc/h].

    """

    def __init__(self, pixels: int, side: float, thickness: float) -> None:
        self.pixels, self.side, self.thickness = pixels, side, thickness
        axis = np.arange(pixels // 2 + 1)
        squares, quadrant = np.unique(axis[:, None] ** 2 + axis**2, return_inverse=True)
        self.quadrant = quadrant.reshape(len(axis), len(axis))
        self.wavenumbers = 2 * np.pi / side * np.sqrt(squares)

    @cached_property
    def modes(self) -> Array:
        """How many of the n^2 modes have each distinct wavenumber: (K,)."""
        return self._sums(np.broadcast_to(self._twice, (self.pixels, len(self._twice))))

    @cached_property
    def _twice(self) -> Array:
        """Modes of the whole plane that a mode of the half plane stands for; the first and last are their own."""
        return np.array([1.0, *[2.0] * (self.pixels // 2 - 1), 1.0])

    def eigenvalues(self, universes: Universes) -> Array:
        """Of the pixels' covariance today, for sigma_8 = 1: (B, K), for each distinct wavenumber."""
        u = (np.pi * (np.arange(LOBES)[:, None] + (NODES + 1) / 2)).ravel()
        measure = np.tile(WEIGHTS, LOBES) * np.sinc(u / np.pi) ** 2 / self.thickness
        k = np.hypot(self.wavenumbers[:, None], 2 * u / self.thickness)
        power = shape(k.ravel(), universes).reshape(-1, *k.shape) @ measure
        return self.pixels**2 / self.side**2 * power

    def filtered(self, eigenvalues: Array, rng: np.random.Generator) -> Array:
        """Gaussian fields (B, S, n, n), float32; eigenvalues of their covariance on the quadrant, (B, S, m, m)."""
        amplitudes = np.sqrt(eigenvalues).astype(np.float32)
        fields = np.empty((*eigenvalues.shape[:-2], self.pixels, self.pixels), np.float32)
        for first in range(0, len(fields), BLOCK):
            rows = slice(first, first + BLOCK)
            white = np.asarray(scipy.fft.rfft2(rng.standard_normal(fields[rows].shape, dtype=np.float32)))
            fields[rows] = np.asarray(scipy.fft.irfft2(white * _mirrored(amplitudes[rows])))
        return fields

    def lognormal(self, eigenvalues: Array) -> tuple[Array, Array]:
        r"""Of the Gaussian field g for which exp(g - var(g) / 2) - 1 has the eigenvalues (B, S, m, m): its own, var(g).

        Raises:
            DataError: no Gaussian field has the correlation function ln(1 + xi).

        """
        correlation = np.log1p(_even(eigenvalues) / self.pixels**2)
        gaussian = _even(correlation)
        if not (gaussian >= 0).all():
            row, one, *mode = np.argwhere(~(gaussian >= 0))[0]
            k = 2 * np.pi / self.side * np.hypot(*mode)
            raise DataError(
                f"row {row}, slice {one}: a lognormal field of this power is made from a Gaussian one of eigenvalue"
                f" {gaussian[row, one, *mode]:.3g} at k = {k:.3g} h/Mpc, below 0: lower sigma_8."
            )
        return gaussian, correlation[..., 0, 0]

    def pooled(self, maps: Array) -> Array:
        r"""Sums (S, K) of \|x_k\|^2 / n^2 over the modes of each distinct wavenumber: (S, n, n)."""
        squares = np.abs(np.asarray(scipy.fft.rfft2(maps.astype(float), norm="ortho"))) ** 2 * self._twice
        return np.stack([self._sums(one) for one in squares])

    def _sums(self, half_plane: Array) -> Array:
        return np.bincount(_mirrored(self.quadrant).ravel(), half_plane.ravel())


def _mirrored(quadrant: Array) -> Array:
    """The half plane (..., n, m) of `rfft2` from its quadrant (..., m, m), m = n / 2 + 1."""
    return np.concatenate([quadrant, quadrant[..., -2:0:-1, :]], axis=-2)


def _even(quadrant: Array) -> Array:
    """The Fourier transform of a function that is even in both directions, by cosines: (..., m, m) of it."""
    return np.asarray(scipy.fft.dctn(quadrant, 1, axes=(-2, -1)))
