"""The page of a calibration report: one HTML file with its figures inside, and numbers and figures beside it."""

import base64
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from sbi_dgm.diagnostics.findings import Report
from sbi_dgm.files import write_json, write_text
from sbi_dgm.progress import Bar
from sbi_dgm.sections import Section, sections

FORMATS = ("png", "pdf")


def write(report: Report, folder: Path, *, progress: bool = False) -> None:
    """Write index.html, report.json, and the figures as PNG and PDF into `figures/`."""
    from sbi_dgm import plots

    parts, figures = sections(report), folder / "figures"
    write_json(folder / "report.json", report.to_json())
    for part in Bar(parts, desc="figures", disable=not progress):
        if part.draw is not None:
            figure = part.draw(plots)
            for suffix in FORMATS:
                plots.save(figure, figures / f"{part.name}.{suffix}", dpi=130)
    write_text(folder / "index.html", html(report, parts, figures))


def html(report: Report, parts: Sequence[Section], figures: Path) -> str:
    """The page, from the report, its sections, and the folder of their figures."""
    from jinja2 import Environment

    source = files("sbi_dgm").joinpath("pages/report.html").read_text(encoding="utf-8")
    drawn = {part.name: (figures / f"{part.name}.png").read_bytes() for part in parts if part.draw is not None}
    encoded = {name: base64.b64encode(picture).decode() for name, picture in drawn.items()}
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return page.render(report=report, sections=parts, pictures=encoded, version=version("sbi_dgm"))
