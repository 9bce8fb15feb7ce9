"""What suits simulations: a family and its size by the numbers of rows N, of parameters D and of x C.

Along N a choice changes once at most, and it is the same for all problems; C is told, and decides for the embedding
alone. How the rules were found, and what else was tried, is in `docs/recipe.md`.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from sbi_dgm import options
from sbi_dgm.data.agreement import require_drawn
from sbi_dgm.data.exchanged import Roles
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, PriorError
from sbi_dgm.estimators.base import FAMILIES, Family
from sbi_dgm.estimators.diffusion import Diffusion
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.located import Located
from sbi_dgm.parameters import total_size

SEVERAL, MANY = 4, 1500  # parameters, and rows for each, from which diffusion is chosen
UNITS = (16, 64)  # fewest and most of a likelihood's conditioners: two for each number of x between
REFINABLE = 100  # numbers of x that a learned likelihood is trusted with


class Choice(NamedTuple):
    """A family with its size, and the sentence that says why."""

    family: Family
    why: str


def posterior(rows: int, parameters: int, numbers: int) -> Choice:
    """Diffusion where rows are many for several parameters, else a flow."""
    given = f"{rows} rows of {numbers} numbers for {parameters} parameters"
    if parameters < SEVERAL:
        return Choice(Flow(), f"a flow: {given}; with so few parameters it loses nothing, and draws are quick.")
    if rows < MANY * parameters:
        return Choice(Flow(), f"a flow: {given}, fewer than {MANY} rows for each; diffusion would ask for more.")
    return Choice(Diffusion(), f"diffusion: {given}, enough for shapes that a flow would smooth.")


def proposal(rows: int, parameters: int, numbers: int) -> Choice:
    """A flow, whatever the numbers: importance weights ask for the density of every draw."""
    given = f"{rows} rows of {numbers} numbers for {parameters} parameters"
    return Choice(Flow(), f"a flow: {given}; it knows the density of its draws, by which refinement weighs them.")


def likelihood(rows: int, parameters: int, numbers: int) -> Choice:
    """A located flow of few units: the place and scale of x are learned before its shape is overfitted.

    Theta, its context, never lies outside what was trained on.
    """
    fewest, most = UNITS
    units = min(max(fewest, 2 * numbers), most)
    given = f"x ({numbers} numbers) follows theta ({parameters}) in place and scale, {rows} rows"
    return Choice(Located(Flow(transforms=2, hidden=units)), f"a located flow of {units} units: {given}.")


RULES = {"posterior": posterior, "refined": proposal, "likelihood": likelihood}


def fingerprint() -> str:
    """A digest of all recommendations on a grid of numbers: where it differs, "auto" means something else."""
    grid = product(RULES, (2**k for k in range(5, 21)), (1, 2, 3, 4, 5, 8, 16, 32), (1, 4, 10, 20, 40, 100))
    chosen = [options.describe(FAMILIES, RULES[learn](*numbers).family) for learn, *numbers in grid]
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:12]


def recommended(learn: str, data: Simulations, rows: int, parameters: Sequence[str] | None = None) -> Choice:
    """The family for `rows` training rows of simulations.

    Args:
        learn: "posterior", "refined" or "likelihood".
        parameters: those to infer; None for all.

    """
    numbers = total_size(data.observables)
    return RULES[learn](rows, len(parameters or data.names), numbers)


def require_refinable(data: Simulations) -> None:
    """`PriorError` without a prior of which theta are draws, `DataError` where x is no vector of up to 100 numbers."""
    if data.prior is None:
        raise PriorError("refinement needs the prior, and these simulations have none: give them one.")
    require_drawn("refinement", data.agreement().differs)
    size = sum(observable.size for observable in data.observables.values() if observable.kind != "set")
    if size > REFINABLE:
        raise DataError(
            f"x has {size} numbers: refinement learns a likelihood of up to {REFINABLE}; summarise x first."
        )
    Roles.of(data)
