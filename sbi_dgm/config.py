r"""Settings of a run from TOML and from `key=value` words, as keyword arguments of `fit` and of `Simulations.open`.

A file has the tables `[estimator]`, `[embedding]` (each `name` and its options), `[training]`, `[split]`, `[reading]`,
and for foreign simulation files `[data]` (`theta`, `x`, `weight`, `group`) and `[prior]`::

    [estimator]
    name = "flow"
    transforms = 3

    [training]
    batch_size = 512

    [data]
    theta = "parameters"
    x = "maps/kappa"

    [prior]
    omega_m = {uniform = [0.1, 0.5], label = "\\Omega_m"}
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sbi_dgm import options
from sbi_dgm.data.foreign import WEIGHTS
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.embeddings import EMBEDDINGS
from sbi_dgm.errors import FileError, OptionError, unknown
from sbi_dgm.estimators.base import FAMILIES
from sbi_dgm.files import require_file
from sbi_dgm.training import Training

TABLES = ("estimator", "embedding", "training", "split", "reading", "data", "prior")
PLACES = ("theta", "x", "weight", "group")


def settings(path: str | Path | None, words: Sequence[str], estimator: str | None = None) -> dict[str, Any]:
    """Keyword arguments of `fit`.

    Args:
        path: a TOML file, or None.
        words: such as "training.batch_size=512", over the file.
        estimator: a family's name, over both.

    >>> settings(None, ["estimator.transforms=3"])["estimator"].transforms
    3

    """
    content = _content(path, words)
    if estimator is not None:
        content["estimator"] = {**content["estimator"], "name": estimator}
    return {
        "estimator": _named("estimator", FAMILIES, content["estimator"], "flow"),
        "embedding": _named("embedding", EMBEDDINGS, content["embedding"], "auto"),
        "training": Training(**content["training"]),
        "split": SplitRule(**content["split"]),
        "reading": Reading(**content["reading"]),
    }


def of_use(words: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of `Posterior.using`: the words about the estimator.

    >>> of_use(["estimator.steps=50", "data.theta=parameters"])
    {'steps': 50}

    """
    return {key: value for table, key, value in map(_word, words) if table == "estimator"}


def layout(path: str | Path | None, words: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Simulations.open`.

    Args:
        path: a TOML file, or None.
        words: such as "data.theta=parameters", over the file.
        given: `theta`, `x`, `event_weight`, `proposal_weight`, `group` of the command line, over both; None where
            not said.

    >>> layout(None, [], {"theta": "a,b", "x": "maps", "event_weight": "w"})
    {'theta': 'a,b', 'x': 'maps', 'weight': {'event': 'w'}}

    """
    content = _content(path, words)
    for key in content["data"]:
        if key not in PLACES:
            raise OptionError(unknown("key of [data]", key, PLACES))
    found = content["data"] | {key: value for key, value in given.items() if value is not None and key in PLACES}
    weight = {kind: given[f"{kind}_weight"] for kind in WEIGHTS if given.get(f"{kind}_weight") is not None}
    return found | ({"weight": weight} if weight else {}) | ({"prior": content["prior"]} if content["prior"] else {})


def _content(path: str | Path | None, words: Sequence[str]) -> dict[str, dict[str, Any]]:
    content = {table: {} for table in TABLES} | ({} if path is None else _toml(require_file(path)))
    for word in words:
        table, key, value = _word(word)
        content[table] = {**content[table], key: value}
    return content


def _toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is no TOML: {error}.") from None
    for table, values in content.items():
        if table not in TABLES:
            raise OptionError(f"{path}: {unknown('table', table, TABLES)}")
        if not isinstance(values, Mapping):
            raise OptionError(f"{path}: {table} = {values!r} must be a table, [{table}] with lines of key = value.")
    return content


def _word(word: str) -> tuple[str, str, Any]:
    place, equals, value = word.partition("=")
    table, dot, key = place.partition(".")
    if not equals or not dot:
        raise OptionError(f"--set {word}: write it as table.key=value, such as training.batch_size=512.")
    if table not in TABLES:
        raise OptionError(unknown("table", table, TABLES))
    try:
        return table, key, json.loads(value)
    except json.JSONDecodeError:
        return table, key, value


def _named(kind: str, table: options.Table, content: Mapping[str, Any], default: str) -> Any:
    values = {key: value for key, value in content.items() if key != "name"}
    nested = {k: _named(kind, table, v, default) if isinstance(v, Mapping) else v for k, v in values.items()}
    return options.make(kind, table, str(content.get("name", default)), **nested)
