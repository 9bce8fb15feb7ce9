"""The command line: parse, call the library, print. A mistake of the user's ends with one sentence and code 2.

Code 3 is a training that ended at its time limit, code 1 a verdict or a loss.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from sbi_dgm import arguments
from sbi_dgm.errors import OptionError, SbiError, TimeLimitError, first_line, unknown


def _simulate(a: argparse.Namespace) -> None:
    from sbi_dgm.campaign import simulate

    with _engine(a) as executor:
        data = simulate(
            _here(a.simulator),
            a.n,
            out=a.out,
            seed=a.seed,
            workers=a.workers,
            executor=executor,
            timeout=a.timeout,
            shard_rows=a.shard_rows,
            repeats=a.repeats,
            overwrite=a.overwrite,
        )
    failed = len(data) - int(data.valid.sum())
    print(
        f"{a.out}: {len(data)} rows, {failed} failed; "
        f"theta = {', '.join(data.names)}; x = {', '.join(data.observables)}."
    )


def _here(name: str) -> str:
    """The name; where it is package.module:Object, the module may lie in the working folder from now on."""
    if ":" in name:
        sys.path.insert(0, str(Path.cwd()))
    return name


def _engine(a: argparse.Namespace) -> AbstractContextManager[Any]:
    from sbi_dgm.executors import ENGINES

    chosen = next((name for name in ENGINES if getattr(a, name)), None)
    return ENGINES[chosen](getattr(a, chosen)) if chosen else nullcontext()


def _train(a: argparse.Namespace) -> None:
    from sbi_dgm.config import settings
    from sbi_dgm.training import fit

    options = settings(a.config, a.set, a.estimator)
    data = _opened(a)
    if data.prior is None:
        _show("the prior is not known: draws may leave the range of theta; give it by [prior] of --config.")
    learned = fit(
        data,
        **options,
        learn=a.learn,
        parameters=a.parameters,
        noise=_imported(a.noise),
        rate=a.rate,
        device=a.device,
        seed=a.seed,
        out=a.out,
        resume=a.resume,
        overwrite=a.overwrite,
        members=a.members,
        workers=a.workers,
        max_time=a.max_time,
        tensorboard=a.tensorboard,
    )
    if a.learn == "refined":
        _told(learned.likelihood.record, f"{a.out}/likelihood")
        print(f"{a.out}/likelihood/pool.json: {learned.pool or 'the likelihood has a power of 1'}.")
        learned = learned.proposal
    record = learned.record
    _told(record, a.out)
    if record["rows_at_prior_edge"] and record["learn"] == "posterior":
        print(f"{record['rows_at_prior_edge']} rows of theta lie on an edge of the prior.")
    if record["agreement"]["fails"]:
        print(f"failures depend on {', '.join(record['agreement']['fails'])}: the prior is cut where they occur.")


def _told(record: dict[str, Any], folder: str) -> None:
    members = len(record.get("members", []))
    size = f", mean of {members} members" if members else f" at step {record['best_step']}"
    print(
        f"{folder}/{record['learn']}.safetensors: {record['estimator']['name']}, best validation loss "
        f"{record['best_validation_loss']:.3f}{size}, {record['seconds']:.0f} s."
    )


def _opened(a: argparse.Namespace, known: dict[str, Any] | None = None) -> Any:
    """The simulations that the arguments name; `known` is the layout to go by where they say none."""
    from sbi_dgm.config import layout
    from sbi_dgm.data.native import is_ours
    from sbi_dgm.data.simulations import Simulations
    from sbi_dgm.files import matching

    said = layout(a.config, a.set, vars(a))
    before = {} if known is None or "theta" in said or is_ours(matching(a.data)[0]) else known
    data = Simulations.open(a.data, **(before | said))
    if data.layout is not None:
        _show(f"{a.data} was not written by sbi_dgm: its structure was checked; it has no checksums of ours.")
    if "group" in data.columns:
        groups = len(set(data.columns["group"][:].tolist()))
        _show(f"{a.data}: {len(data):,} rows in {groups:,} groups (a universe is one); a group stays in one split.")
    return data


def _imported(place: str | None) -> Any:
    from sbi_dgm.options import imported

    if place is None:
        return None
    sys.path.insert(0, str(Path.cwd()))
    try:
        return imported(place)
    finally:
        sys.path.pop(0)


def _sample(a: argparse.Namespace) -> None:
    from sbi_dgm.data.observed import read_observation
    from sbi_dgm.diagnostics.evidence import KNOWN
    from sbi_dgm.files import refuse_existing
    from sbi_dgm.inspection import summarised
    from sbi_dgm.progress import Bar

    refuse_existing(a.out, a.overwrite)
    if a.corner:
        _check_figure(Path(a.corner), a.overwrite)
    posterior, layout = _used(a)
    if a.corner:
        _check_labels(posterior)
    x = read_observation(a.observation, posterior.model.observables, a.row, layout)
    if a.corner and len(posterior.observations(x)[0]) != 1:
        raise OptionError(
            f"--corner shows one observation, and {a.observation} holds several: give one, or leave it out."
        )
    used, told = _refined(a, posterior), {} if a.refine is None else {"report": Bar.write}
    keep = a.log_prob or used.density in KNOWN
    samples = used.sample(a.n, x, seed=a.seed, log_prob=keep, progress=True, strict=a.strict, **told)
    samples.save(a.out, overwrite=a.overwrite)
    figure = (samples.observation(0) if samples.array.ndim == 3 else samples).corner() if a.corner else None
    if samples.array.ndim == 2 and a.n:
        print(summarised(samples))
    if figure is not None:
        from sbi_dgm import plots

        plots.save(figure, a.corner)
    print(f"{a.out}: {a.n} draws of {', '.join(samples.names)}.")
    if samples.trust is not None:
        print(f"trust: {samples.trust}.")


def _used(a: argparse.Namespace) -> tuple[Any, dict[str, Any] | None]:
    """The posterior, with options of use, and the layout of what it was trained on."""
    from sbi_dgm.config import of_use
    from sbi_dgm.posterior import load

    posterior = load(a.model, device=a.device).using(**of_use(a.set))
    return posterior, posterior.record.get("data", {}).get("layout")


def _refined(a: argparse.Namespace, posterior: Any) -> Any:
    """The posterior, or what `--refine` makes of it."""
    from sbi_dgm.companion import load_refined
    from sbi_dgm.likelihood import Likelihood
    from sbi_dgm.simulator import find

    if a.effective is not None and a.refine is None:
        raise OptionError("--effective is that of importance weights: it needs --refine.")
    if a.refine is None:
        return posterior
    asked = {} if a.effective is None else {"effective": a.effective}
    if not a.refine:
        return load_refined(Path(a.model).parent, posterior=posterior, device=a.device, **asked)
    known = Path(a.refine).exists()
    return posterior.refined(Likelihood.load(a.refine, device=a.device) if known else find(_here(a.refine)), **asked)


def _check_figure(path: Path, overwrite: bool) -> None:
    from sbi_dgm.files import refuse_existing

    refuse_existing(path, overwrite)
    if path.suffix not in FIGURES:
        raise OptionError(unknown("figure format", path.suffix, FIGURES))


def _check_labels(posterior: Any) -> None:
    from sbi_dgm import plots

    plots.require_titles([parameter.title for parameter in posterior.model.reference.parameters])


def _calibrate(a: argparse.Namespace) -> int:
    from sbi_dgm.data.observed import read_observation
    from sbi_dgm.report import calibrate
    from sbi_dgm.simulator import find

    if a.row is not None and a.at is None:
        raise OptionError("--row is a row of the observation --at: name its file.")
    posterior, layout = _used(a)
    report = calibrate(
        _refined(a, posterior),
        _opened(a, layout),
        out=a.out,
        test_quantities=_imported(a.quantities),
        noise=_imported(a.noise),
        simulator=None if a.simulator is None else find(_here(a.simulator)),
        at=None if a.at is None else read_observation(a.at, posterior.model.observables, a.row, layout),
        draws=a.draws,
        max_rows=a.rows,
        seed=a.seed,
        overwrite=a.overwrite,
    )
    print("\n".join(_found(report)))
    print(f"{a.out}/: index.html, report.json, draws.h5, figures/")
    return 0 if report.calibrated and all(report.trusted_at) else 1


def _found(report: Any) -> Iterator[str]:
    """What a report says, in lines."""
    yield f"{report.rows} held-out {report.unit}, {report.draws} draws each: {report.verdict}."
    for name, of in report.stated.items():
        yield f"  {name:<26} p = {of['p_value']:<8.3g} {of['finding']}"
    if report.repaired:
        scaled = ", ".join(f"{scale:.3f} ({name})" for name, scale in report.repaired.items())
        yield f"  repaired: draws scaled by {scaled}"
    covered = ", ".join(f"{level}: {share:.1%}" for level, share in report.coverage.items())
    yield f"  highest-density regions hold the truth: {covered}"
    yield (
        "  errors that would have shown nine times in ten: an sd too narrow by "
        f"{report.visible['narrow']:.0%} or too wide by {report.visible['wide']:.0%}, a shift by "
        f"{report.visible['shift']:.2f} sd"
    )
    yield f"  mean ln q of the truth: {report.log_prob['mean']:.3f} +- {report.log_prob['standard_error']:.3f}"
    yield from (f"  {warning}" for warning in report.warnings)
    for i, p_value in enumerate(report.local):
        yield f"  at observation {i + 1}: p = {p_value:.3g}"


def _repair(a: argparse.Namespace) -> None:
    from sbi_dgm.files import refuse_existing

    refuse_existing(a.out, a.overwrite)
    posterior, layout = _used(a)
    data = _opened(a, layout)
    better = posterior.repaired(data, noise=_imported(a.noise), draws=a.draws, max_rows=a.rows, seed=a.seed)
    better.save(a.out, overwrite=a.overwrite)
    record = better.record["repaired"]
    print(f"draws scaled about their mean, by {record['rows']['scale']} rows:")
    for name, one in record["scale"].items():
        print(f"  {name:<20} {one['scale']:.3f} +- {one['scale'] * one['log_error']:.3f}")
    print(f"{a.out}: the repaired posterior; its regions rest on {record['rows']['regions']} other rows.")


def _benchmark(a: argparse.Namespace) -> int:
    from sbi_dgm.benchmark.gate import baseline, compare
    from sbi_dgm.benchmark.page import terminal
    from sbi_dgm.benchmark.runner import run_benchmark
    from sbi_dgm.config import suite

    sys.path.insert(0, str(Path.cwd()))
    chosen = suite(a.suite, {name: getattr(a, name) for name in CHOSEN})
    before = None if a.against is None else baseline(a.against)
    with _engine(a) as executor:
        results = run_benchmark(
            chosen, out=a.out, workers=a.workers, executor=executor, timeout=a.timeout, device=a.device
        )
    print(terminal(results.table()))
    print(f"{a.out}/: index.html, table.csv, table.md, scores.csv, scores.png, summary.json; cells/")
    for cell in results.failed:
        print(f"FAILED: {cell['task']} {cell['method']} {cell['budget']} seed {cell['seed']}: {cell['error']}")
    verdicts = [] if before is None else compare(results.summary(), before)
    for verdict in verdicts:
        print(verdict)
    return int(bool(results.failed) or any(verdict.lost for verdict in verdicts))


def _inspect(a: argparse.Namespace) -> None:
    from sbi_dgm.config import layout
    from sbi_dgm.inspection import describe

    print(describe(a.data, **layout(a.config, a.set, vars(a))))


def _quickstart(a: argparse.Namespace) -> None:
    from sbi_dgm.quickstart import quickstart

    quickstart(a.out, overwrite=a.overwrite)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} ({self.prog} --help says more).")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "sbi-dgm", description="Posteriors from simulations, by deep generative models.", allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, add, text) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text, allow_abbrev=False, formatter_class=arguments.Defaults
        )
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        add(sub)
    return parser


FIGURES = (".pdf", ".png", ".svg")
CHOSEN = ("tasks", "estimators", "budgets", "observations", "seeds", "scores", "draws", "truths")
COMMANDS = {
    "simulate": (_simulate, arguments.simulate, "Run a simulator over its prior into a simulation file."),
    "train": (_train, arguments.train, "Train a posterior on a simulation file."),
    "sample": (_sample, arguments.sample, "Draw from the posterior of an observation."),
    "calibrate": (
        _calibrate,
        arguments.calibrate,
        "Judge a posterior on held-out simulations; exit code 1 if it fails.",
    ),
    "repair": (_repair, arguments.repair, "Scale a posterior's draws to the width that simulations say."),
    "benchmark": (
        _benchmark,
        arguments.benchmark,
        "Compare methods on tasks with exact posteriors; exit code 1 on a failure or a loss.",
    ),
    "inspect": (_inspect, arguments.inspect, "Say what a file holds."),
    "quickstart": (_quickstart, arguments.quickstart, "The whole job on real supernovae, in about two minutes."),
}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    chosen = next((word for word in argv if not word.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        raise OptionError(unknown("command", chosen, COMMANDS))
    known = _options(chosen)
    for word in takewhile(lambda word: word != "--", argv):
        option = word.split("=")[0]
        if option.startswith("--") and option not in known:
            raise OptionError(unknown(f"option of {chosen or 'sbi-dgm'}", option, known))
    return parser.parse_args(argv)


def _options(command: str | None) -> list[str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--debug")
    if command is not None:
        COMMANDS[command][1](parser)
    return list(parser._option_string_actions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parse(words)
        with warnings.catch_warnings():
            warnings.showwarning = _show  # type: ignore[assignment]
            return parsed.run(parsed) or 0
    except (SbiError, OSError, MemoryError) as error:
        if "--debug" in words:
            raise
        print(f"sbi-dgm: {str(error) or first_line(error)}", file=sys.stderr)
        return 3 if isinstance(error, TimeLimitError) else 2
    except KeyboardInterrupt:
        print(
            "sbi-dgm: interrupted; what was finished is kept "
            "(train goes on with --resume, simulate and benchmark as they were).",
            file=sys.stderr,
        )
        return 130


def _show(message: Any, *_: Any) -> None:
    print(f"sbi-dgm: note: {message}", file=sys.stderr)
