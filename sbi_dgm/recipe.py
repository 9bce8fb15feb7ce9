"""What suits simulations: a family and its size by the numbers of rows N, of parameters D and of x C.

Every rule is a table row: monotone in N, D and C, the same for all problems. How they were found, and what else was
tried, is in `docs/recipe.md`.
"""

from typing import NamedTuple

from sbi_dgm.data.exchanged import Roles
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, PriorError
from sbi_dgm.estimators.base import Family
from sbi_dgm.estimators.diffusion import Diffusion
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.located import Located

SEVERAL, MANY = 4, 1500  # parameters, and rows for each, from which diffusion is chosen
SIMPLE = 3000  # rows up to which a likelihood has no splines
REFINABLE = 100  # numbers of x that a learned likelihood is trusted with


class Choice(NamedTuple):
    """A family with its size, and the sentence that says why."""

    family: Family
    why: str


def recommended(learn: str, data: Simulations, rows: int) -> Choice:
    """The family for `rows` training rows of simulations.

    Args:
        learn: "posterior", "refined" or "likelihood".

    """
    numbers = sum(observable.size for observable in data.observables.values())
    return (likelihood if learn == "likelihood" else posterior)(rows, len(data.names), numbers)


def posterior(rows: int, parameters: int, numbers: int) -> Choice:
    """Diffusion where rows are many for several parameters, else a flow."""
    asked = f"{rows} rows for {parameters} parameters and {numbers} numbers of x"
    if parameters >= SEVERAL and rows >= MANY * parameters:
        return Choice(Diffusion(), f"diffusion: {asked} suffice for shapes that a flow would smooth.")
    return Choice(Flow(), f"a flow: {asked} are few, or the parameters are, and its draws are quick.")


def likelihood(rows: int, parameters: int, numbers: int) -> Choice:
    """A located flow: theta, its context, never lies outside what was trained on."""
    follows = f"x ({numbers} numbers) follows theta ({parameters}) in place and scale: a located flow"
    if rows < SIMPLE:
        return Choice(Located(Flow(map="affine", transforms=1)), f"{follows}, affine, for {rows} rows.")
    return Choice(Located(Flow()), f"{follows} of splines, for {rows} rows.")


def require_refinable(data: Simulations) -> None:
    """`PriorError` without a prior, `DataError` where x is no vector of up to 100 numbers."""
    if data.prior is None:
        raise PriorError("refinement needs the prior, and these simulations have none: give them one.")
    size = len(Roles.of(data).entries)
    if size > REFINABLE:
        raise DataError(
            f"x has {size} numbers: refinement learns a likelihood of up to {REFINABLE}; summarise x first."
        )
