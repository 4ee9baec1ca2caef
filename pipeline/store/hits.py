"""How many texts of the last run of ``embed`` the store served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import check_hash, read_json


@dataclass(frozen=True)
class Hits:
    """What became of the distinct texts of a run.

    :param kept: the number of texts whose vectors the store held before.
    :param embedded: the number of texts that were computed.
    """

    kept: int
    embedded: int


def read_hits(path: Path) -> Hits | None:
    """Read what the last run of ``embed`` wrote.

    :param path: the project's ``last_embed``.
    :returns: ``None`` if there is no such file, or it is not what a run wrote.
    """
    try:
        record = check_hash(read_json(path, stage="embed"), is_required=False)
        return Hits(int(record["kept"]), int(record["embedded"]))
    except (PipelineError, ValueError, KeyError, TypeError, AttributeError):
        return None
