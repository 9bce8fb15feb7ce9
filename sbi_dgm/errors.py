"""The errors that a user can cause, each one sentence: what, where, the numbers, the remedy.

Everything that bad input can raise derives from `SbiError`; the command line turns it into that sentence
and exit code 2 (3 for `TimeLimitError`, which is no mistake). Anything else that escapes is a mistake of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SbiError(Exception):
    """Base of every error that the library raises for bad input."""


class FileError(SbiError):
    """A file is missing, foreign, truncated, corrupted, from a newer version, or in the way."""


class DataError(SbiError):
    """Simulations that cannot be learned from: wrong lengths, non-finite numbers, too few rows."""


class PriorError(SbiError):
    """A prior that is no distribution, or parameters outside their prior."""


class ObservationError(SbiError):
    """An observation of the wrong shape or with non-finite numbers."""


class TrustError(ObservationError):
    """An observation unlike the simulations, or one that cannot be compared with them, where `strict` was asked for."""


class TrustWarning(UserWarning):
    """An observation unlike the simulations that a posterior was trained on."""


class OptionError(SbiError):
    """An unknown name or an option outside its range."""


class TrainingError(SbiError):
    """Training that cannot go on: a loss that is not finite, a checkpoint of another run."""


class TimeLimitError(SbiError):
    """Training that ended at its time limit, with a checkpoint to go on from."""


class SolverError(SbiError):
    """A differential equation that cannot be solved: numbers that are not finite, too many steps."""


class ExternalError(SbiError):
    """An artefact refers to an object that it does not contain and that must be passed to `load`."""


def first_line(error: BaseException) -> str:
    r"""What an error says in its first line, without a stop; its kind where it says nothing.

    >>> first_line(ValueError("no number.\nat line 3")), first_line(EOFError())
    ('no number', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for an unknown name, with the nearest known one.

    >>> unknown("estimator", "flwo", ["flow", "diffusion"])
    "unknown estimator 'flwo': did you mean 'flow'? Known: diffusion, flow."
    """
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f": did you mean {close[0]!r}?" if close else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names) or 'none'}."
