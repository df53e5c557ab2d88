"""`python -m bench report`: draws the plots and puts the tables of all results into bench/README.md.

Between `<!-- speed -->` and `<!-- /speed -->` all is made here; the words around it are written by hand.
"""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from bench import results, tables

README = Path(__file__).parent / "README.md"
ALT = {
    "speed": "Times of all contenders as ratios to Optax's cross-entropy",
    "accuracy": "Errors of all contenders on hard rows, against gamma",
    "growth": "Time and memory against the numbers of rows and of classes",
    "compiled": "Passes over the logits of the compiled programs, per chip",
    "schedule": "Estimated time of the compiled programs, per chip",
}


def main(args: Namespace) -> int:
    """Plots first, so that README shows only pictures that are there."""
    del args
    from bench import plots
    from bench.console import say

    for bench in tables.TABLES:
        for stem, result in results.read(results.FOLDER, bench):
            if bench in plots.PLOTS:
                plots.draw(bench, result, results.FOLDER / f"{stem}.png")
                say(f"drawn: {stem}.png")
    README.write_text(filled(README.read_text(), results.FOLDER))
    say("written: README.md")
    return 0


def filled(text: str, folder: Path) -> str:
    """README with the tables of the results in `folder`."""
    for bench in tables.TABLES:
        begin, end = f"<!-- {bench} -->", f"<!-- /{bench} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md must have {begin} and {end} once each")
        block = "\n\n".join([begin, *section(bench, folder), end])
        text = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def section(bench: str, folder: Path) -> list[str]:
    """The paragraphs of one bench: for each device what it was measured on, the picture and the tables."""
    found = results.read(folder, bench)
    if not found:
        return [f"Not measured yet: `python -m bench {bench}`."]
    paragraphs = []
    for stem, result in found:
        paragraphs.append(provenance(result))
        if (folder / f"{stem}.png").exists():
            paragraphs.append(f"![{ALT[bench]}.]({folder.name}/{stem}.png)")
        paragraphs += [table.markdown() for table in tables.TABLES[bench](result)]
        paragraphs += [f"Absent: {a['name']} ({a['reason']})." for a in result.get("absent", [])]
        paragraphs += [
            f"Failed: {f['contender']}, {f['program']} of {f['case']}, {f['dtype']} ({f['reason']})."
            for f in result.get("failed", [])
        ]
    return paragraphs


def provenance(result: dict[str, Any]) -> str:
    """When, on what, with which versions."""
    machine = result["machine"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    where = f"{device}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB"
    return f"{result['date']}, {where}; {versions}."
