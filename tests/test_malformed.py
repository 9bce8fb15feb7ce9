"""Files that were damaged by more than chance, their checksums made anew: each is one sentence, none a traceback."""

import copy
import json
import threading
from contextlib import suppress

import benchmark_toys as toys
import pytest
import torch
from posterior_toys import BOX
from safetensors.torch import save_file
from torch import nn
from training_toys import BRIEF, PRIOR, SMALL, simulations

import sbi_dgm
from sbi_dgm import Suite, artifact, checkpoints, companion, run_benchmark, sealed
from sbi_dgm.benchmark import cells
from sbi_dgm.benchmark.gate import baseline, compare
from sbi_dgm.benchmark.table import gathered
from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import FileError, OptionError, PriorError, SbiError
from sbi_dgm.model import device_named
from sbi_dgm.parameters import Parameter
from sbi_dgm.pooling import Pool
from sbi_dgm.priors import Prior, PriorTransform

VALUES = [None, -1, 7, 1.5, float("nan"), "x", [], {}, {"a": 1}, "taken away"]
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5000


def places(node, at=()):
    """Where the values of JSON stand, the records of a training left out."""
    if at:
        yield at
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key != "record":
            yield from places(value, (*at, key))


def changed(content, at, value):
    """The JSON with one value replaced or taken away."""
    content = copy.deepcopy(content)
    node = content
    for key in at[:-1]:
        node = node[key]
    if value == "taken away":
        del node[at[-1]]
    else:
        node[at[-1]] = value
    return content


def refused(call, *given, **options) -> bool:
    """Whether a call ends in an error of ours; one that is not ours fails the test."""
    try:
        call(*given, **options)
    except SbiError:
        return True
    return False


# Posteriors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An ensemble, its file, and a checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    small = SMALL.model_copy(update={"transforms": 1})
    options = {"estimator": small, "embedding": "mlp", "training": BRIEF, "device": "cpu", "progress": False}
    posterior = sbi_dgm.fit(simulations(), members=2, out=folder, **options)
    posterior.save(folder / "p.safetensors")
    return posterior, folder


@pytest.fixture(scope="module")
def content(trained):
    """Header and tensors of the posterior's file."""
    return artifact.read(trained[1] / "p.safetensors")


