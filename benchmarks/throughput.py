"""Rows that each simulator makes in a second on one core, and what embeddings cost there.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py [names ...] [-o benchmarks/results/throughput.json]

Each is called on draws of its prior in batches of 1,000 rows, as campaigns do, for two seconds at least and three
batches; processor seconds of the quickest batch count, so that other work matters little. Of embeddings: milliseconds
a row, forward and back, in batches of 128. Prints the tables of docs/simulators.md.
"""

import argparse
import platform
import time
from collections.abc import Sequence

import numpy as np
import torch

from sbi_dgm import CNN, DeepSets, Series, SetTransformer, Transformer
from sbi_dgm.embeddings.base import Embedding
from sbi_dgm.errors import SbiError
from sbi_dgm.files import write_json
from sbi_dgm.parameters import Observable
from sbi_dgm.simulator import Simulator, available, find

ROWS, BATCH, SECONDS, BATCHES, MANY = 1000, 128, 2.0, 3, 4


def measured(simulator: Simulator) -> dict[str, object]:
    """Rows a second, and what a row is."""
    rng, seconds = np.random.default_rng(0), []
    simulator(simulator.prior.sample(10, seed=0), rng)
    while sum(seconds) < SECONDS or len(seconds) < BATCHES:
        theta = simulator.prior.sample(ROWS, seed=1 + len(seconds))
        began = time.process_time()
        simulator(theta, rng)
        seconds.append(time.process_time() - began)
    return {
        "parameters": listed(simulator.prior.names),
        "x": "; ".join(f"{name} {said(o)}" for name, o in simulator.observables.items()),
        "rows_per_second": round(ROWS / min(seconds)),
        "exact": hasattr(simulator, "reference_posterior"),
    }


def listed(names: Sequence[str]) -> str:
    """Some names, or the first and the last of many."""
    return ", ".join(names) if len(names) <= MANY else f"{names[0]} to {names[-1]}"


def said(observable: Observable) -> str:
    """An observable's shape in words."""
    shape = " x ".join(map(str, observable.shape)) or "1"
    return f"up to {observable.shape[0]} x {observable.shape[1] - 1}" if observable.kind == "set" else shape


def cost(embedding: Embedding, observable: Observable) -> dict[str, object]:
    """Milliseconds a row of an embedding, forward and back."""
    rows = torch.randn(BATCH, *observable.shape, generator=torch.Generator().manual_seed(0))
    if observable.kind == "set":
        rows[..., -1] = 1.0
    network, seconds = embedding.build({"x": observable}, 3), []
    while sum(seconds) < SECONDS or len(seconds) < BATCHES:
        began = time.process_time()
        network({"x": rows}).square().mean().backward()
        seconds.append(time.process_time() - began)
    weights = sum(p.numel() for p in network.parameters())
    return {"x": said(observable), "milliseconds": round(1000 * min(seconds) / BATCH, 3), "weights": weights}


def costs() -> dict[str, dict[str, object]]:
    """Of all embeddings whose cost is that of their rows."""
    field, series = Observable((2, 64, 64)), Observable((2, 1000))
    sets = {members: Observable((members, 4), kind="set") for members in (50, 500)}
    asked = {
        "cnn": (CNN(), field),
        "cnn, periodic": (CNN(periodic=True), field),
        "series": (Series(), series),
        "transformer": (Transformer(), series),
        **{f"deep_sets, {m}": (DeepSets(), o) for m, o in sets.items()},
        **{f"set_transformer, {m}": (SetTransformer(), o) for m, o in sets.items()},
    }
    return {name: cost(*given) for name, given in asked.items()}


def prices(found: dict[str, dict[str, object]]) -> str:
    """The table of costs."""
    lines = ["| embedding | x | ms a row, forward and back | weights |", "|---|---|---|---|"]
    return "\n".join(
        lines
        + [f"| {name} | {row['x']} | {row['milliseconds']:.2f} | {row['weights']:,} |" for name, row in found.items()]
    )


def markdown(found: dict[str, dict[str, object]]) -> str:
    """The table."""
    lines = ["| simulator | parameters | x | exact posterior | rows a second |", "|---|---|---|---|---|"]
    for name, row in found.items():
        exact, rate = "yes" if row["exact"] else "", f"{row['rows_per_second']:,}"
        lines.append(f"| `{name}` | {row['parameters']} | {row['x']} | {exact} | {rate} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(available()))
    parser.add_argument("-o", "--out", default="benchmarks/results/throughput.json")
    a = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    for name in a.names:
        try:
            found[name] = measured(find(name))
        except SbiError as error:
            print(f"{name}: {error}")
    torch.set_num_threads(1)
    spent = costs()
    write_json(a.out, {"machine": platform.machine(), "simulators": found, "embeddings": spent})
    print(markdown(found), prices(spent), sep="\n\n")


if __name__ == "__main__":
    main()
