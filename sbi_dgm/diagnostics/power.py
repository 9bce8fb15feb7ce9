r"""What a number of rows can see of a miscalibration, in closed form.

Of a normal posterior whose sd is (1 - e) of what it should be, the normal scores of the truth's ranks have the variance
1 / (1 - e)^2, so that their sum of squares is that much times a chi^2_R; of one that is shifted by d of its sd their
mean is d, and sqrt(R) times it is N(sqrt(R) d, 1). The p-values of `sbi_dgm.diagnostics.calibration` follow.
"""

from typing import NamedTuple

import numpy as np
import scipy

POWER = 0.9


class Visible(NamedTuple):
    """The smallest errors of one parameter that are seen with probability `POWER`.

    Attributes:
        narrow: too small an sd: 0.1 is 10 %.
        wide: too large an sd.
        shift: of the mean, in units of the sd.

    """

    narrow: float
    wide: float
    shift: float


def visible(rows: int, level: float, power: float = POWER) -> Visible:
    """What a test at `level` sees in so many rows.

    >>> [round(value, 2) for value in visible(1000, 0.001)]
    [0.1, 0.11, 0.14]
    """
    low, high = scipy.stats.chi2.ppf(level / 2, rows), scipy.stats.chi2.isf(level / 2, rows)
    narrow = 1 - np.sqrt(scipy.stats.chi2.isf(power, rows) / high)
    wide = np.sqrt(scipy.stats.chi2.ppf(power, rows) / low) - 1
    shift = (scipy.stats.norm.isf(level / 2) + scipy.stats.norm.ppf(power)) / np.sqrt(rows)
    return Visible(float(narrow), float(wide), float(shift))
