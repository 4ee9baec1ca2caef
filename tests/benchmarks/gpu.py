"""Whether the engine is right on a GPU, and how fast: one command, one page of Markdown to paste.

    python -m tests.benchmarks.gpu [--device cuda|cpu] [--backbone NAME] [--quick] [--json FILE]

It runs the checks of `tests/integration/test_gpu.py`, then `tests.benchmarks.embed` on gte-base's
shape and on each packed family with random weights, and `tests.benchmarks.profile`, which tells
where the time goes. The backbone named is that of the tokenizer. On a CPU, where the checks are
skipped, it only shows that the command itself works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tests.benchmarks.embed import COLUMNS, MINILM, ROOT
from tests.benchmarks.table import to_markdown

CHECKS = "tests/integration/test_gpu.py"


def run_checks() -> tuple[str, bool]:
    """The last line of pytest's, and whether nothing failed."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "--durations", "0", CHECKS],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if run.returncode:
        click.echo(run.stdout + run.stderr, err=True)
    return run.stdout.strip().splitlines()[-1].strip("= "), run.returncode == 0


def measure(
    device: str, backbone: str, *, quick: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `tests.benchmarks.embed` and of `tests.benchmarks.profile`.

    Their own tables go to the standard error stream.
    """
    like = ["--device", device, "--backbone", backbone]
    whole = [*like, "--quick"]
    profiles = [[*like, "--texts", "64", "--layers", "last"]]
    if not quick:
        shaped = [*like, "--random-weights", "gte-base"]
        whole = [*shaped, "--case", "sms,long,families,growth"]
        profiles = [
            [*shaped, "--layers", "last", "--case", name, "--texts", texts]
            for name, texts in (("sms", "100000"), ("long", "2000"))
        ]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.json"

        def run(module: str, options: list[str]) -> list[dict[str, Any]]:
            command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--json", str(path)]
            subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=sys.stderr)
            rows: list[dict[str, Any]] = json.loads(path.read_text())
            return rows

        return run("embed", whole), [row for each in profiles for row in run("profile", each)]


def write_page(
    checks: str, rows: list[dict[str, Any]], stages: Sequence[dict[str, Any]] = ()
) -> str:
    machine = rows[0]["machine"]
    about = {
        "device": machine.get("gpu", "no GPU"),
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        **machine["versions"],
        "python": machine["python"],
        "checks": checks,
    }
    facts = "".join(f"- {name}: {what}\n" for name, what in about.items())
    page = f"{facts}\n{to_markdown([{c: row.get(c) for c in COLUMNS} for row in rows])}"
    if stages:
        kept = [{c: row.get(c) for c in ("case", "stage", "seconds", "share")} for row in stages]
        page += f"\n{to_markdown(kept)}"
    return page


@click.command()
@click.option("--device", default="cuda", help="cuda, or cpu to try the command.")
@click.option("--backbone", default=MINILM, help="A hub id or a local folder.")
@click.option("--quick", is_flag=True, help="That backbone, a part of the SMS corpus, one round.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows there, too.")
def main(device: str, backbone: str, quick: bool, path: Path | None) -> None:
    """Check, time, and print a page of Markdown."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException(
            f"torch {torch.__version__} finds no GPU here; --device cpu tries the command without"
        )
    checks, is_right = run_checks()
    rows, stages = measure(device, backbone, quick=quick)
    click.echo(write_page(checks, rows, stages))
    if path is not None:
        path.write_text(json.dumps(rows + stages, indent=2) + "\n")
    if not is_right:
        sys.exit(1)


if __name__ == "__main__":
    main()
