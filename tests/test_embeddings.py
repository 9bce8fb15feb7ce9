"""From observables to the context vector: order, scaling, and modules of the user's own."""

import copy

import pytest
import torch
from torch import nn

from sbi_dgm.config import settings
from sbi_dgm.data.scaling import Standardise, bent
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings.base import External, Summary
from sbi_dgm.embeddings.convolutions import CNN, Series
from sbi_dgm.embeddings.fusion import Auto, Fusion
from sbi_dgm.embeddings.sets import DeepSets
from sbi_dgm.embeddings.transformer import Transformer
from sbi_dgm.embeddings.vectors import MLP, Flatten
from sbi_dgm.errors import ExternalError, OptionError
from sbi_dgm.parameters import Observable

OBSERVABLES = {"flux": Observable((3,)), "map": Observable((2, 2)), "count": Observable(())}


def observation(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *o.shape, generator=noise) for name, o in OBSERVABLES.items()}


def scaler(mean: float, sd: float, shape: tuple[int, ...] = ()) -> Standardise:
    made = Standardise(shape)
    made.mean.fill_(mean)
    made.sd.fill_(sd)
    return made


def test_flatten_puts_observables_side_by_side_in_order():
    x = observation(5)
    context = Flatten().build(OBSERVABLES, 2)(x)
    assert torch.equal(context, torch.cat([x["flux"], x["map"].reshape(5, 4), x["count"][:, None]], 1))


def test_summary_scales_each_observable_by_its_own_numbers():
    scalers = {"flux": scaler(1.0, 2.0, (3,)), "map": scaler(-1.0, 0.5), "count": scaler(100.0, 10.0)}
    x = observation(4)
    context = Summary(scalers, Flatten().build(OBSERVABLES, 2))(x)
    expected = [(x["flux"] - 1) / 2, (x["map"].reshape(4, 4) + 1) / 0.5, (x["count"][:, None] - 100) / 10]
    assert torch.allclose(context, bent(torch.cat(expected, 1)))


def test_summary_takes_observables_by_name_not_by_their_order():
    x = observation(4)
    summary = Summary({name: scaler(0.5, 2.0, o.shape) for name, o in OBSERVABLES.items()}, Flatten().build({}, 2))
    assert torch.equal(summary(dict(reversed(x.items()))), summary(x))


@pytest.mark.parametrize("features", [1, 7])
def test_mlp_gives_the_features_asked_for_and_rows_stay_alone(features):
    x = observation(6)
    network = MLP(features=features, hidden=8, blocks=1).build(OBSERVABLES, 2)
    context = network(x)
    assert context.shape == (6, features)
    x["flux"][0] += 1
    assert not torch.allclose(network(x)[0], context[0])
    assert torch.allclose(network(x)[1:], context[1:], atol=1e-6)


def test_auto_takes_few_numbers_as_they_are_and_learns_a_summary_of_more():
    few, more = Auto(limit=8).build(OBSERVABLES, 2), Auto(limit=7).build(OBSERVABLES, 2)
    assert torch.equal(few(observation(3)), Flatten().build(OBSERVABLES, 2)(observation(3)))
    assert not list(few.parameters())
    assert list(more.parameters())


def test_a_summary_has_room_for_every_parameter():
    for dimension in (1, 20):
        assert MLP().build(OBSERVABLES, dimension)(observation(2)).shape[1] >= 2 * dimension


@pytest.mark.parametrize(("chosen", "expected"), [(Flatten(), 8), (MLP(features=5), 5), (Auto(limit=8), 8)])
def test_number_of_features_is_found(chosen, expected):
    scalers = {name: scaler(0.0, 1.0, o.shape) for name, o in OBSERVABLES.items()}
    assert Summary(scalers, chosen.build(OBSERVABLES, 2)).features(OBSERVABLES) == expected


class Pair(nn.Module):
    def forward(self, x):
        return torch.stack([x["flux"].sum(1), x["count"]], 1)


def test_a_module_of_ones_own_gets_one_observable_bare_and_several_by_name():
    x = observation(3)
    assert torch.equal(External(nn.Identity())({"flux": x["flux"]}), x["flux"])
    assert torch.equal(External(Pair())(x)[:, 1], x["count"])


@pytest.mark.parametrize("module", [nn.Flatten(0), nn.Unflatten(1, (3, 1))], ids=["no rows", "three axes"])
def test_a_module_that_gives_no_vector_a_row_is_refused(module):
    with pytest.raises(OptionError, match=r"it must give \(2, C\)"):
        Summary({"flux": scaler(0, 1, (3,))}, External(module)).features({"flux": OBSERVABLES["flux"]})


