"""What docs/embeddings.md shows runs as it stands, by short trainings, and its TOML is what its Python says."""

import re
import tomllib

import pytest
from pages import blocks, page

import sbi_dgm
from sbi_dgm import config, options, training
from sbi_dgm.embeddings.base import EMBEDDINGS
from sbi_dgm.embeddings.convolutions import CNN
from sbi_dgm.loop import Training

PAGE = page("embeddings.md")
BRIEF = Training(round=2, max_rounds=1, batch_size=64)


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(monkeypatch, tmp_path, capsys):
    original, fitted = training.fit, []

    def brief(data, *given, **chosen):
        fitted.append(original(data, *given, training=BRIEF, device="cpu", progress=False, **chosen))
        return fitted[-1]

    monkeypatch.setattr(training, "fit", brief)
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for block in blocks(PAGE, "python"):
        exec(compile(block, "docs/embeddings.md", "exec"), known)
    assert len(fitted) == PAGE.count("sbi_dgm.fit(")
    assert known["samples"].array.shape == known["nothing"].array.shape == (1000, 2)
    assert known["stack"].array.shape == (4, 100, 2)
    assert known["compressor"](known["spectrum"][200:203]).shape == (3, 2)


def test_the_toml_and_the_words_are_the_fusion_of_the_example(tmp_path):
    (text,) = blocks(PAGE, "toml")
    (tmp_path / "run.toml").write_text(text)
    chosen = config.settings(tmp_path / "run.toml", ["embedding.absent=0.2"])["embedding"]
    assert chosen == sbi_dgm.Fusion(
        parts={"maps": CNN(symmetric=True), "spectrum": sbi_dgm.PCA(features=8)}, absent=0.2
    )
    assert set(tomllib.loads(text)["embedding"]["parts"]) == {"maps", "spectrum"}
    words = re.findall(r"--set (\S*=\w+)", PAGE)
    assert config.settings(None, words)["embedding"] == sbi_dgm.Fusion(parts={"maps": CNN(symmetric=True)})
    assert config.settings(None, ["embedding.absent=0.2"])["embedding"].absent == 0.2


def test_a_word_inside_of_what_is_no_table_is_refused():
    with pytest.raises(sbi_dgm.SbiError, match="features = 3 is no table that name could be in"):
        config.settings(None, ["embedding.features=3", "embedding.features.name=cnn"])


def test_the_table_has_every_embedding_and_its_options():
    told = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", PAGE, re.MULTILINE))
    assert set(told) == set(EMBEDDINGS) - {"auto"}
    for name in set(told) - {"moped", "pretrained", "cnn"}:
        assert set(re.findall(r"`(\w+)`", told[name])) == set(
            type(options.make("embedding", EMBEDDINGS, name)).model_fields
        )
