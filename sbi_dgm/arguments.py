"""What each command of the command line takes; `cli` runs them."""

import argparse
import math
from typing import Any

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
CONFIG = "TOML file with [estimator], [embedding], [training], [split], [reading], [data], [prior]"
LAYOUT = "TOML file, of which [data] and [prior] are read"
USE = "such as estimator.steps=100, for this use"


class Defaults(argparse.HelpFormatter):
    """Help that tells the defaults that are numbers or words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = isinstance(action.default, int | str) and action.nargs != 0 and action.default != argparse.SUPPRESS
        return f"{action.help} (default: {action.default})" if told else action.help or ""


def simulate(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm simulate`."""
    p.add_argument("simulator", help="name of an installed simulator, or package.module:Object")
    p.add_argument("-n", type=int, required=True, help="rows in all")
    _output(p, "simulation file (HDF5)")
    _seed(p)
    _engines(p)
    p.add_argument(
        "--shard-rows", type=int, default=1000, help="rows of one task; the last is simulated whole, then cut to n"
    )
    p.add_argument("--repeats", type=int, default=1, metavar="M", help="rows for each theta, kept in one split")


def _engines(p: argparse.ArgumentParser) -> None:
    engine = p.add_mutually_exclusive_group()
    engine.add_argument("--workers", type=int, default=1, help="processes of this machine")
    engine.add_argument("--dask", metavar="ADDRESS", help="Dask cluster, such as tcp://host:8786, or local")
    engine.add_argument("--mpi", action="store_true", help="under mpiexec -n 9 python -m mpi4py.futures -m sbi_dgm")
    engine.add_argument("--slurm", metavar="KEY=VALUE,...", help="Slurm jobs, such as partition=cpu,time=60")
    p.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="of one task, which then starts anew (two workers or more)"
    )