def written(path, header, tensors):
    """A file with a checksum that is right."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, {"sbi_dgm": text, "sha256": artifact.digest(text, tensors)})
    return path


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_posterior_with_any_malformed_value_is_refused_or_loads(tmp_path, content, value):
    header, tensors = content
    count = 0
    for at in places(header):
        count += refused(sbi_dgm.load, written(tmp_path / "p.safetensors", changed(header, at, value), tensors))
    assert count > 10
    assert not refused(sbi_dgm.load, written(tmp_path / "p.safetensors", header, tensors))


@pytest.mark.parametrize("name", ["transforms", "blocks", "hidden"])
def test_a_network_of_another_size_than_the_weights_is_told(tmp_path, content, name):
    larger = changed(content[0], ("estimator", "options", name), 9)
    with pytest.raises(FileError, match=r"the shape of '.*' is .*, its options ask for"):
        sbi_dgm.load(written(tmp_path / "p.safetensors", larger, content[1]))


@pytest.mark.parametrize("size", [0, 10**12])
def test_no_more_members_than_tensors(tmp_path, content, size):
    with pytest.raises(FileError, match=f"{size} members"):
        sbi_dgm.load(written(tmp_path / "p.safetensors", content[0] | {"members": size}, content[1]))


@pytest.mark.parametrize("text", [DEEP, LONG, "[]", "null", "", "{", '{"format": "sbi_dgm/posterior"}'])
def test_a_header_that_is_none_is_refused(tmp_path, content, text):
    with pytest.raises(FileError, match="damaged or of another version"):
        artifact.read(written(tmp_path / "p.safetensors", text, content[1]))


def test_weights_of_another_network_are_refused(tmp_path, content):
    header, tensors = content
    name = next(name for name, values in tensors.items() if values.ndim == 2 and not name.startswith("trust"))
    gate = next(name for name in tensors if name.startswith("trust"))
    kinds = [tensors[name].to(kind) for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool)]
    for other in (*kinds, tensors[name][:1].clone(), tensors[name][None].clone(), torch.zeros(())):
        with pytest.raises(FileError, match=f"of '{name}' is .*, its options ask for"):
            sbi_dgm.load(written(tmp_path / "p.safetensors", header, tensors | {name: other}))
    for some in ({"more": torch.zeros(1)}, {gate: torch.zeros(1).bfloat16()}):
        assert refused(sbi_dgm.load, written(tmp_path / "p.safetensors", header, tensors | some))
    for gone in (name, gate):
        rest = {key: values for key, values in tensors.items() if key != gone}
        assert refused(sbi_dgm.load, written(tmp_path / "p.safetensors", header, rest))
    assert refused(sbi_dgm.load, written(tmp_path / "p.safetensors", header, {}))


def other(*names) -> Prior:
    return Prior([Parameter(name, Uniform(-9, 9)) for name in names])


def test_a_prior_or_an_embedding_that_the_file_does_not_need_is_refused(trained):
    path = trained[1] / "p.safetensors"
    assert sbi_dgm.load(path, prior=PRIOR).prior == PRIOR
    for wrong in (BOX, other("a", "b", "c"), other("q"), PriorTransform(["a", "b", "c"], lambda u: u, lambda t: t)):
        with pytest.raises(PriorError, match=r"a prior of its own, and another is given: leave it out"):
            sbi_dgm.load(path, prior=wrong)
    with pytest.raises(OptionError, match="give a Prior"):
        sbi_dgm.load(path, prior={"a": {"uniform": [0, 1]}})
    with pytest.raises(OptionError, match="the file has its embedding, mlp"):
        sbi_dgm.load(path, embedding=nn.Linear(3, 3))
    with pytest.raises(OptionError, match="give the module"):
        sbi_dgm.load(path, embedding="mlp")


def test_the_prior_of_more_parameters_than_were_learned_is_the_same_one(tmp_path):
    options = {"estimator": SMALL, "training": BRIEF, "device": "cpu", "progress": False}
    sbi_dgm.fit(simulations(), parameters=["c", "a"], **options).save(tmp_path / "p.safetensors")
    assert sbi_dgm.load(tmp_path / "p.safetensors", prior=PRIOR).names == ["c", "a"]
    sbi_dgm.fit(simulations(prior=None), **options).save(tmp_path / "none.safetensors")
    with pytest.raises(PriorError, match="trained without a prior, and one is given"):
        sbi_dgm.load(tmp_path / "none.safetensors", prior=PRIOR)


@pytest.mark.parametrize("device", ["meta", "nowhere", None, 3.5, torch.device("meta")])
def test_what_is_no_device_is_refused(trained, device):
    for move in (trained[0].to, device_named):
        with pytest.raises(OptionError, match="use 'cpu'"):
            move(device)
    assert trained[0].to(torch.device("cpu")) is trained[0]


# Checkpoints


@pytest.fixture
def kept(tmp_path):
    """A checkpoint and its parts."""
    groups = {"network": {"a.b": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, "best.x": {"e": torch.ones(1)}}
    checkpoints.save(tmp_path / "checkpoint", groups, {"step": 3, "history": [{"loss": 0.5}]})
    return tmp_path / "checkpoint", groups


def resumed(path):
    return checkpoints.load(path, torch.device("cpu"))


def test_no_byte_of_a_checkpoint_changes_unseen(kept):
    path, groups = kept
    raw, (found, note) = path.read_bytes(), resumed(path)
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :])
        with suppress(FileError):  # but for one in the word sha256 itself, or in spaces
            again = resumed(path)
            assert again[1] == note
            assert all(torch.equal(v, again[0][g][n]) for g, part in groups.items() for n, v in part.items())
    assert note == {"step": 3, "history": [{"loss": 0.5}]}
    assert found.keys() == groups.keys()


@pytest.mark.parametrize("texts", [None, {"note": '{"step": 1}'}])
def test_a_checkpoint_without_a_checksum_is_refused(kept, texts):
    path, _ = kept
    save_file({"network/a": torch.ones(2)}, path, texts)
    with pytest.raises(FileError, match="start again with overwrite=True"):
        resumed(path)


@pytest.mark.parametrize("note", ["", "[]", "3", "null", DEEP, LONG])
def test_a_malformed_checkpoint_is_refused(kept, note):
    path, _ = kept
    sealed.write(path, "note", note, {"network/a": torch.ones(2)})
    with pytest.raises(FileError, match="start again with overwrite=True"):
        resumed(path)
    sealed.write(path, "note", "{}", {"a": torch.ones(2)})
    with pytest.raises(FileError, match="start again with overwrite=True"):
        resumed(path)


# JSON


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_malformed_pool_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setattr(companion, "_fingerprints", lambda *_: {"posterior": "p", "likelihood": "q"})
    told = Pool(0.5, 0.1, 0.01, 0.2, 0.02, 300, 1.5)
    whole = {"pool": told._asdict(), "reason": "", "weights": {"posterior": "p", "likelihood": "q"}}
    path = tmp_path / "pool.json"
    for at in places(whole):
        path.write_text(json.dumps(changed(whole, at, value)))
        could_be = value in (None, -1, 7, 1.5) or at == ("reason",)
        assert refused(companion._told, path, None, None) or could_be, at
    for text in ("", "[]", "null", DEEP, LONG):
        path.write_text(text)
        with pytest.raises(FileError, match="damaged: remove it"):
            companion._told(path, None, None)
    path.write_text(json.dumps(whole))
    assert companion._told(path, None, None) == told


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A benchmark's folder, with its suite."""
    folder = tmp_path_factory.mktemp("benchmark")
    suite = Suite(tasks=[toys.Line()], estimators=[toys.exact], observations="1-2", draws=100, truths=20, seeds="0-2",
                  scores=["c2st"])  # fmt: skip
    run_benchmark(suite, out=folder, progress=False)
    return folder, suite


