"""Values of the right kind: what a user gives becomes plain numbers and texts, or an error of ours says what it is.

Numbers of numpy and torch become Python's at the door, so that all that is kept can be written as JSON.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_dgm.errors import OptionError, SbiError

Error = type[SbiError]
NO_NUMBERS = bool | np.bool_ | np.timedelta64  # although Python or numpy count them among numbers
WHOLE = {None: "give a whole number", 0: "give a whole number, 0 or more"}


def number(name: str, value: Any, error: Error = OptionError) -> float:
    """A real number as Python's, whole ones as `int`, from Python, numpy, torch, or an array of no axes; or the error.

    Infinities and NaN are numbers: the caller knows the bounds.

    >>> number("sd", np.float64(0.5)), number("sd", np.array(2))
    (0.5, 2)
    >>> number("sd", "0.5")
    Traceback (most recent call last):
    sbi_dgm.errors.OptionError: sd = '0.5': give a number.
    """
    plain = _plain(value)
    if isinstance(plain, Real) and not isinstance(plain, NO_NUMBERS):
        try:
            real = float(plain)
        except OverflowError:
            raise error(f"{name} = {shown(value)}: give a number that fits into 64 bits.") from None
        return plain if isinstance(plain, int) else real
    raise error(f"{name} = {shown(value)}: give a number.")


def whole(name: str, value: Any, least: int | None = None, error: Error = OptionError) -> int:
    """A whole number as Python's, from `least` on; or the error.

    >>> whole("draws", np.int64(3))
    3
    >>> whole("draws", 2.0, 1)
    Traceback (most recent call last):
    sbi_dgm.errors.OptionError: draws = 2.0: a whole number, at least 1, is needed.
    """
    plain = _plain(value)
    if isinstance(plain, Integral) and not isinstance(plain, NO_NUMBERS) and (least is None or int(plain) >= least):
        return int(plain)
    raise error(f"{name} = {shown(value)}: {WHOLE.get(least, f'a whole number, at least {least}, is needed')}.")


def _plain(value: Any) -> Any:
    """Python's number, of a number of numpy's or torch's; anything else as it is."""
    if type(value) in (int, float) or getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    numeric = getattr(getattr(value, "dtype", None), "kind", "f") in "iuf"
    return value.item() if numeric and not np.ma.is_masked(value) else value


def floats(name: str, value: Any, error: Error = OptionError) -> NDArray[np.float64]:
    """Real numbers in an array of any shape, from lists, arrays, frames and tensors; or the error.

    >>> floats("theta", [[1, 2]])
    array([[1., 2.]])
    """
    try:
        found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if found.dtype.kind == "O":
            found = np.array([number(name, one, error) for one in found.flat], np.float64).reshape(found.shape)
        if found.dtype.kind in "biuf":
            return found.astype(np.float64, copy=False)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise error(f"{name} = {shown(value)}: give real numbers, as many in each row.")


def text(name: str, value: Any, error: Error = OptionError) -> str:
    """A text, or the error."""
    return str(is_a(name, value, str, "a text", error))


def texts(name: str, value: Any, error: Error = OptionError) -> tuple[str, ...]:
    """Several texts, or the error; a single text is no list of its letters.

    >>> texts("names", "ab")
    Traceback (most recent call last):
    sbi_dgm.errors.OptionError: names = 'ab': give a list of texts.
    """
    return tuple(text(f"an entry of {name}", one, error) for one in several(name, value, "texts", error))


def several(name: str, value: Any, wanted: str, error: Error = OptionError) -> tuple[Any, ...]:
    """What a list or the like holds; or the error, for a text, a table, and a thing alone."""
    try:
        if not isinstance(value, str | bytes | Mapping):
            return tuple(value)
    except TypeError:
        pass
    raise error(f"{name} = {shown(value)}: give a list of {wanted}.")


def is_a(name: str, value: Any, kinds: Any, wanted: str, error: Error = OptionError) -> Any:
    """The value, of one of these kinds (a class, or several); or the error, with what is wanted instead.

    >>> is_a("suite", "quick", int, "a Suite")
    Traceback (most recent call last):
    sbi_dgm.errors.OptionError: suite = 'quick': give a Suite.
    """
    if isinstance(value, kinds):
        return value
    raise error(f"{name} = {shown(value)}: give {wanted}.")


def shown(value: Any) -> str:
    """The value in a sentence; of a long one, its kind.

    >>> shown("a"), shown(np.zeros(100))
    ("'a'", 'a value of type ndarray')
    """
    words = repr(value)
    return words if len(words) <= 60 and "\n" not in words else f"a value of type {type(value).__name__}"