def train(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm train`."""
    p.add_argument("data", help="simulation file, or a foreign HDF5 file (or 'glob*.h5') with --theta and --x")
    _output(p, "run folder")
    _layout(p, CONFIG, "one setting, over the file")
    _noise(p)
    p.add_argument(
        "--estimator",
        help="auto, flow (the default), diffusion, flow_matching, continuous_flow, vae, located, contrastive",
    )
    learn = p.add_mutually_exclusive_group()
    learn.add_argument(
        "--learn",
        choices=("posterior", "likelihood"),
        default="posterior",
        help="p(theta | x), or p(x | theta) of up to 512 numbers x, for sample --refine",
    )
    learn.add_argument(
        "--refine",
        dest="learn",
        action="store_const",
        const="refined",
        help="learn the likelihood too, of up to 100 numbers x: sample --refine finds it",
    )
    p.add_argument("--rate", action="store_true", help="keep the cross section in event weights")
    p.add_argument("--parameters", type=_words, help="names to infer, by commas; others drop out")
    p.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    p.add_argument("--members", type=int, default=1, help="networks of an ensemble")
    p.add_argument("--workers", type=int, help="processes that train members (default: one for each core)")
    p.add_argument("--max-time", type=_seconds, metavar="TIME", help="such as 90m: end then, with exit code 3")
    p.add_argument("--tensorboard", action="store_true", help="write curves to the run folder for TensorBoard")
    _seed(p)
    _device(p)


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give a number with s, m, h or d, such as 2h")
    return seconds


def sample(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm sample`."""
    p.add_argument("model", help="posterior file")
    p.add_argument("observation", help=".npy, .npz, CSV, text, or a simulation file with --row")
    p.add_argument("-n", type=int, default=10_000, help="draws")
    _output(p, "file of samples (HDF5)")
    p.add_argument("--row", type=int, help="row of a simulation file")
    _refine(p)
    p.add_argument(
        "--log-prob", action="store_true", help="keep ln q of each draw; where it is exact it is kept anyway"
    )
    p.add_argument("--strict", action="store_true", help="refuse an observation that is unlike the simulations")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help=USE,
    )
    p.add_argument("--corner", help="also draw a corner plot into this file")
    _seed(p)
    _device(p)


def _refine(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--refine",
        nargs="?",
        const="",
        metavar="LIKELIHOOD",
        help="importance weights by a likelihood file, a simulator with log_likelihood, or what train --refine learned",
    )
    p.add_argument("--effective", type=float, help="effective size of the weights, with --refine (default: 10000)")


def calibrate(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm calibrate`."""
    p.add_argument("model", help="posterior file")
    p.add_argument("data", help="simulation file, or a foreign HDF5 file; its layout is known from training")
    _output(p, "report folder")
    _layout(p, LAYOUT, USE)
    _noise(p)
    _refine(p)
    p.add_argument("--draws", type=int, default=1000, help="draws of each row")
    p.add_argument("--rows", type=int, default=1000, help="at most so many rows")
    p.add_argument(
        "--quantities", metavar="PACKAGE.MODULE:NAME", help="functions of the parameters by name, judged too"
    )
    p.add_argument("--simulator", help="run it again for predictive checks: a name, or package.module:Object")
    p.add_argument(
        "--at", metavar="OBSERVATION", help="test the posterior at this observation too, apart from the rest"
    )
    p.add_argument("--row", type=int, help="row of --at, where that is a file of simulations")
    _seed(p)
    _device(p)


def repair(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm repair`."""
    p.add_argument("model", help="posterior file")
    p.add_argument("data", help="simulation file, or a foreign HDF5 file; its layout is known from training")
    _output(p, "posterior file")
    _layout(p, LAYOUT, USE)
    _noise(p)
    p.add_argument("--draws", type=int, default=1000, help="draws of each row that regions rest on")
    p.add_argument("--rows", type=int, default=4000, help="at most so many rows")
    _seed(p)
    _device(p)


def benchmark(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm benchmark`."""
    p.add_argument("suite", nargs="?", help="quick, standard, full, or a TOML file; what follows goes over it")
    p.add_argument("--tasks", type=_words, metavar="NAMES", help="simulators with a reference, by commas")
    p.add_argument("--estimators", type=_words, metavar="NAMES", help="families, or package.module:callable")
    p.add_argument("--budgets", metavar="NUMBERS", help="simulations, such as 1000,10000")
    p.add_argument("--observations", metavar="NUMBERS", help="such as 1-10; beyond the published ones they are fresh")
    p.add_argument("--seeds", metavar="NUMBERS", help="such as 0,1,2")
    p.add_argument("--scores", type=_words, metavar="NAMES", help="such as c2st,mmd")
    p.add_argument("--draws", type=int, help="of either posterior at each observation")
    p.add_argument("--truths", type=int, help="fresh simulations for calibration and log-probability; 0: none")
    p.add_argument("--against", metavar="BASELINE", help="a summary.json: exit code 1 on a significant loss")
    p.add_argument("-o", "--out", required=True, help="folder; what it holds already is not done again")
    _engines(p)
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def _words(text: str) -> list[str]:
    return text.split(",")


def inspect(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm inspect`."""
    p.add_argument("data", metavar="file", help="simulation file, posterior file, file of samples, or any HDF5 file")
    _layout(p, LAYOUT, "one setting, such as data.theta=parameters")


def quickstart(p: argparse.ArgumentParser) -> None:
    """Of `sbi-dgm quickstart`."""
    p.add_argument("-o", "--out", default="quickstart", help="folder")
    p.add_argument("--overwrite", action="store_true", help="replace what is there")


def _output(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("-o", "--out", required=True, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


class _Joined(argparse.Action):
    """One that is given again adds to what was said."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def _layout(p: argparse.ArgumentParser, config: str, word: str) -> None:
    p.add_argument("--config", metavar="FILE", help=config)
    p.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help=word)
    p.add_argument(
        "--theta",
        metavar="PLACES",
        action=_Joined,
        help="datasets of the parameters, by commas, name=place to name one; or a table beside (.txt, .csv, .dat, "
        ".tsv, .npy)",
    )
    p.add_argument(
        "--x", metavar="PLACES", action=_Joined, help="datasets of the observables, by commas; name=place to name one"
    )
    p.add_argument("--event-weight", metavar="PLACE", help="weights of Monte Carlo events")
    p.add_argument("--proposal-weight", metavar="PLACE", help="p(theta) / p~(theta), where theta was drawn from p~")
    p.add_argument("--group", metavar="PLACE", help="rows of one group stay in one split")


def _noise(p: argparse.ArgumentParser) -> None:
    p.add_argument("--noise", metavar="MODULE:FUNCTION", help="model of noise, (x, theta, generator) -> x")


def _seed(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=int, default=0, help="of all random numbers")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
