"""A small simulator that can go wrong in many ways, and what is compared of the files that campaigns write."""

import importlib.util
import os
import sys

import h5py
import numpy as np
import pytest

from sbi_dgm import Normal, Observable, Parameter, Prior, Uniform, simulate

OBSERVABLES = {"x": Observable((3,), "mag"), "n": Observable(())}


class Toy:
    """Vectors and counts from two parameters; `mood` says what goes wrong."""

    name, version = "toy", "1"

    def __init__(self, mood="well"):
        self.mood, self.observables = mood, OBSERVABLES
        self.prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Normal(0, 1))])

    def __call__(self, theta, rng):
        x = theta[:, :1] + rng.normal(size=(len(theta), 3))
        n = rng.poisson(10 * theta[:, 0])
        return getattr(self, f"_{self.mood}")(theta, x, n)

    def _well(self, theta, x, n):
        return {"x": x, "n": n}

    def _raises(self, theta, x, n):
        if (theta[:, 0] > 0.9).any():
            raise ZeroDivisionError(f"no solution at {theta[theta[:, 0] > 0.9][0, 0]:.4f}")
        return {"x": x, "n": n}

    def _nan(self, theta, x, n):
        return {"x": np.where(theta[:, :1] > 0.9, np.nan, x), "n": n}

    def _hopeless(self, theta, x, n):
        raise ZeroDivisionError("boom in line 7")

    def _empty(self, theta, x, n):
        return {"x": np.full_like(x, np.inf), "n": n}

    def _wide(self, theta, x, n):
        return {"x": np.repeat(x, 2, 1), "n": n}

    def _short(self, theta, x, n):
        return {"x": x[:-1], "n": n}

    def _lone(self, theta, x, n):
        return {"x": x}

    def _bare(self, theta, x, n):
        return x

    def _ragged(self, theta, x, n):
        return {"x": [row[: 2 if a > 0.9 else 3] for a, row in zip(theta[:, 0], x, strict=True)], "n": n}

    def _quits(self, theta, x, n):
        if (theta[:, 0] > 0.9).any():
            sys.exit("licence expired")
        return {"x": x, "n": n}

    def _worded(self, theta, x, n):
        return {"x": x.astype(str), "n": n}

    def _fickle(self, theta, x, n):
        return {"x": x, "n": n if theta[0, 0] > 0.5 else n + 0.5}

    def _dies(self, theta, x, n):
        if theta[0, 0] > 0.5:
            os._exit(9)
        return {"x": x, "n": n}


class Interrupted(Toy):
    """Stops with Ctrl-C after so many shards."""

    def __init__(self, shards):
        super().__init__()
        self.left = shards

    def __call__(self, theta, rng):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(theta, rng)


def content(path):
    """All of a file but the time of its creation."""
    found = {}
    with h5py.File(path) as file:
        found["/"] = {name: value for name, value in file.attrs.items() if name != "created"}
        file.visititems(lambda name, item: found.update({name: describe(item)}))
    return found


def describe(item):
    if isinstance(item, h5py.Group):
        return sorted(item), dict(item.attrs)
    return item.dtype.str, item.shape, item.chunks, item.fletcher32, item[()].tobytes(), dict(item.attrs)


def run(out, n=250, simulator=None, seed=1, shard_rows=40, **options):
    return simulate(simulator or Toy(), n, out=out, seed=seed, shard_rows=shard_rows, progress=False, **options)


def left_over(out):
    return sorted(p.name for p in out.parent.iterdir() if p != out)


def interrupted(out, shards=3):
    """Leave a campaign that has come so far."""
    with pytest.raises(KeyboardInterrupt):
        run(out, simulator=Interrupted(shards))
    assert not out.exists()
    return out.with_name(out.name + ".shards")


SCRIPT = """
import sys
import time
import numpy as np
from sbi_dgm import Observable, Parameter, Prior, Uniform, simulate

class Slow:
    name, version = "slow", "1"
    observables = {"x": Observable((50,))}
    prior = Prior([Parameter("a", Uniform(0, 1))])
    pause = 0.03

    def __call__(self, theta, rng):
        time.sleep(self.pause)
        return theta + rng.normal(size=(len(theta), 50))

def go(out, workers):
    return simulate(Slow(), 470, out=out, seed=5, workers=workers, shard_rows=20, progress=False)

if __name__ == "__main__":
    go(sys.argv[1], 2)
"""


def script(folder):
    """The script as a file, and its uninterrupted result."""
    path = folder / "slow.py"
    path.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("slow", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Slow.pause = 0
    module.go(folder / "whole.h5", 1)
    return path
