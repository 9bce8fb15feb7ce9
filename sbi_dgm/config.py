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
from importlib.resources import files
from pathlib import Path
from typing import Any

from sbi_dgm import options
from sbi_dgm.benchmark.methods import Fitted, Refining
from sbi_dgm.benchmark.suite import Suite
from sbi_dgm.data.foreign import WEIGHTS
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.embeddings.base import EMBEDDINGS
from sbi_dgm.errors import FileError, OptionError, unknown
from sbi_dgm.estimators.base import FAMILIES
from sbi_dgm.files import require_file
from sbi_dgm.kinds import is_a, whole
from sbi_dgm.training import Training

TABLES = ("estimator", "embedding", "training", "split", "reading", "data", "prior")
PLACES = ("theta", "x", "weight", "group")
METHOD = ("estimator", "embedding", "training", "split", "reading")
SUITES = ("quick", "standard", "full")


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
    return _run(content)


def _run(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "estimator": _estimator(content["estimator"]),
        "embedding": _named("embedding", EMBEDDINGS, content["embedding"], "auto"),
        "training": Training(**content["training"]),
        "split": SplitRule(**content["split"]),
        "reading": Reading(**content["reading"]),
    }


def _estimator(content: Mapping[str, Any]) -> Any:
    if content.get("name") != "auto":
        return _named("estimator", FAMILIES, content, "flow")
    if len(content) > 1:
        raise OptionError(
            f"estimator auto chooses for itself: leave out {', '.join(k for k in content if k != 'name')}."
        )
    return "auto"


def suite(given: str | None, chosen: Mapping[str, Any]) -> Suite:
    """The suite of a benchmark.

    Args:
        given: "quick", "standard", "full", or a TOML file with the fields of `Suite`; a table `[methods.NAME]` there
            holds settings as a run's file does, `members` of an ensemble, and `refine = true` for a posterior refined
            by a learned likelihood; NAME may stand among the estimators.
            None for `chosen` alone.
        chosen: fields over those; None where not said.

    >>> suite("quick", {"seeds": "3"}).seeds
    (3,)

    """
    content = {} if given is None else parsed(_suite_text(given), given)
    methods = {name: _method(name, table) for name, table in content.pop("methods", {}).items()}
    content |= {key: value for key, value in chosen.items() if value is not None}
    if "tasks" not in content:
        raise OptionError("a benchmark needs tasks: name a suite (quick, standard, full), a TOML file, or --tasks.")
    if "estimators" in content:
        content["estimators"] = [methods.get(str(one), one) for one in content["estimators"]]
    return Suite(**content)


def _suite_text(given: str) -> str:
    if given in SUITES:
        return files("sbi_dgm").joinpath(f"benchmark/data/{given}.toml").read_text(encoding="utf-8")
    if Path(given).suffix != ".toml":
        raise OptionError(unknown("suite", given, SUITES))
    return require_file(given).read_text(encoding="utf-8")


def _method(name: str, table: Mapping[str, Any]) -> Fitted | Refining:
    tables = {key: value for key, value in table.items() if key not in ("members", "refine")}
    for key in tables:
        if key not in METHOD:
            raise OptionError(f"[methods.{name}]: {unknown('table', key, (*METHOD, 'members', 'refine'))}")
    made = _run(_tables(tables, f"[methods.{name}]"))
    settings = {key: made[key] for key in ("estimator", *tables)}
    members = whole(f"[methods.{name}]: members", table.get("members", 1), 1)
    refine = is_a(f"[methods.{name}]: refine", table.get("refine", False), bool, "true or false")
    several = {} if members == 1 else {"members": members}
    posterior = Fitted(name, settings | several)
    if not refine:
        return posterior
    shared = {key: value for key, value in settings.items() if key not in ("estimator", "embedding")}
    return Refining(name, posterior, Fitted(name, {"estimator": "auto", "learn": "likelihood"} | shared | several))


def of_use(words: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of `Posterior.using`: the words about the estimator; those about data are for others.

    >>> of_use(["estimator.steps=50", "data.theta=parameters"])
    {'steps': 50}

    """
    told = [_word(word) for word in words]
    for table, key, _ in told:
        if table not in ("estimator", "data", "prior"):
            raise OptionError(
                f"{table}.{key} was decided by training: a posterior in use takes options of [estimator]."
            )
    return {key: value for table, key, value in told if table == "estimator"}


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
    content = {} if path is None else parsed(require_file(path).read_bytes().decode(errors="replace"), path)
    content = _tables(content, str(path))
    for word in words:
        table, key, value = _word(word)
        content[table] = _with(content[table], key, value)
    return content


def _with(table: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A table with one value more, in tables within it where the key has dots.

    >>> _with({"name": "fusion", "parts": {"flux": {}}}, "parts.map.name", "cnn")
    {'name': 'fusion', 'parts': {'flux': {}, 'map': {'name': 'cnn'}}}
    """
    first, dot, rest = key.partition(".")
    inner = table.get(first, {})
    if dot and not isinstance(inner, Mapping):
        raise OptionError(f"{key}: {first} = {inner!r} is no table that {rest} could be in.")
    return {**table, first: _with(inner, rest, value) if dot else value}


def parsed(text: str, place: str | Path) -> dict[str, Any]:
    """A TOML text; `FileError` where it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"{place} is no TOML: {error}.") from None


def _tables(content: Mapping[str, Any], place: str) -> dict[str, dict[str, Any]]:
    """All tables of a run, empty where `content` has none."""
    for table, values in content.items():
        if table not in TABLES:
            raise OptionError(f"{place}: {unknown('table', table, TABLES)}")
        if not isinstance(values, Mapping):
            raise OptionError(f"{place}: {table} = {values!r} must be a table, [{table}] with lines of key = value.")
    return {table: {} for table in TABLES} | {table: dict(values) for table, values in content.items()}


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
    nested = {k: _nested(kind, table, v, default) if isinstance(v, Mapping) else v for k, v in values.items()}
    return options.make(kind, table, str(content.get("name", default)), **nested)


def _nested(kind: str, table: options.Table, content: Mapping[str, Any], default: str) -> Any:
    """Options within options, or several of them by name."""
    if content and all(isinstance(value, Mapping) for value in content.values()):
        return {key: _named(kind, table, value, default) for key, value in content.items()}
    return _named(kind, table, content, default)
