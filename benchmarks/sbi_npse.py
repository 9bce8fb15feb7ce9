"""Seconds that sbi's NPSE, default settings, takes for draws at one observation; run by `diffusion.py` where sbi is.

    python sbi_npse.py simulations.h5 10000

The speed of drawing does not depend on how well the network was trained: five epochs are enough here.
"""

import json
import sys
import time

import h5py
import torch
from sbi.inference import NPSE
from sbi.utils import BoxUniform


def main(path: str, draws: int) -> None:
    """Train shortly, draw, print seconds as JSON."""
    torch.set_num_threads(1)
    with h5py.File(path) as file:
        theta, x = (torch.as_tensor(file[name][:]).float() for name in ("theta", "x/x"))
    prior = BoxUniform(-torch.ones(theta.shape[1]), torch.ones(theta.shape[1]))
    inference = NPSE(prior, show_progress_bars=False)
    inference.append_simulations(theta, x).train(max_num_epochs=5)
    posterior = inference.build_posterior()
    posterior.sample((10,), x=x[:1], show_progress_bars=False)
    started = time.perf_counter()
    posterior.sample((draws,), x=x[:1], show_progress_bars=False)
    print(json.dumps({"seconds": round(time.perf_counter() - started, 3)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
