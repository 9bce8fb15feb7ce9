"""The floors of docs/architecture.md and the house style, kept by the import graph and the syntax tree."""

import ast
import importlib
import inspect
import pkgutil
import statistics
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import sbi_dgm

ROOT = Path(__file__).parents[1]
FLOORS = (  # bottom up; within a floor, a file may import those to its left
    (
        "errors kinds files sealed seeds progress options gaussian networks conditioners splines schedules"
        " solvers univariate distributions coordinates parameters priors resampling mixtures importance"
        " pareto simulator command"
    ),
    (
        "data.columns data.tables data.places data.tree data.sink data.sums data.frame data.native data.given"
        " data.splits data.foreign data.agreement data.simulations data.scaling data.exchanged data.batches data.source"
        " data.reading data.vectors data.streaming data.guess data.observed shards executors campaign score"
    ),
    (
        "embeddings.absent embeddings.base embeddings.vectors embeddings.stored embeddings.compression embeddings.moped"
        " embeddings.pretrained embeddings.convolutions embeddings.sets embeddings.transformer embeddings.fusion"
        " estimators.base estimators.ensemble estimators.moved estimators.rescaled estimators.flow"
        " estimators.continuous estimators.denoising estimators.diffusion estimators.flow_matching"
        " estimators.continuous_flow estimators.normals estimators.vae estimators.located estimators.contrastive"
        " checkpoints optimiser loop preparation weights"
    ),
    (
        "outliers trust samples artifact heldout pooling proposals refinement model conformal repair peak posterior"
        " likelihood companion"
    ),
    "tensorboard gating job ensemble recipe training",
    (
        "diagnostics.ecdf diagnostics.calibration diagnostics.tarp diagnostics.power diagnostics.evidence"
        " diagnostics.checks diagnostics.c2st diagnostics.c2st_batched diagnostics.distances diagnostics.bins"
        " diagnostics.information diagnostics.predictive diagnostics.local diagnostics.findings sections page report"
        " benchmark.tasks benchmark.methods benchmark.scores benchmark.cells benchmark.suite benchmark.page"
        " benchmark.table benchmark.runner benchmark.gate"
    ),
    "inspection config quickstart arguments cli __main__",
)
BESIDE = {"plots"}  # imported inside the functions that draw
ORDER = {name: rank for rank, name in enumerate(chain.from_iterable(floor.split() for floor in FLOORS))}
SIMULATORS_MAY = {f"sbi_dgm.{name}" for name in FLOORS[0].split()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def files(package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / package).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = path
    return found


LIBRARY, SIMULATORS = files("sbi_dgm"), files("simulators")
EVERYTHING = {**LIBRARY, **{f"simulators.{name}": path for name, path in SIMULATORS.items()}}


def imported(node: ast.AST, known: dict[str, Path]) -> set[str]:
    """Modules of the library that a syntax tree imports, as names below `sbi_dgm`."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom) and part.module and part.level == 0:
            inner = {f"{part.module}.{alias.name}" for alias in part.names}
            names |= {name if name.removeprefix("sbi_dgm.") in known else part.module for name in inner}
        elif isinstance(part, ast.Import):
            names |= {alias.name for alias in part.names}
    return {name.removeprefix("sbi_dgm.") for name in names if name.split(".")[0] == "sbi_dgm" and name != "sbi_dgm"}


def breaches(order: dict[str, int], graph: dict[str, set[str]]) -> list[str]:
    return [f"{a} imports {b}" for a, targets in graph.items() for b in targets if order[a] <= order[b]]


def graph() -> dict[str, set[str]]:
    return {n: imported(tree(p), LIBRARY) - BESIDE for n, p in LIBRARY.items() if n in ORDER}


def test_every_file_has_a_room():
    empty = {name for name, path in LIBRARY.items() if path.name == "__init__.py"}
    assert set(LIBRARY) - empty - BESIDE == set(ORDER)


def test_files_import_only_from_below_and_from_their_left():
    assert breaches(ORDER, graph()) == []
    upside_down = {name: -rank for name, rank in ORDER.items()}
    assert breaches(upside_down, graph())


def test_plots_stand_beside_and_are_imported_inside_functions_alone():
    users = [path for name, path in LIBRARY.items() if "plots" in imported(tree(path), LIBRARY) and name not in BESIDE]
    assert users
    for path in users:
        top = ast.Module([node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert "plots" not in imported(top, LIBRARY)
    assert imported(tree(LIBRARY["plots"]), LIBRARY) <= set(FLOORS[0].split())


def test_only_plots_knows_matplotlib():
    for name, path in LIBRARY.items():
        fresh = ast.parse(path.read_text())
        for node in ast.walk(fresh):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        modules = {m for n in ast.walk(fresh) if isinstance(n, ast.ImportFrom) for m in [n.module or ""]}
        assert any(m.startswith("matplotlib") for m in modules) == (name == "plots")


def test_the_library_never_imports_simulators_and_they_import_floor_zero_alone():
    for path in LIBRARY.values():
        assert "import simulators" not in path.read_text()
        assert "from simulators" not in path.read_text()
    for path in SIMULATORS.values():
        assert {f"sbi_dgm.{name}" for name in imported(tree(path), LIBRARY)} <= SIMULATORS_MAY


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{n}.{f.name}", f) for n, p in EVERYTHING.items() for f in ast.walk(tree(p)) if isinstance(f, ast.FunctionDef)
    ]


def lines_of_code(function: ast.FunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 1  # type: ignore[operator]


def test_half_of_the_functions_are_under_ten_lines_and_none_over_fifty():
    sizes = {name: lines_of_code(function) for name, function in functions()}
    assert statistics.median(sizes.values()) < 10
    assert {name: size for name, size in sizes.items() if size > 50} == {}


def test_files_stay_under_four_hundred_lines():
    sizes = {name: len(path.read_text().splitlines()) for name, path in EVERYTHING.items()}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_the_library_asserts_nothing():
    for name, path in EVERYTHING.items():
        assert not [node for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)], name


def public() -> list[tuple[str, object]]:
    found = []
    for package in (sbi_dgm, importlib.import_module("simulators")):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if info.name.endswith("__main__"):
                continue
            module = importlib.import_module(info.name)
            found += [(info.name, module)]
            for name, thing in vars(module).items():
                if not name.startswith("_") and getattr(thing, "__module__", None) == info.name:
                    found.append((f"{info.name}.{name}", thing))
    return found


def test_everything_public_says_what_it_is():
    missing = [
        name for name, thing in public() if (inspect.ismodule(thing) or callable(thing)) and not inspect.getdoc(thing)
    ]
    assert missing == []


@pytest.mark.parametrize("name", sbi_dgm.__all__)
def test_every_promised_name_is_there(name):
    assert getattr(sbi_dgm, name).__doc__
