"""Speed of sbi_dgm beside sbi, lampe and BayesFlow: the same rows, architecture and batches, interleaved.

    python benchmarks/peers/speed.py -o speed.json
    python benchmarks/peers/speed.py --libraries sbi_dgm,sbi --only step,sample --rounds 3 -o some.json
    python benchmarks/peers/speed.py --python bayesflow=path/to/python --quick -o quick.json

Each library is a process of its own, which answers all measures; in each round all libraries measure, one after the
other. Medians over rounds; ratios are medians of each round's ratio. README.md says what every row and column means.
"""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timed import machine, table
from timed.comparison import Comparison, requests
from timed.problem import Problem
from timed.worker import LIBRARIES


def compared(a: argparse.Namespace, pythons: dict[str, str], folder: Path) -> dict[str, Any]:
    """All measures, written after each, so that a killed run leaves what it had."""
    result: dict[str, Any] = {
        "machine": machine.description(),
        "settings": _settings(a),
        "libraries": {},
        "threads": {},
    }
    Problem.drawn(a.seed).save(folder / "rows.npz")
    wanted = [r for r in requests(a.quick, a.epochs, a.max_epochs) if a.only is None or r.group in a.only]
    for threads in a.threads:
        with closing(Comparison(pythons, threads, folder, limit=a.limit, level=a.level)) as run:
            for request in wanted:
                for turn in range(a.trainings if request.name == "train" else a.rounds):
                    print(f"{threads} thread(s), {request.name}, round {turn + 1}", file=sys.stderr, flush=True)
                    run.round(request)
                    result["threads"][str(threads)] = run.result()
                    result["libraries"] = result["libraries"] | run.libraries()
                    a.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _settings(a: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(a).items() if key not in ("out", "python")}


def listed(text: str) -> list[str]:
    """Words between commas."""
    return text.split(",")


def arguments() -> argparse.Namespace:
    """Of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", type=listed, default=list(LIBRARIES), help=",".join(LIBRARIES))
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH", help="its interpreter")
    parser.add_argument("--only", type=listed, help="step,train,sample,log_prob,sbc,simulate,import")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in listed(text)], default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trainings", type=int, default=1, help="rounds of whole trainings")
    parser.add_argument("--epochs", type=int, default=5, help="that a round of steps times, at least 2")
    parser.add_argument("--max-epochs", type=int, help="of trainings; without it each library trains to its own end")
    parser.add_argument("--level", type=float, help="validation loss to reach, in place of sbi's")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for one answer")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--quick", action="store_true", help="small counts and three epochs: does it work at all?")
    parser.add_argument("-o", "--out", type=Path, default=Path("speed.json"))
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables."""
    a = arguments()
    given = dict(pair.split("=", 1) for pair in a.python)
    if unknown := (set(a.libraries) | set(given)) - set(LIBRARIES):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(LIBRARIES)}.")
    with TemporaryDirectory() as folder:
        result = compared(a, {name: given.get(name, sys.executable) for name in a.libraries}, Path(folder))
    print(table.page(result))


if __name__ == "__main__":
    main()
