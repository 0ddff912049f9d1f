"""One page with plots of whatever is in benchmarks/results; the same tables as markdown for the README.

    python benchmarks/reporting/report.py [--results DIRECTORY] [--out FILE.html]
    python benchmarks/reporting/report.py --markdown [--only race,decode]

The page is one file without scripts, and asks the network for nothing. A benchmark that has not been run is not shown.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import words
from benchmarks.common.results import RESULTS
from benchmarks.reporting.cost import kernels, round_profile, stage_link
from benchmarks.reporting.depths import simulated, speculation
from benchmarks.reporting.drafters import drafters
from benchmarks.reporting.section import Record, Section
from benchmarks.reporting.speed import decoding, racing, serving


class Kind(NamedTuple):
    """What a benchmark's results become, and the key by which its files are known to be of this shape."""

    sections: Callable[[str, Record], list[Section]]
    key: str


KINDS = {  # by the benchmark's script, in the report's order
    "race": Kind(racing, "versions"),
    "decode": Kind(decoding, "cases"),
    "auto_against_depths": Kind(speculation, "tokens"),
    "simulated_depths": Kind(simulated, "seeds"),
    "drafters": Kind(drafters, "cases"),
    "arrival_rates": Kind(serving, "windows"),
    "round_parts": Kind(round_profile, "engine"),
    "cpu_kernels": Kind(kernels, "bandwidth"),
    "stage_link": Kind(stage_link, "added_us"),
}

STYLE = Path(__file__).with_name("page.css")


def load(folder: Path) -> list[tuple[str, str, Record]]:
    """Kind, name and record of every file of results whose kind and shape are known, in the report's order."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            print(f"{path.name} is left out: {error}", file=sys.stderr)
            continue
        script = Path(record.get("command", "").partition(" ")[0]).stem
        if script in KINDS and KINDS[script].key in record:
            found.append((script, path.stem, record))
    return sorted(found, key=lambda each: list(KINDS).index(each[0]))


def sections_of(found: Sequence[tuple[str, str, Record]]) -> list[Section]:
    return [section for kind, name, record in found for section in KINDS[kind].sections(name, record)]


def page(sections: Sequence[Section]) -> str:
    links = "".join(f'<a href="#s{number}">{escape(one.title)}</a>' for number, one in enumerate(sections))
    parts = "".join(_part(number, one) for number, one in enumerate(sections))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>outrider: measurements</title>'
        f"<style>{STYLE.read_text()}</style><h1>outrider: measurements</h1><nav>{links}</nav>{parts}</html>\n"
    )


def _part(number: int, section: Section) -> str:
    source = escape(section.source.replace("`", ""))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    tables = "".join(table.html() for table in section.tables)
    plots = f'<div class="plots">{"".join(section.plots)}</div>' if section.plots else ""
    title = f'<h2 id="s{number}">{escape(section.title)}</h2>'
    return f'<section>{title}{plots}{tables}{notes}<p class="source">{source}</p></section>'


def markdown(sections: Sequence[Section]) -> str:
    parts = []
    for section in sections:
        tables = [table.markdown() for table in section.tables]
        parts.append("\n\n".join([f"### {section.title}", *tables, *section.notes, f"({section.source})"]))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="the page (report.html beside the results)")
    parser.add_argument("--markdown", action="store_true", help="tables on standard output instead of a page")
    parser.add_argument("--only", type=words, default=list(KINDS), help=",".join(KINDS))
    args = parser.parse_args()
    if unknown := set(args.only) - set(KINDS):
        parser.error(f"--only {unknown.pop()}: the kinds are {', '.join(KINDS)}")
    found = [each for each in load(args.results) if each[0] in args.only]
    if not found:
        sys.exit(f"nothing to report in {args.results}: run a benchmark first")
    if args.markdown:
        print(markdown(sections_of(found)))
        return
    out = args.out or args.results / "report.html"
    out.write_text(page(sections_of(found)))
    print(f"{len(found)} files of results, written to {out}")


if __name__ == "__main__":
    main()
