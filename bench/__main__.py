"""`python -m bench NAME`: runs one of the benches, which prints its table and writes its results."""

import argparse
import importlib
import os

BENCHES = {
    "compiled": "bytes, temporary memory and kernels of compiled programs; needs no accelerator",
}


def main() -> None:
    """Runs the bench that is named."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, words in BENCHES.items():
        benches.add_parser(name, help=words)
    bench = parser.parse_args().bench
    if bench == "compiled":  # no device is wanted, and looking for one fails loudly
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    importlib.import_module(f"bench.{bench}").main()


if __name__ == "__main__":
    main()
