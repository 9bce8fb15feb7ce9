"""One file for a posterior: the same draws to the bit, no code in it, and no changed byte unnoticed."""

import copy
import json
import struct
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.special import ndtr, ndtri
from scipy.stats import gamma
from torch import nn

import sbi_dgm
from sbi_dgm import artifact, load, sealed
from sbi_dgm.distributions import LogNormal, Uniform
from sbi_dgm.embeddings.vectors import MLP
from sbi_dgm.errors import ExternalError, FileError, OptionError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.located import Located
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.posterior import Posterior
from sbi_dgm.priors import MultivariateNormal, Prior, PriorTransform

SMALL = Flow(transforms=2, hidden=8, blocks=1)
BRIEF = Training(batch_size=32, round=3, max_rounds=2)
BOX = Prior([Parameter("a", Uniform(0, 2), r"\alpha"), Parameter("b", LogNormal(0, 1), unit="m")])


def triangle(u: np.ndarray) -> np.ndarray:
    """The unit square -> 0 < b < a < 1, uniform."""
    a = np.sqrt(u[..., 0])
    return np.stack([a, a * u[..., 1]], -1)


def square(theta: np.ndarray) -> np.ndarray:
    return np.stack([theta[..., 0] ** 2, theta[..., 1] / theta[..., 0]], -1)


TRIANGLE = PriorTransform(["a", "b"], triangle, square)
SCIPY = Prior([Parameter("a", gamma(2.0, scale=3.0)), Parameter("b", Uniform(0, 1))])
NORMAL = MultivariateNormal(["a", "b"], [0.0, 1.0], [[1.0, 0.5], [0.5, 2.0]])


def fit(estimator=SMALL, embedding="auto", prior: Prior | None = BOX, seed: int = 0) -> Posterior:
    theta = (prior or BOX).sample(200, seed=1)
    noise = np.random.default_rng(2).normal(size=(200, 3))
    x = {"flux": noise + theta[:, :1], "count": np.round(10 * theta[:, 1]).astype(np.int32)}
    x = x if embedding in ("auto", MLP(features=4)) else x["flux"]
    data = sbi_dgm.Simulations.from_arrays(theta, x, prior=prior, names=None if prior else ["a", "b"])
    return sbi_dgm.fit(data, estimator, embedding, training=BRIEF, device="cpu", seed=seed, progress=False)


POSTERIOR = fit()
SEEN = {"flux": np.array([0.3, 1.0, -0.2]), "count": 4}
FLUX = SEEN["flux"]


def check_same(one: Posterior, two: Posterior, x=SEEN) -> None:
    first, second = (p.sample(50, x, seed=5, log_prob=True) for p in (one, two))
    assert np.array_equal(first.array, second.array)
    assert np.array_equal(first.log_prob, second.log_prob)
    assert np.array_equal(one.log_prob(first.array, x), two.log_prob(first.array, x))


@pytest.fixture
def path(tmp_path):
    POSTERIOR.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_a_loaded_posterior_draws_the_same_to_the_bit(path):
    check_same(POSTERIOR, load(path))
    with pytest.raises(AssertionError):
        check_same(POSTERIOR, fit(seed=1))


@pytest.mark.parametrize(
    "made",
    [
        {"estimator": Located(SMALL, hidden=8)},
        {"estimator": Flow(transforms=2, hidden=8, layout="coupling", map="affine", dropout=0.1)},
        {"embedding": MLP(features=4)},
        {"prior": NORMAL},
        {"prior": SCIPY},
        {"prior": None},
    ],
    ids=["located", "coupling", "mlp", "normal prior", "scipy prior", "no prior"],
)
def test_every_kind_of_posterior_survives(tmp_path, made):
    posterior = fit(**made)
    posterior.save(tmp_path / "p.safetensors")
    loaded = load(tmp_path / "p.safetensors")
    check_same(posterior, loaded)
    assert loaded.prior == posterior.prior


def test_what_is_said_about_it_survives(path):
    loaded = load(path)
    assert loaded.record == json.loads(json.dumps(POSTERIOR.record))
    assert loaded.model.observables == dict(POSTERIOR.model.observables)
    assert [p.title for p in loaded.prior.parameters] == [p.title for p in BOX.parameters]
    assert artifact.read(path)[0]["record"]["seed"] == 0
    assert {"seed", "split", "data", "versions", "best_validation_loss"} <= set(loaded.record)


