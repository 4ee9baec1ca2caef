"""The figures of the last report, for ``report`` to write and for anyone to read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import StageError
from pipeline.files import hash_file, read_json, reading
from pipeline.model.saved import DESCRIPTION
from pipeline.project import Project

METRICS = "metrics.json"
FINDINGS = "findings.json"
CHECKSUMS = "SHA256SUMS"
# The file, as seen from the report's folder, whose hash says which heads the figures are of.
SCORED_HEADS = f"../heads/{DESCRIPTION}"
_STAGE = "report"


def format_checksums(contents: Mapping[str, bytes]) -> bytes:
    """The hashes of the report's files, in the form that ``sha256sum --check`` reads.

    :param contents: name → content.
    """
    lines = [f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in sorted(contents)]
    return "".join(lines).encode("utf-8")


def read_metrics(project: Project) -> dict[str, dict[str, dict[str, Any]]]:
    """Read the figures of the last report: part → task → metric → value.

    :param project: the project that the report is of.
    :raises StageError: if there is none, or its file is not the one that was written.
    """
    path = project.report / METRICS
    metrics = _read_stated(project, METRICS)
    with reading(path, _STAGE):
        return {
            part: {task: dict(values) | {"rows": values["rows"]} for task, values in tasks.items()}
            for part, tasks in metrics.items()
        }


def read_summary(project: Project) -> dict[str, Any]:
    """Read what the terminal tells of the last report, as ``report/summary.py`` made it.

    :param project: the project that the report is of.
    :raises StageError: if there is none, or its file is not the one that was written.
    """
    record: dict[str, Any] = _read_stated(project, FINDINGS)
    return record


def _read_stated(project: Project, name: str) -> Any:
    """The content of a file of JSON whose hash the report states."""
    path = project.report / name
    content = read_json(path, stage=_STAGE)
    stated = _read_checksums(project)
    with reading(path, _STAGE):
        if stated.get(name) != hash_file(path):
            raise ValueError(f"it is not the file that {path.with_name(CHECKSUMS)} tells of")
    return content


def check_scored_heads(project: Project) -> None:
    """Make sure that the last report is of the heads that the project has now.

    :param project: the project.
    :raises StageError: if it is of others, or of an earlier version, which did not say of which.
    """
    if _read_checksums(project).get(SCORED_HEADS) != hash_file(project.heads / DESCRIPTION):
        raise StageError(
            f"{project.report} does not say that it is of the heads in {project.heads}",
            hint=f"run `pipeline {_STAGE}`",
        )


def _read_checksums(project: Project) -> dict[str, str]:
    """Name → hash, of the report's files."""
    path = project.report / CHECKSUMS
    with reading(path, _STAGE):
        lines = path.read_text("utf-8").splitlines()
    return {line.partition("  ")[2]: line.partition("  ")[0] for line in lines}
