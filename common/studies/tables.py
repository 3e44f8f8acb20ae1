"""Writes the tables of README.md and of the cards from the results files.

    python -m reprise.common.studies.tables [--check]

With --check it changes nothing and exits 1 where a table is stale.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reprise.common.studies import summary
from reprise.common.training.run import config_module

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def suite_table(records: list[Mapping[str, Any]]) -> str:
    """One row a study."""
    rows = [["paper", "variant", "claim", "holds", "seeds", "measured on"]]
    for record in records:
        paper, claim = record["paper"], record["claim"]
        rows.append(
            [
                f"[{paper}](papers/{paper}/README.md)",
                record["variant"],
                claim["text"],
                "yes" if claim["holds"] else "**no**",
                str(len(record["seeds"])),
                record["device"],
            ]
        )
    return markdown(rows)


def card_section(record: Mapping[str, Any], figures: list[str], columns: Sequence[str] = ()) -> str:
    """The table of one study as its paper's card shows it; `columns` () shows every metric."""
    versions = record["versions"]
    verdict = "Holds" if record["claim"]["holds"] else "**Does not hold**"
    minutes = sum(arm["seconds"] for arm in record["arms"].values()) / 60
    return "\n".join(
        [
            f"**{record['variant']}**: `{record['command']}`",
            "",
            markdown(summary.study_rows(record, columns)),
            "",
            f"{verdict}: {record['claim']['text']}",
            f"{len(record['seeds'])} seeds, {minutes:.1f} minutes on {record['device']}, "
            f"jax {versions['jax']}, commit {record['commit']}; every metric and seed: "
            f"[{record['variant']}.json]"
            f"(../../results/{record['paper']}/{record['variant']}.json).",
            *(f"\n![{Path(name).stem}]({name})" for name in figures),
        ]
    )


def replace_section(text: str, section: str, path: Path) -> str:
    """`text` with what lies between the markers replaced."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: needs the lines {BEGIN} and {END}")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


def columns_of(record: Mapping[str, Any], root: Path) -> Sequence[str]:
    """`config.study.columns` of the study's variant.

    Raises:
      ValueError: the paper's config no longer has this variant: its results are stale.
    """
    config = config_module(root / "configs" / f"{record['paper']}.py")
    return config.get_config(record["variant"]).study.columns


def pages(root: Path) -> dict[Path, str]:
    """Every page with a generated section -> what it should say."""
    files = sorted(p for p in (root / "results").glob("*/*.json") if p.parent.name != "benchmarks")
    records = [json.loads(path.read_text()) for path in files]
    readme = root / "README.md"
    out = {readme: replace_section(readme.read_text(), suite_table(records), readme)}
    for paper in sorted({record["paper"] for record in records}):
        card = root / "papers" / paper / "README.md"
        sections = []
        for record in records:
            if record["paper"] == paper:
                pattern = f"{record['variant']}[-.]*png"
                found = sorted((root / "results" / paper).glob(pattern))
                figures = [f"../../{figure.relative_to(root)}" for figure in found]
                sections.append(card_section(record, figures, columns_of(record, root)))
        out[card] = replace_section(card.read_text(), "\n\n".join(sections), card)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    check = parser.parse_args().check
    root = Path(__file__).resolve().parents[2]
    stale = [path for path, text in pages(root).items() if path.read_text() != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(root)) for path in stale)
        sys.exit(f"stale: {names}; run python -m reprise.common.studies.tables")
    for path, text in pages(root).items():
        if path in stale:
            path.write_text(text)
            print(f"wrote {path.relative_to(root)}")


if __name__ == "__main__":
    main()