@pytest.mark.parametrize("chosen", [Auto(limit=3), Flatten(), MLP(features=3, hidden=8), MLP()])
def test_options_survive_json(chosen):
    assert embeddings.restore(embeddings.describe(chosen)) == chosen


def test_a_module_is_known_by_its_fingerprint_and_must_be_passed():
    description = embeddings.describe(nn.Linear(3, 2))
    with pytest.raises(ExternalError, match="embedding="):
        embeddings.restore(description)
    for other in (nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.Bilinear(3, 3, 2)):
        with pytest.raises(ExternalError, match="not the one of the file"):
            embeddings.restore(description, other)
    right = nn.Linear(3, 2)
    assert embeddings.restore(description, right) is right


def test_the_users_module_itself_is_not_touched():
    """What is built is a copy: two runs with one module start alike, two loaded posteriors keep their weights."""
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    built = embeddings.build(module, {"flux": OBSERVABLES["flux"]}, 2)
    for weight in built.parameters():
        weight.data.add_(1.0)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


# By shape


MIXED = {
    "map": Observable((2, 32, 32)),
    "jet": Observable((30, 4), kind="set"),
    "trace": Observable((2, 64)),
    "flux": Observable((3,)),
    "spectrum": Observable((100,)),
}
SUMMARIES = {"map": CNN(), "jet": DeepSets(), "trace": Series(), "flux": Flatten(), "spectrum": MLP()}


@pytest.mark.parametrize("name", MIXED)
def test_auto_goes_by_shape(name):
    assert Auto().chosen({name: MIXED[name]}) == SUMMARIES[name]


def test_auto_fuses_observables_of_several_kinds():
    chosen = Auto().chosen(MIXED)
    assert isinstance(chosen, Fusion)
    assert chosen.parts == SUMMARIES
    assert chosen.chosen(MIXED) == chosen


def mixed(rows: int) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    x = {name: torch.randn(rows, *o.shape, generator=noise) for name, o in MIXED.items()}
    return x | {"jet": torch.cat([x["jet"][..., :-1], (x["jet"][..., -1:] > 0).float()], -1)}


@pytest.mark.parametrize("name", MIXED)
def test_a_fusion_sees_each_of_its_observables_and_rows_stay_alone(name):
    x, network = mixed(3), Fusion().chosen(MIXED).build(MIXED, 2).eval()
    context = network(x)
    other = x | {name: x[name].clone()}
    other[name][1, ..., 0] += 1
    assert not torch.allclose(network(other)[1], context[1])
    assert torch.allclose(network(other)[[0, 2]], context[[0, 2]], atol=1e-6)


def test_a_fusion_of_few_numbers_learns_nothing_more():
    few = {"a": Observable((3,)), "b": Observable((2,))}
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    assert torch.equal(Fusion().chosen(few).build(few, 2)(x), torch.cat([x["a"], x["b"]], 1))


def test_a_part_of_ones_own_choice_is_kept_and_survives_json():
    fusion = Fusion(parts={"map": MLP(features=3), "trace": Transformer()}).chosen(MIXED)
    assert fusion.parts == SUMMARIES | {"map": MLP(features=3), "trace": Transformer()}
    assert embeddings.restore(embeddings.describe(fusion)) == fusion


@pytest.mark.parametrize(
    ("parts", "message"),
    [({"maps": CNN()}, "unknown observable 'maps': did you mean 'map'"), ({"map": "cnn"}, "options of an embedding")],
)
def test_a_fusion_of_what_is_not_there_is_refused(parts, message):
    with pytest.raises(OptionError, match=message):
        Fusion(parts=parts).chosen(MIXED)


def test_a_fusion_from_a_file_of_settings(tmp_path):
    (tmp_path / "run.toml").write_text(
        '[embedding]\nname = "fusion"\nhidden = 32\n[embedding.parts.map]\nname = "cnn"\nperiodic = true\n'
    )
    assert settings(tmp_path / "run.toml", [])["embedding"] == Fusion(hidden=32, parts={"map": CNN(periodic=True)})


def test_a_class_that_no_file_can_hold_is_refused():
    class Own(MLP):
        pass

    with pytest.raises(OptionError, match="Own is not the library's own"):
        embeddings.describe(Own())


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((3,), "set", "is no set"),
        ((4,), "field", "is no field"),
        ((), "series", "is no series"),
        ((3,), "tree", "tree"),
    ],
)
def test_an_observable_that_is_not_what_it_is_called_is_refused(shape, kind, message):
    with pytest.raises(OptionError, match=message):
        Observable(shape, kind=kind)
