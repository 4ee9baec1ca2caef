"""The heads that label new texts: trained again on more rows where ``heads.refit`` says so.

Heads that saw only training rows stand in ``cache/heads``; ``report`` scores these. Those that were
trained again with the same configurations and decisions stand in a folder below, in the same form.
Their description names, by its hash, the one of the heads that they follow, so that the two of
different runs are never taken for one.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.errors import StageError
from pipeline.files import describe_write_error, hash_file, write_together
from pipeline.model.saved import DESCRIPTION, Heads

FOLDER = "outgoing"


def save_heads(folder: Path, scored: Heads, outgoing: Heads | None) -> None:
    """Write the heads of a training run.

    :param folder: the folder of the heads; what it holds stays until all is on the disk.
    :param scored: the heads that saw only training rows.
    :param outgoing: the same heads trained again on more rows; ``None`` if they were not, and those
        of a run before are removed.
    :raises WriteError: if the disk does not take them.
    """
    files = {folder / name: content for name, content in scored.encode().items()}
    if outgoing is not None:
        sha256 = hashlib.sha256(files[folder / DESCRIPTION]).hexdigest()
        followed = replace(outgoing, scored_sha256=sha256).encode()
        files |= {folder / FOLDER / name: content for name, content in followed.items()}
    write_together(files)
    if outgoing is None:
        try:
            shutil.rmtree(folder / FOLDER)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise describe_write_error(error, folder / FOLDER) from error


def load_outgoing(folder: Path) -> Heads:
    """Read the heads that label new texts; this imports no torch.

    :param folder: the folder of the heads, such as ``cache/heads`` of a project.
    :returns: those that were trained again on more rows, if there are any, else those that
        ``report`` scores. ``Heads.trained_parts`` says what they were trained on.
    :raises StageError: as ``Heads.load`` does, and if the two are not of one run.
    """
    if not (folder / FOLDER).is_dir():
        return Heads.load(folder)
    outgoing = Heads.load(folder / FOLDER)
    scored = folder / DESCRIPTION
    if not scored.is_file() or hash_file(scored) != outgoing.scored_sha256:
        raise StageError(
            f"{outgoing.folder} was not trained after the heads that {folder} holds",
            hint="run `pipeline train-heads` again",
        )
    return outgoing
