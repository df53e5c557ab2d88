"""`python -m focaljax`: the study, if the packages of the demo extra are there."""

import sys
from importlib.util import find_spec

DEMO = ("jinja2", "matplotlib", "optax", "pandas", "pyarrow", "rich", "sklearn")


def main() -> int:
    """Run the study and return its exit code; 2 with one line if the demo extra is missing."""
    missing = [name for name in DEMO if find_spec(name) is None]
    if missing:
        print(
            f"focaljax: error: {', '.join(missing)} not found; pip install focaljax[demo]",
            file=sys.stderr,
        )
        return 2
    from focaljax.study import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
