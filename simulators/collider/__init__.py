r"""Collider events from the matrix element to what is seen, a stage at a time.

Each problem is a chain of draws, whose stages between theta and x are latent to whoever sees x alone:

.. math::
    p(x \,|\, \theta) = \int p(x \,|\, z_d)\, p(z_d \,|\, z_s)\, p(z_s \,|\, z_p)\, p(z_p \,|\, \theta)
    \, dz_p\, dz_s\, dz_d .

z_p are partons, z_s the shower's particles, z_d what the detector makes of them.
"""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Chain(Protocol):
    """What simulators with latent stages offer beside their call."""

    def stages(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """All stages of one draw by name, in their order: theta (B, D) -> (B, ...) each.

        They are "parton", "shower" where there is one, "detector", and last x, under its observable's name: what
        the call gives for the same generator, to the bit.
        """
        ...
