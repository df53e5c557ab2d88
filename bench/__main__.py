"""`python -m bench NAME`: runs one of the benches, which prints its tables and writes its results.

A bench that is stopped with Ctrl-C leaves what it has as `*.partial.json` and the last result as it was.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

BENCHES = {
    "speed": "time, memory, compile time and traces, as ratios to Optax's cross-entropy",
    "accuracy": "every contender against the 60-digit oracle on hard rows",
    "pictures": "time of a class axis that is not the last, over classes and pixels",
    "growth": "time and memory against the numbers of rows and of classes",
    "compiled": "bytes, memory and kernels of programs compiled for TPUs and an H200; needs none of them",
    "schedule": "estimated time of programs compiled for TPUs, an H100 and an H200; needs none of them",
    "linear": "the last layer and its loss without logits, beside matmul and loss; measured and compiled",
    "sharded": "the same for the loss and a training step on TPU pods, with what devices exchange",
    "report": "plots and the tables of bench/README.md, from the results",
}
RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    benches = parser.add_subparsers(dest="bench", required=True)
    one = {name: benches.add_parser(name, help=words, description=words) for name, words in BENCHES.items()}
    every, dtypes, chips = list(one)[:-1], ("float32", "bfloat16"), ("v5e", "v5p", "v6e", "h100", "h200")
    quick = "tiny sizes: tries the bench, measures nothing"
    out = "default: bench/results, with --quick bench/results/quick"
    case, dtype = "one or more of the cases; default: all", "default: float32; on a GPU both"
    options: list[tuple[list[str], str, dict[str, Any]]] = [
        (every, "--quick", {"action": "store_true", "help": quick}),
        (every, "--out", {"type": Path, "metavar": "FOLDER", "help": out}),
        (
            ["speed", "pictures", "growth", "linear"],
            "--device",
            {"choices": ("cpu", "gpu"), "default": "cpu", "help": "default: cpu"},
        ),
        (["speed", "schedule", "linear"], "--case", {"nargs": "+", "metavar": "NAME", "help": case}),
        (["speed"], "--dtype", {"nargs": "+", "choices": dtypes, "help": dtype}),
        (["schedule"], "--dtype", {"nargs": "+", "choices": dtypes, "help": "default: both"}),
        (["schedule"], "--chip", {"nargs": "+", "choices": chips, "help": "default: all"}),
    ]
    for names, flag, how in options:
        for name in names:
            one[name].add_argument(flag, **how)
    return parser


def prepare(device: str) -> None:
    """What JAX, Keras and OpenMP read when they are imported."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA complains of slow constants across the bar
    # PyTorch's threads that spin after their work would take the processor from whoever is timed next, and
    # a barrier of spinning threads takes 10 ms where something else runs on one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if device == "cpu":  # no other device is wanted, and looking for one may fail loudly
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        os.environ["JAX_PLATFORMS"] = "cuda,cpu"  # fails if there is none, instead of measuring the CPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too


def main(argv: list[str] | None = None) -> int:
    """Runs the bench that is named."""
    args = parser().parse_args(argv)
    if args.bench != "report":
        args.out = args.out or (RESULTS / "quick" if args.quick else RESULTS)
    prepare(getattr(args, "device", "cpu"))
    if problem := _problem(args):
        print(problem, file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"bench.{args.bench}").main(args)
    except KeyboardInterrupt:
        return 130


def _problem(args: argparse.Namespace) -> str | None:
    """Why the arguments cannot be had: there is no such case, or no GPU."""
    if asked := getattr(args, "case", None):
        module = importlib.import_module(f"bench.{'cases' if args.bench == 'speed' else args.bench}")
        if unknown := [name for name in asked if name not in module.NAMES]:
            return f"no such case: {', '.join(unknown)}"
    if getattr(args, "device", "cpu") == "gpu":
        import jax

        try:
            jax.devices("gpu")
        except RuntimeError as error:
            return f"JAX finds no GPU: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
