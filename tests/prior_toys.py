"""Parts of priors whose density is known."""

import numpy as np

COVARIANCE = np.array([[2.0, 0.9, -0.3], [0.9, 1.0, 0.1], [-0.3, 0.1, 0.5]])


def triangle(u):
    """The unit cube onto theta_1, theta_2 >= 0, theta_1 + theta_2 <= 1, with constant density 2."""
    total = np.sqrt(u[..., 0])
    return np.stack([total * (1 - u[..., 1]), total * u[..., 1]], axis=-1)


def from_triangle(theta):
    total = theta.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([total**2, theta[..., 1] / total], axis=-1)
