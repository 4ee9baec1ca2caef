"""Whether the engine is right on a GPU, and how fast: one command, one page of Markdown to paste.

    python -m tests.benchmarks.gpu [--device cuda|cpu] [--quick] [--json FILE]

It runs the checks of `tests/integration/test_gpu.py`, then `tests.benchmarks.embed` on gte-base's
shape and on each packed family with random weights. On a CPU, where the checks are skipped, it only
shows that the command itself works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from tests.benchmarks.embed import COLUMNS, ROOT
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


def measure(device: str, *, quick: bool) -> list[dict[str, Any]]:
    """The rows of `tests.benchmarks.embed`, whose own tables go to the standard error stream."""
    shape = (
        ["--quick"] if quick else ["--random-weights", "gte-base", "--case", "sms,long,families"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.json"
        command = [sys.executable, "-m", "tests.benchmarks.embed", "--json", str(path)]
        command += ["--device", device, *shape]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def write_page(checks: str, rows: list[dict[str, Any]]) -> str:
    machine = rows[0]["machine"]
    about = {
        "device": machine.get("gpu", "no GPU"),
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        **machine["versions"],
        "python": machine["python"],
        "checks": checks,
    }
    facts = "".join(f"- {name}: {what}\n" for name, what in about.items())
    return f"{facts}\n{to_markdown([{c: row.get(c) for c in COLUMNS} for row in rows])}"


@click.command()
@click.option("--device", default="cuda", help="cuda, or cpu to try the command.")
@click.option("--quick", is_flag=True, help="MiniLM, a part of the SMS corpus, one round.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows there, too.")
def main(device: str, quick: bool, path: Path | None) -> None:
    """Check, time, and print a page of Markdown."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException(
            f"torch {torch.__version__} finds no GPU here; --device cpu tries the command without"
        )
    checks, is_right = run_checks()
    rows = measure(device, quick=quick)
    click.echo(write_page(checks, rows))
    if path is not None:
        path.write_text(json.dumps(rows, indent=2) + "\n")
    if not is_right:
        sys.exit(1)


if __name__ == "__main__":
    main()
