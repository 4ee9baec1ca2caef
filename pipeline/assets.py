"""What ``fetch`` resolved: the records of ``assets.json``, and the files that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.files import (
    add_hash,
    check_hash,
    describe_read_error,
    hash_file,
    read_json,
    reading,
    write_json,
)
from pipeline.project import Project, user_cache

RECORD = "asset.json"  # beside the files of an asset in the user's cache folder
# Keys of what is told of a dataset that may be several files: name → bytes; each is one text.
SIZES = "bytes"
ONE_TEXT = "one_text"


@dataclass(frozen=True)
class Asset:
    """One entry of ``assets.json``.

    :param id: the name in ``params.yaml``.
    :param source: where its bytes come from, the same on every machine.
    :param files: name → SHA-256.
    :param folder: its folder below the user's cache folder; ``None`` for a local path.
    :param path: the local path as ``params.yaml`` gives it, with a slash at its end where it is the
        folder of several files; ``None`` for a fetched asset.
    :param extra: what only some kinds have: a dataset's ``format`` and ``header``, the ``bytes`` of
        each of its files if there may be several, whether each holds ``one_text``; a backbone's
        ``revision`` and ``wanted``.
    :param members: the assets that a dataset of a list of names is made of, in that order; it has
        no files of its own.
    """

    id: str
    source: str
    files: Mapping[str, str]
    folder: str | None = None
    path: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[Asset, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """The entry as JSON; what differs from machine to machine stays out of it."""
        if self.members:
            members = [member.to_record() for member in self.members]
            return {"id": self.id, "source": self.source, "members": members}
        where = {"path": self.path} if self.path is not None else {"folder": self.folder}
        record = {"id": self.id, "source": self.source, **where, **self.extra}
        return record | {"files": dict(sorted(self.files.items()))}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Asset:
        """The asset of an entry that ``to_record`` made.

        :param record: an entry of ``assets.json``.
        :raises KeyError: if the entry lacks what every asset has.
        :raises TypeError: if it is not of this form.
        """
        known = {"id", "source", "folder", "path", "files", "members"}
        for key in ("id", "source"):
            if not isinstance(record[key], str):
                raise TypeError(f"`{key}` must be a text, got {record[key]!r:.60}")
        for key in ("folder", "path"):
            if not isinstance(record.get(key), str | None):
                raise TypeError(f"`{key}` must be a text, got {record[key]!r:.60}")
        members = record.get("members", [])
        if not isinstance(members, list):
            raise TypeError("`members` must be a list")
        files = {} if members else record["files"]
        if not isinstance(files, dict) or not all(isinstance(h, str) for h in files.values()):
            raise TypeError("`files` must map names to hashes")
        return cls(
            id=record["id"],
            source=record["source"],
            files=files,
            folder=record.get("folder"),
            path=record.get("path"),
            extra={key: value for key, value in record.items() if key not in known},
            members=tuple(map(cls.from_record, members)),
        )

    def list_members(self) -> tuple[Asset, ...]:
        """The assets that it is made of: itself, unless it is one of a list of names."""
        return self.members or (self,)

    def locate(self, project: Project) -> Path:
        """The folder that holds the asset's files on this machine.

        :param project: the project that a relative local path belongs to.
        """
        if self.path is not None:
            local = project.resolve(self.path)
            is_file = set(self.files) == {local.name} and not self.path.endswith("/")
            return local.parent if is_file else local
        return user_cache() / str(self.folder)


def write_assets(path: Path, assets: Mapping[str, Asset]) -> None:
    """Write what ``fetch`` resolved, with a hash of it all.

    :param path: the project's ``assets.json``.
    :param assets: key → asset.
    :raises WriteError: if the disk does not take it.
    """
    write_json(path, add_hash({key: asset.to_record() for key, asset in assets.items()}))


def read_assets(path: Path) -> dict[str, Asset]:
    """Read what ``fetch`` resolved: ``dataset``, ``backbone``, and what the labelers want.

    :param path: the project's ``assets.json``.
    :returns: key → asset; there are always ``dataset`` and ``backbone``.
    :raises StageError: if the file is missing, damaged or not of this form.
    """
    content = read_json(path, stage="fetch")
    with reading(path, "fetch"):
        records = check_hash(content, is_required=False)
        assets = {key: Asset.from_record(record) for key, record in records.items()}
        for key in ("dataset", "backbone"):
            if key not in assets:
                raise KeyError(key)
    return assets


def check_files(asset: Asset, what: str, folder: Path) -> None:
    """Make sure that an asset's files are on this machine and are those that were fetched.

    :param asset: the entry of ``assets.json``.
    :param what: what the message calls the asset, which is its key in ``assets.json``.
    :param folder: the folder that holds the files.
    :raises StageError: naming the first file that is missing or has changed.
    :raises ReadError: naming the first file that cannot be read.
    """
    for name, sha256 in asset.files.items():
        file = folder / name
        try:
            actual = hash_file(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StageError(
                f"{what} {asset.id}: {file} is not there any more",
                hint="run `pipeline fetch` again",
            ) from error
        except OSError as error:
            raise describe_read_error(error, file) from error
        if actual != sha256:
            raise StageError(
                f"{what} {asset.id}: {file} has changed since it was fetched",
                hint="run `pipeline fetch` again, then `dvc repro`",
            )
