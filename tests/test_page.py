"""The page of a calibration report: numbers, figures and words that agree, one file, readable in a real browser."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import sbi_dgm
from sbi_dgm.diagnostics.findings import Report
from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import FileError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.samples import Samples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ["omega_m", "a_parameter_with_quite_a_long_name", "w"]


class Box:
    """theta_i ~ U(0, 1), x_i ~ U(theta_i, theta_i + 1): of the exact posterior, U(max(0, x - 1), min(1, x))."""

    name, observables = "box", {"x": Observable((3,))}
    prior = Prior([Parameter(name, Uniform(0, 1)) for name in NAMES])
    names, record = NAMES, {}

    def __init__(self, width: float = 1.0) -> None:
        self.width = width

    def __call__(self, theta, rng):
        return theta + rng.uniform(size=theta.shape)

    def _edges(self, x):
        low, high = np.maximum(0, x["x"] - 1), np.minimum(1, x["x"])
        return (low + high) / 2, self.width * (high - low)

    def sample(self, n, x, *, seed=None, log_prob=False):
        middle, width = (a[:, None] for a in self._edges(x))
        u = np.random.default_rng(seed).uniform(-0.5, 0.5, size=(len(middle), n, 3))
        log_q = np.broadcast_to(-np.log(width).sum(-1), u.shape[:2]) - 1e-3 * np.abs(u).sum(-1)
        return Samples(middle + width * u, self.prior.parameters, log_q)

    def log_prob(self, theta, x):
        middle, width = self._edges(x)
        inside = (np.abs(theta - middle) < width / 2).all(-1)
        return np.where(inside, -np.log(width).sum(-1) - 1e-3 * (np.abs(theta - middle) / width).sum(-1), -50.0)


class Undrawn(Box):
    """Whoever draws from it comes too late to refuse."""

    def sample(self, n, x, *, seed=None, log_prob=False):
        raise AssertionError("drawn")


def simulations(rows: int = 400) -> sbi_dgm.Simulations:
    theta = Box.prior.sample(rows, 3)
    return sbi_dgm.Simulations.from_arrays(theta, Box()(theta, np.random.default_rng(4)), prior=Box.prior)


DATA = simulations()


def report(posterior: Box, out: Path, **options) -> Report:
    given = {"draws": 100, "simulator": Box(), "at": DATA.x(np.arange(2)), "progress": False}
    return sbi_dgm.calibrate(posterior, DATA, out=out, **(given | options))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("report")
    return report(Box(0.6), folder), folder


class Page(HTMLParser):
    """Images, headings and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.text, self.sections = "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "section":
            self.sections.append(dict(attrs)["id"])

    def handle_data(self, data):
        self.text += f" {data}"


def test_report_json_is_the_report(made):
    found, folder = made
    written = json.loads((folder / "report.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    assert written["verdict"] == found.verdict != "calibrated"
    assert set(written["parameters"]) == set(NAMES)


def test_a_report_is_replaced_only_on_request_and_before_that_nothing_is_drawn(made, tmp_path):
    found, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(FileError, match=r"report.json exists already: pass overwrite=True"):
        report(Undrawn(), tmp_path)
    assert report(Box(0.6), tmp_path, overwrite=True).to_json() == found.to_json()
    (tmp_path / "report.json").unlink()
    assert report(Box(0.6), tmp_path).to_json() == found.to_json(), (
        "draws of a report that was not finished are no report"
    )


def test_every_section_is_there_with_its_figures_inside_and_in_words(made):
    _, folder = made
    page = Page((folder / "index.html").read_text())
    drawn = ["ranks", "distribution", "coverage", "points", "where", "replications", "recovery", "contraction"]
    assert page.sections == [*drawn, "sharpness", "at"]
    assert len(page.images) == len(drawn)
    for name, image in zip(drawn, page.images, strict=True):
        head, _, encoded = str(image["src"]).partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(encoded) == (folder / "figures" / f"{name}.png").read_bytes()
        assert len(str(image["alt"])) > 40
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_asks_for_nothing_from_elsewhere(made):
    text = (made[1] / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_the_page_says_what_the_report_found(made):
    found, folder = made
    words = " ".join(Page((folder / "index.html").read_text()).text.split())
    assert f"No: {found.verdict}." in words
    assert "Judged by 400 simulations that training has not seen, with 100 draws" in words
    assert f"narrow by {100 * found.visible['narrow']:.1f} %" in words
    for name, of in found.stated.items():
        assert f"{name} {of['p_value']:.2g} {of['finding']}" in words, name


def test_a_calibrated_one_is_not_called_otherwise(tmp_path):
    assert report(Box(), tmp_path).calibrated
    words = Page((tmp_path / "index.html").read_text()).text
    assert "Nothing speaks against it." in words
    assert "No: " not in words


MEASURE = """<!doctype html><body style="margin:0"><script>
const frame = document.createElement("iframe");
frame.style = "width:WIDTHpx;height:800px;border:0";
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(e => !e.closest(".wide") &&
    e.getBoundingClientRect().right > WIDTH + 1).map(e => e.tagName);
  const images = [...page.images].map(i => [i.complete && i.naturalWidth > 0, i.alt.length > 0,
    i.getBoundingClientRect().width / WIDTH]);
  const result = document.createElement("pre");
  result.textContent = JSON.stringify({scroll: root.scrollWidth, wide, images,
    font: parseFloat(frame.contentWindow.getComputedStyle(page.body).fontSize)});
  document.body.replaceChildren(result);
};
frame.src = "index.html";
document.body.append(frame);
</script></body>"""


def browse(*arguments: str, profile: Path) -> str:
    still = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    still += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    still += ["--allow-file-access-from-files", "--virtual-time-budget=20000", f"--user-data-dir={profile}"]
    done = subprocess.run([str(CHROMIUM), *still, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measured(folder: Path, width: int, profile: Path) -> dict:
    (folder / "measure.html").write_text(MEASURE.replace("WIDTH", str(width)))
    shown = browse("--dump-dom", (folder / "measure.html").as_uri(), profile=profile)
    return json.loads(re.findall(r"<pre>(.*?)</pre>", shown, re.DOTALL)[0])


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_nothing_is_broken_or_runs_over(made, tmp_path, width):
    found = measured(made[1], width, tmp_path)
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert len(found["images"]) == 8
    assert all(loaded and described for loaded, described, _ in found["images"])
    assert all(0.3 < share <= 1 for *_, share in found["images"])
    assert found["font"] >= 14


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_browser_test_sees_what_runs_over_and_what_is_broken(made, tmp_path):
    text = (made[1] / "index.html").read_text()
    broken = re.sub(r"base64,[^\"]{40}", "base64,", text, count=1)
    (tmp_path / "index.html").write_text(broken.replace("max-width: 100%;", "min-width: 900px;"))
    found = measured(tmp_path, 400, tmp_path / "profile")
    assert found["scroll"] > 400
    assert "IMG" in found["wide"]
    assert not all(loaded for loaded, *_ in found["images"])


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_it_prints(made, tmp_path):
    browse(f"--print-to-pdf={tmp_path / 'page.pdf'}", (made[1] / "index.html").as_uri(), profile=tmp_path / "profile")
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert 3 <= pages <= 12
