"""The site: nothing public is missing from its reference, no derivation from its methods, and it builds unwarned."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sbi_dgm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def named(page, directive):
    return re.findall(rf"^\.\. auto{directive}:: ([\w.]+)(?:\(\))?$", (DOCS / page).read_text(), re.MULTILINE)


def linked(page):
    return re.findall(r"\((\w+)\.md\)", (DOCS / page).read_text())


def test_the_reference_has_every_public_name_once():
    names = [name for name in named("api.md", "(?:class|function)") if not name.startswith("sbi_dgm.")]
    assert sorted(names) == sorted(set(sbi_dgm.__all__) - {"SbiError"})
    assert named("api.md", "module") == ["sbi_dgm.errors"]


def test_the_methods_have_every_file_with_a_formula_at_its_head():
    heads = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in (ROOT / "sbi_dgm").rglob("*.py")}
    files = (path.relative_to(ROOT).with_suffix("").parts for path, head in heads.items() if ".. math::" in head)
    assert {".".join(parts) for parts in files} <= set(named("methods.md", "module"))


def test_the_index_of_the_site_is_that_of_the_repository():
    pages = re.findall(r"^(\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    generated = {"api", "methods"}
    assert [page for page in pages if page not in generated] == linked("README.md")
    assert sorted([*pages, "README", "index"]) == sorted(path.stem for path in DOCS.glob("*.md"))


def test_it_builds_without_a_warning(tmp_path):
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\ln p(z | c) = \ln N(f_c(z); 0, I)" in (tmp_path / "methods.html").read_text()
    reference = (tmp_path / "api.html").read_text()
    assert 'id="sbi_dgm.Posterior.log_prob"' in reference
    assert ">Type<" not in reference  # the first words of a property, taken for its type because of a colon
