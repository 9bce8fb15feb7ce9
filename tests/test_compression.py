"""Linear compressions: principal components against numpy's, score compression against linear Gaussian models."""

import numpy as np
import pytest
import torch
from training_toys import BRIEF, PRIOR, SMALL

import sbi_dgm
from sbi_dgm.data.scaling import Standardise, bent
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings import compression
from sbi_dgm.embeddings.base import Summary
from sbi_dgm.embeddings.compression import PCA
from sbi_dgm.embeddings.fusion import Fusion
from sbi_dgm.errors import OptionError
from sbi_dgm.parameters import Observable

SPECTRUM = {"flux": Observable((12,)), "index": Observable(())}


def rows(count: int = 500, seed: int = 0) -> dict[str, torch.Tensor]:
    """Thirteen numbers that five are behind, and some noise."""
    rng = np.random.default_rng(seed)
    flat = rng.normal(size=(count, 5)) @ rng.normal(size=(5, 13)) + 0.3 + 0.05 * rng.normal(size=(count, 13))
    flat = torch.as_tensor(flat, dtype=torch.float32)
    return {"flux": flat[:, :12], "index": flat[:, 12]}


def summary(chosen: PCA, observables: dict[str, Observable]) -> Summary:
    scalers = {name: Standardise(o.shape) for name, o in observables.items()}
    return Summary(scalers, embeddings.build(chosen, observables, 2))


def gathered(chosen: PCA, x: dict[str, torch.Tensor], size: int = 64) -> Summary:
    """Fitted to rows that come in pieces."""
    made = summary(chosen, SPECTRUM)
    made.gather({name: values[i : i + size] for name, values in x.items()} for i in range(0, len(x["flux"]), size))
    return made


def whitened(x: dict[str, torch.Tensor], count: int) -> np.ndarray:
    """What numpy's singular values say."""
    flat = bent(torch.column_stack([x["flux"], x["index"]])).double().numpy()
    left, _, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    return np.sqrt(len(flat)) * (left * signs)[:, :count]


def check_components(made: Summary, x: dict[str, torch.Tensor], count: int) -> None:
    assert np.abs(made(x).numpy() - whitened(x, count)).max() < 2e-3


@pytest.mark.parametrize("count", [1, 4, 13])
def test_principal_components_are_those_of_numpys_singular_values(count):
    x = rows()
    check_components(gathered(PCA(features=count), x), x, count)
    with pytest.raises(AssertionError):
        check_components(gathered(PCA(features=count), rows(seed=1)), x, count)


def test_components_are_white_on_the_rows_that_they_come_from_and_of_the_number_asked_for():
    c = gathered(PCA(features=5), rows())(rows()).double()
    assert torch.allclose(c.T @ c / len(c), torch.eye(5, dtype=torch.float64), atol=1e-3)
    assert summary(PCA(features=99), SPECTRUM).features(SPECTRUM) == 13


def test_rows_in_pieces_give_the_components_of_all_together():
    x = rows()
    assert torch.allclose(gathered(PCA(), x, 7)(x), gathered(PCA(), x, 500)(x), atol=1e-3)


def test_directions_without_variance_stay_zero():
    x = rows()
    x["flux"][:, :3], x["index"] = 1.0, x["flux"][:, 5]
    c = gathered(PCA(), x)(x)
    assert torch.isfinite(c).all()
    assert not c[:, 9:].any()
    assert c[:, :9].any(0).all()


def test_too_many_numbers_and_sets_are_refused():
    with pytest.raises(OptionError, match=r"4097 numbers.*up to 4096"):
        PCA().build({"map": Observable((4097,))}, 2)
    with pytest.raises(OptionError, match="'hits' is a set"):
        PCA().build({"hits": Observable((5, 3), kind="set")}, 2)


def line(count: int = 400) -> sbi_dgm.Simulations:
    """Forty numbers that the three parameters are behind."""
    theta, rng = PRIOR.sample(count, 1), np.random.default_rng(2)
    x = theta @ rng.normal(size=(3, 40)) + 0.1 * rng.normal(size=(count, 40))
    return sbi_dgm.Simulations.from_arrays(theta, {"x": x, "y": x[:, :2]}, prior=PRIOR)


def trained(embedding, **options) -> sbi_dgm.Posterior:
    given = {"estimator": SMALL, "training": BRIEF, "device": "cpu", "progress": False} | options
    return sbi_dgm.fit(line(), embedding=embedding, **given)


@pytest.mark.parametrize("embedding", [PCA(features=5), Fusion(parts={"x": PCA(features=3)})])
def test_components_come_from_training_rows_and_survive_the_file(embedding, tmp_path):
    posterior = trained(embedding, reading=sbi_dgm.data.reading.Reading(mode="stream"))
    again = trained(embedding)
    posterior.save(tmp_path / "p.safetensors")
    loaded = sbi_dgm.load(tmp_path / "p.safetensors")
    parts = [p for p in posterior.network.summary.modules() if isinstance(p, compression._PCA)]
    same = [p for p in again.network.summary.modules() if isinstance(p, compression._PCA)]
    assert torch.allclose(parts[0].maps, same[0].maps, rtol=1e-4, atol=1e-4), "a stream gives what memory gives"
    x = line().x(np.arange(3))
    assert np.array_equal(posterior.sample(10, x, seed=1).array, loaded.sample(10, x, seed=1).array)
