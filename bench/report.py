"""`python -m bench report`: draws the plots and puts the tables of all results into bench/README.md.

Between `<!-- speed -->` and `<!-- /speed -->` all is made here; the words around it are written by hand.
"""

from argparse import Namespace
from pathlib import Path

from bench import plots, results, tables

README = Path(__file__).parent / "README.md"


def main(args: Namespace) -> int:
    """Plots first, so that README shows only pictures that are there."""
    del args
    for bench in plots.PLOTS:
        for stem, result in results.read(results.FOLDER, bench):
            plots.draw(bench, result, results.FOLDER / f"{stem}.png")
            print(f"drawn: {stem}.png")
    README.write_text(filled(README.read_text(), results.FOLDER))
    print("written: README.md")
    return 0


def filled(text: str, folder: Path) -> str:
    """README with the tables of the results in `folder`."""
    for bench in tables.TABLES:
        begin, end = f"<!-- {bench} -->", f"<!-- /{bench} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md must have {begin} and {end} once each")
        head, _, rest = text.partition(begin)
        tail = rest.partition(end)[2]
        text = head + "\n\n".join([begin, *section(bench, folder), end]) + tail
    return text


def section(bench: str, folder: Path) -> list[str]:
    """The paragraphs of one bench: for each device what it was measured on, the picture and the tables."""
    paragraphs = []
    for stem, result in results.read(folder, bench):
        machine, versions = result["machine"], result["versions"].items()
        device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
        where = f"{device}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB"
        words = ", ".join(f"{name} {version}" for name, version in versions if version)
        paragraphs.append(f"{result['date']}, {where}; {words}.")
        if (folder / f"{stem}.png").exists():
            paragraphs.append(f"![{plots.PLOTS[bench].__doc__}]({folder.name}/{stem}.png)")
        paragraphs += [table.markdown() for table in tables.TABLES[bench](result)]
        paragraphs += [f"Absent: {a['name']} ({a['reason']})." for a in result.get("absent", [])]
        paragraphs += [tables.FAILED.format(**row) for row in result.get("failed", [])]
    return paragraphs or [f"Not measured yet: `python -m bench {bench}`."]
