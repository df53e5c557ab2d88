"""`python -m bench NAME`: runs one of the benches, which prints its tables and writes its results.

Then `python -m bench report` draws the plots and puts the tables into bench/README.md. A bench that is
stopped with Ctrl-C leaves what it has as `*.partial.json` and the last complete result as it was.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

BENCHES = {
    "speed": "time, memory, compile time and traces, as ratios to Optax's cross-entropy",
    "accuracy": "every contender against the 60-digit oracle on hard rows",
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
    for name, words in BENCHES.items():
        one = benches.add_parser(name, help=words, description=words)
        if name == "report":
            continue
        one.add_argument("--quick", action="store_true", help="tiny sizes: tries the bench, measures nothing")
        one.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="default: bench/results, with --quick bench/results/quick",
        )
        if name in ("speed", "growth", "linear"):
            one.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default: cpu")
        if name in ("speed", "schedule", "linear"):
            one.add_argument(
                "--case", nargs="+", metavar="NAME", help="one or more of the cases; default: all"
            )
        if name in ("speed", "schedule"):
            words = "default: both" if name == "schedule" else "default: float32; on a GPU both"
            one.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help=words)
        if name == "schedule":
            one.add_argument(
                "--chip", nargs="+", choices=("v5e", "v5p", "v6e", "h100", "h200"), help="default: all"
            )
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
    if unknown := _unknown_cases(args):
        print(f"no such case: {', '.join(unknown)}", file=sys.stderr)
        return 2
    if problem := _no_gpu(args):
        print(problem, file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"bench.{args.bench}").main(args)
    except KeyboardInterrupt:
        return 130


def _no_gpu(args: argparse.Namespace) -> str | None:
    """Why `--device gpu` cannot be had."""
    if getattr(args, "device", "cpu") == "cpu":
        return None
    import jax

    try:
        jax.devices("gpu")
    except RuntimeError as error:
        return f"JAX finds no GPU: {error}"
    return None


def _unknown_cases(args: argparse.Namespace) -> list[str]:
    module = "bench.cases" if args.bench == "speed" else f"bench.{args.bench}"
    names = importlib.import_module(module).NAMES if getattr(args, "case", None) else []
    return [name for name in getattr(args, "case", None) or [] if name not in names]


if __name__ == "__main__":
    sys.exit(main())
