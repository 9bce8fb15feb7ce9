"""Frozen option objects: one place for a family's defaults, ranges and meaning.

The same object is what a Python user writes, what a TOML file or the command line fills in, and what an
artefact stores. Unknown names and values out of range raise `OptionError`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sbi_dgm.errors import OptionError, unknown


class Options(BaseModel):
    """Base of all option objects: frozen, typed, ranges checked, unknown names refused.

    >>> from pydantic import Field
    >>> class Tea(Options):
    ...     minutes: int = Field(default=4, ge=1, le=10)
    >>> Tea(minutes=3).model_dump()
    {'minutes': 3}
    >>> Tea(minute=3)
    Traceback (most recent call last):
    sbi_dgm.errors.OptionError: unknown option of Tea 'minute': did you mean 'minutes'? Known: minutes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        kind, known = type(self).__name__, type(self).model_fields
        for name in values:
            if name not in known:
                raise OptionError(unknown(f"option of {kind}", name, known))
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OptionError(f"{kind}({where}={first['input']!r}): {first['msg'].lower()}.") from None


Table = Mapping[str, tuple[str, str]]  # name -> (module, options class), imported when asked for


def make(kind: str, table: Table, name: str, /, **values: Any) -> Any:
    """The options object called `name` in `table`; `kind` is the word for error messages."""
    if name not in table:
        raise OptionError(unknown(kind, name, table))
    module, title = table[name]
    return getattr(import_module(module), title)(**values)


def name_in(table: Table, options: Options) -> str:
    """The inverse of `make` for names."""
    place = (type(options).__module__, type(options).__name__)
    for name, entry in table.items():
        if entry == place:
            return name
    own = ".".join(place)
    raise OptionError(f"{own} is not the library's own, and no file can hold it. Known: {', '.join(table)}.")


def imported(place: str) -> Any:
    """The object at "module:name", which the user named: it is imported, and with it the module's code is run.

    >>> imported("math:pi")
    3.141592653589793
    """
    module, colon, name = place.partition(":")
    try:
        if not colon:
            raise OptionError(f"{place!r}: write it as module:name.")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"{place!r} cannot be imported: {error}.") from None


def describe(table: Table, options: Options) -> dict[str, Any]:
    """`options` as JSON: its name in the table and its values; options in them alike, alone or several by name."""
    values = {field: getattr(options, field) for field in type(options).model_fields}
    return {"name": name_in(table, options), "options": {key: _plain(table, v) for key, v in values.items()}}


def _plain(table: Table, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(table, part) for key, part in value.items()}
    value = list(value) if isinstance(value, tuple) else value
    return describe(table, value) if isinstance(value, Options) else value


def restore(kind: str, table: Table, description: Mapping[str, Any]) -> Any:
    """The inverse of `describe`."""
    values = {key: _made(kind, table, value) for key, value in description.get("options", {}).items()}
    return make(kind, table, description["name"], **values)


def _made(kind: str, table: Table, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("name"), str):
        return restore(kind, table, value)
    return {key: _made(kind, table, part) for key, part in value.items()}
