"""BayesFlow's side: `BasicWorkflow` with a `CouplingFlow` on Keras's torch backend. It needs nothing of sbi_dgm."""

import time
from typing import Any

import bayesflow as bf
import keras
import numpy as np

from timed.problem import BATCH, BINS, BLOCKS, DIMENSION, HIDDEN, HIGH, LOW, TRAIN, Problem, slcp
from timed.side import Stamps, pairs, sizes

DEPTH = 3  # of couplings of both halves, which makes six conditioners: five are asked for
EPOCHS = 100  # BayesFlow's default


class Ends(keras.callbacks.Callback):
    """Notes when steps and epochs end, and the validation loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stamps, self.losses = Stamps(TRAIN // BATCH), []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A step has ended."""
        self.stamps.step(time.perf_counter())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """An epoch has ended."""
        self.losses.append((time.perf_counter(), logs["val_loss"]))


class BayesFlow:
    """Neural posterior estimation, theta constrained to the prior's box.

    Args:
        problem: the rows.

    """

    differs = (
        f"{DEPTH} layers that each transform both halves, so {2 * DEPTH} conditioners in place of 5, of 5"
        " residual layers of 50; splines on a learned box, affine outside; random permutations and activation"
        " normalisation between;"
        " hard SiLU, no dropout; theta by logit of the prior's box, so that draws lie inside and densities are"
        " normalised; AdamW at 5e-4 with a cosine to the end of 100 epochs, no early end;"
        " calibration by `compute_default_diagnostics`, of more than ranks"
    )
    packages = ("bayesflow", "keras", "torch")

    def __init__(self, problem: Problem) -> None:
        self.train_rows, self.held_out, self.test = (
            {"theta": theta.astype("f4"), "x": x.astype("f4")}
            for theta, x in (problem.train, problem.validation, problem.test)
        )
        self.workflow: Any = None

    def _fitted(self, epochs: int) -> tuple[float, Ends]:
        started, ends = time.perf_counter(), Ends()
        adapter = (
            bf.Adapter()
            .constrain("theta", lower=LOW, upper=HIGH)
            .convert_dtype("float64", "float32")
            .rename("theta", "inference_variables")
            .rename("x", "inference_conditions")
        )
        network = bf.networks.CouplingFlow(
            depth=DEPTH,
            transform="spline",
            subnet_kwargs={"widths": (HIDDEN,) * (1 + 2 * BLOCKS), "residual": True, "dropout": 0.0},
            transform_kwargs={"bins": BINS},
        )
        self.workflow = bf.BasicWorkflow(adapter=adapter, inference_network=network, standardize="all")
        options = {"validation_data": self.held_out, "callbacks": [ends], "verbose": 0}
        self.workflow.fit_offline(self.train_rows, epochs=epochs, batch_size=BATCH, **options)
        return started, ends

    def steps(self, epochs: int) -> dict[str, float]:
        """Keras tells when a step ends."""
        return self._fitted(epochs + 1)[1].stamps.seconds()

    def train(self, epochs: int | None) -> list[tuple[float, float]]:
        """Losses are those of the adapted theta: the last one is also known in theta, and gives the shift."""
        started, ends = self._fitted(epochs or EPOCHS)
        final = -float(np.mean(self.workflow.log_prob(self.held_out)))
        shift = final - ends.losses[-1][1]
        return [(moment - started, float(loss + shift)) for moment, loss in ends.losses]

    def network(self) -> dict[str, int]:
        """Of all that is trained."""
        return sizes([w.shape for w in self.workflow.approximator.inference_network.trainable_weights])

    def sample(self, observations: int, draws: int) -> None:
        """One call."""
        self.workflow.sample(num_samples=draws, conditions={"x": self.test["x"][:observations]})

    def log_prob(self, observations: int, each: int) -> int:
        """One call, x repeated, since it takes pairs alone."""
        theta, x = pairs(self.test["theta"], self.test["x"], observations, each)
        rows = {"theta": theta.reshape(-1, DIMENSION), "x": np.repeat(x, theta.shape[1], axis=0)}
        return int(np.size(self.workflow.log_prob(rows)))

    def sbc(self, observations: int, draws: int) -> None:
        """Draws, errors, contraction, and two statistics of the ranks and the intervals."""
        rows = {name: a[:observations] for name, a in self.test.items()}
        self.workflow.compute_default_diagnostics(rows, num_samples=draws)

    def simulate(self, rows: int) -> None:
        """`make_simulator` of prior and likelihood, in batches of 1,000."""
        rng = np.random.default_rng(0)

        def drawn(batch_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
            theta = rng.uniform(LOW, HIGH, (*batch_shape, DIMENSION))
            return {"theta": theta, "x": slcp(theta, rng)}

        simulator = bf.simulators.LambdaSimulator(drawn, is_batched=True)
        for _ in range(-(-rows // 1000)):
            simulator.sample((1000,))


def made(problem: Problem, **_: Any) -> BayesFlow:
    """The side."""
    return BayesFlow(problem)
