"""The page of a calibration report: one HTML file with its figures inside, and numbers and figures beside it."""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sbi_dgm.diagnostics.findings import Report
from sbi_dgm.files import atomic, write_json
from sbi_dgm.progress import Bar
from sbi_dgm.sections import Section, sections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf")


def write(report: Report, folder: Path, *, progress: bool = False) -> None:
    """Write index.html, report.json, and the figures as PNG and PDF into `figures/`."""
    from sbi_dgm import plots

    parts, pictures = sections(report), {}
    write_json(folder / "report.json", report.to_json())
    for part in Bar(parts, desc="figures", disable=not progress):
        if part.draw is not None:
            pictures[part.name] = _drawn(folder / "figures" / part.name, part.draw(plots))
    with atomic(folder / "index.html") as temporary:
        Path(temporary).write_text(html(report, parts, pictures), encoding="utf-8")


def _drawn(path: Path, figure: "Figure") -> bytes:
    """Write a figure in all formats; the bytes of the first."""
    for suffix in FORMATS:
        with atomic(path.with_suffix(f".{suffix}")) as temporary:
            figure.savefig(temporary, format=suffix, dpi=130)
    return path.with_suffix(f".{FORMATS[0]}").read_bytes()


def html(report: Report, parts: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The page, from the report, its sections, and PNG figures by section's name."""
    from jinja2 import Environment

    source = files("sbi_dgm").joinpath("pages/report.html").read_text(encoding="utf-8")
    encoded = {name: base64.b64encode(picture).decode() for name, picture in pictures.items()}
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return page.render(report=report, sections=parts, pictures=encoded, version=version("sbi_dgm"))