def test_a_cell_that_is_malformed_is_measured_again(measured):
    folder, suite = measured
    (wanted, *_) = suite.cells("cpu")
    path = wanted.path(folder)
    whole = json.loads(path.read_text())
    texts = ["", "{", "[]", "null", DEEP, json.dumps(whole)[:300], json.dumps(whole | {"format_version": 2})]
    needed = [at for at in places(whole) if at[0] in ("scores", "truths", "seconds", "task", "budget", "draws")]
    texts += [json.dumps(changed(whole, at, value)) for at in needed for value in ("x", [], {"a": None, "b": "c"})]
    for text in texts:
        path.write_text(text)
        assert wanted.found(folder) is None
    with pytest.warns(UserWarning, match="1 cells of .* are damaged or of another version"):
        assert len(gathered(folder).cells) == 2
    again = run_benchmark(suite, out=folder, progress=False)
    assert json.loads(path.read_text())["scores"] == whole["scores"]
    assert len(again.cells) == 3
    assert wanted.found(folder) is not None


def test_a_malformed_baseline_is_refused(measured, tmp_path):
    summary = json.loads((measured[0] / "summary.json").read_text())
    path = tmp_path / "summary.json"
    for at in places(summary):
        for value in VALUES:
            path.write_text(json.dumps(changed(summary, at, value)))
            refused(lambda: compare(summary, baseline(path)))
    for text in ("", "[]", "null", DEEP, LONG, '{"format": "sbi_dgm/benchmark"}'):
        path.write_text(text)
        with pytest.raises(FileError):
            baseline(path)
    path.write_text(json.dumps(summary))
    assert not any(verdict.lost for verdict in compare(summary, baseline(path)))


def test_cells_that_overlap_in_threads_leave_torch_as_it_was():
    before, inside, outside = torch.get_num_threads(), threading.Event(), threading.Event()
    found = []

    def beside():
        with cells._one_thread():
            inside.set()
            outside.wait()
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    torch.set_num_threads(3)
    try:
        thread = threading.Thread(target=beside)
        with cells._one_thread():
            thread.start()
            inside.wait()
            found.append(torch.get_num_threads())
        outside.set()
        thread.join()
        assert [*found, torch.get_num_threads()] == [1, 1, 3, 3]
    finally:
        torch.set_num_threads(before)