def test_saving_a_loaded_posterior_gives_the_same_header_and_checksum(path, tmp_path):
    load(path).save(tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", "pt") as again, safe_open(path, "pt") as first:
        assert again.metadata() == first.metadata()


def test_the_file_is_a_json_header_and_numbers_and_nothing_else(path):
    """8 bytes of length, the header, and tensors that lie end to end until the file ends: no room for a pickle."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    spans = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    assert spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert 8 + length + spans[-1][1] == len(content)
    assert json.loads(header["__metadata__"]["sbi_dgm"])["format"] == "sbi_dgm/posterior"


def check_found(path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        load(path)
    except FileError:
        return
    raise AssertionError("a changed file was loaded")


@pytest.mark.parametrize("part", ["length", "header", "weights"])
def test_a_flipped_bit_anywhere_is_found(path, part):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    first, last = {"length": (0, 8), "header": (8, 8 + length), "weights": (8 + length, len(content))}[part]
    for position in np.unique(np.linspace(first, last - 1, 60).astype(int)):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        check_found(path, bytes(changed))
    with pytest.raises(AssertionError):
        check_found(path, content)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_cut_file_is_found(path, share):
    content = path.read_bytes()
    check_found(path, content[: int(share * len(content))])


def test_other_files_are_refused_in_a_sentence(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, sentence in (("none.safetensors", "there is no file"), ("other.safetensors", "no posterior of sbi_dgm")):
        with pytest.raises(FileError, match=sentence):
            load(tmp_path / name)


@pytest.mark.parametrize(("version", "remedy"), [(8, "update it"), (6, "train again")])
def test_another_version_is_refused_with_both_numbers(tmp_path, monkeypatch, version, remedy):
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "VERSION", version)
        POSTERIOR.save(tmp_path / "p.safetensors")
    with pytest.raises(FileError, match=rf"format version {version}.*reads 7: {remedy}"):
        load(tmp_path / "p.safetensors")


def test_an_existing_file_is_kept_unless_told(path):
    before = path.read_bytes()
    with pytest.raises(FileError, match="overwrite=True"):
        POSTERIOR.save(path)
    assert path.read_bytes() == before
    fit(seed=1).save(path, overwrite=True)
    assert path.read_bytes() != before


def test_a_save_that_fails_leaves_the_old_file_and_no_other(path, monkeypatch):
    def broken(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    before = path.read_bytes()
    monkeypatch.setattr(sealed, "save_file", broken)
    with pytest.raises(FileError, match="full"):
        POSTERIOR.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def own_module(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, outputs))


def test_an_embedding_of_ones_own_must_be_passed_and_be_the_right_one(tmp_path):
    posterior = fit(embedding=own_module())
    posterior.save(tmp_path / "p.safetensors")
    with pytest.raises(ExternalError, match="embedding="):
        load(tmp_path / "p.safetensors")
    for wrong in (own_module(3), nn.Linear(3, 2)):
        with pytest.raises(ExternalError, match="not the one"):
            load(tmp_path / "p.safetensors", embedding=wrong)
    check_same(posterior, load(tmp_path / "p.safetensors", embedding=own_module()), FLUX)


def test_two_posteriors_loaded_with_one_module_keep_their_own_weights(tmp_path):
    posteriors = [fit(embedding=own_module(), seed=seed) for seed in (0, 1)]
    module = own_module()
    before = copy.deepcopy(module.state_dict())
    for i, posterior in enumerate(posteriors):
        posterior.save(tmp_path / f"{i}.safetensors")
    loaded = [load(tmp_path / f"{i}.safetensors", embedding=module) for i in (0, 1)]
    for one, two in zip(posteriors, loaded, strict=True):
        check_same(one, two, FLUX)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_a_prior_that_is_a_function_must_be_passed_and_be_the_right_one(tmp_path):
    posterior = fit(prior=TRIANGLE)
    posterior.save(tmp_path / "p.safetensors")
    with pytest.raises(ExternalError, match="prior="):
        load(tmp_path / "p.safetensors")
    other = PriorTransform(["a", "b"], lambda u: ndtri(u), lambda theta: ndtr(theta))
    with pytest.raises(ExternalError, match="not the one"):
        load(tmp_path / "p.safetensors", prior=other)
    check_same(posterior, load(tmp_path / "p.safetensors", prior=TRIANGLE))


def test_loading_leaves_global_random_state_alone(path):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load(path)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("name", ["cuda" if not torch.cuda.is_available() else "xpu", "gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(path, name):
    with pytest.raises(OptionError, match="use 'cpu'"):
        load(path, device=name)
