"""A folder with a run and with every way in which its files can be wrong."""

import shutil

import h5py
import numpy as np
import torch
from command_toys import command
from safetensors.torch import save_file

from sbi_dgm.data import native

TINY = ["--set", "training.max_rounds=2", "--set", "estimator.transforms=1", "--set", "estimator.hidden=8"]
MODEL = "run/posterior.safetensors"


def fill(folder):
    """A simulation file, a posterior, and everything that can be wrong."""
    command("simulate", "gaussian_linear", "-n", 300, "-o", folder / "sims.h5")
    command("simulate", "supernovae", "-n", 300, "-o", folder / "supernovae.h5")
    command("train", folder / "sims.h5", "-o", folder / "run", "--device", "cpu", *TINY)
    np.save(folder / "x.npy", np.zeros(10))
    command("sample", folder / MODEL, folder / "x.npy", "-n", 50, "-o", folder / "samples.h5")
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text("{}")
    (folder / "x.png").write_bytes(b"a figure")
    simulations(folder)
    observations(folder)
    artefacts(folder)
    settings(folder)


def simulations(folder):
    for name, change in {
        "newer": lambda file: file.attrs.modify("format_version", 9),
        "foreign": lambda file: file.attrs.modify("format", "astro/catalogue"),
        "incomplete": lambda file: file.attrs.pop("complete"),
        "edited": lambda file: file.attrs.modify("simulator", "{}"),
        "lengths": lambda file: replace(file, "x/x", file["x/x"][:-1]),
    }.items():
        with h5py.File(shutil.copy(folder / "sims.h5", folder / f"{name}.h5"), "r+") as file:
            change(file)
    for name, (source, dataset, place, value) in {
        "nan_theta": ("sims", "theta", (41, 2), np.nan),
        "inf_theta": ("sims", "theta", (41, 2), np.inf),
        "nan_x": ("sims", "x/x", (slice(40, 300), 2), np.nan),
        "inf_x": ("sims", "x/x", (slice(40, 300), 2), np.inf),
        "constant": ("sims", "theta", (slice(None), 2), 0.125),
        "failed": ("sims", "valid", slice(40, 300), 0),
        "outside": ("supernovae", "theta", (41, 0), 0.75),
    }.items():
        header, columns = native.read(folder / f"{source}.h5")
        numbers = {name: column[:] for name, column in columns.items()}
        numbers[dataset][place] = value
        native.write(folder / f"{name}.h5", header, 300, [numbers])
    raw = (folder / "sims.h5").read_bytes()
    (folder / "cut.h5").write_bytes(raw[: len(raw) // 2])
    (folder / "flipped.h5").write_bytes(flip(raw, chunk(folder / "sims.h5", "theta") + 100))
    (folder / "text.h5").write_text("omega_m, w0\n0.3, -1\n")
    (folder / "empty.h5").write_bytes(b"")
    header, columns = native.read(folder / "sims.h5")
    native.write(folder / "few.h5", header, 49, [{name: column[:49] for name, column in columns.items()}])


def replace(file, name, values):
    del file[name]
    file[name] = values


def chunk(path, name):
    with h5py.File(path) as file:
        return file[name].id.get_chunk_info(0).byte_offset


def flip(raw, place):
    return raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]


def observations(folder):
    np.save(folder / "nine.npy", np.zeros(9))
    np.save(folder / "stack_of_nine.npy", np.zeros((4, 9)))
    np.save(folder / "stack.npy", np.zeros((4, 10)))
    np.save(folder / "nan.npy", np.r_[np.zeros(4), np.nan, np.zeros(5)])
    np.save(folder / "inf.npy", np.r_[np.zeros(4), np.inf, np.zeros(5)])
    np.save(folder / "words.npy", np.full(10, "a"))
    np.save(folder / "complex.npy", np.zeros(10, complex))
    np.savez(folder / "other.npz", flux=np.zeros(10))
    np.savetxt(folder / "nine.txt", np.zeros(9))
    (folder / "header.csv").write_text("a,b\n1,2\n")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "cut.npz").write_bytes((folder / "other.npz").read_bytes()[:100])


def artefacts(folder):
    raw = (folder / MODEL).read_bytes()
    header = int.from_bytes(raw[:8], "little")
    for name, content in {
        "size": flip(raw, 2),
        "header": flip(raw, 300),
        "weights": flip(raw, 8 + header + 1001),
        "last_byte": flip(raw, len(raw) - 1),
        "cut_in_header": raw[:200],
        "cut_in_weights": raw[:-100],
        "random": np.random.default_rng(0).bytes(5000),
        "nothing": b"",
    }.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    save_file({"a": torch.zeros(3)}, folder / "strange.safetensors", {"made_by": "another"})


def settings(folder):
    for name, text in {
        "unknown_key": "[training]\nbatchsize = 3\n",
        "unknown_table": "[trainig]\nbatch_size = 3\n",
        "unknown_family": '[estimator]\nname = "flwo"\n',
        "flat": 'estimator = "flow"\n',
        "broken": "[training\n",
        "data_key": "[data]\nthetas = 'theta'\nx = 'x/x'\n",
        "prior_word": "[prior]\ntheta_1 = {unifrom = [0, 1]}\n",
    }.items():
        (folder / f"{name}.toml").write_text(text)
