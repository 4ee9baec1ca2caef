"""Where the files of one project stand; nothing depends on the working directory."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from pathlib import Path

from pipeline.errors import SettingsError

SETTINGS_FILE = "params.yaml"
_FLOW_FILE = "dvc.yaml"
_CACHE_VARIABLE = "PIPELINE_CACHE_DIR"
# The key ``url`` with a value, right or wrong, other than null.
_GIVEN_URL = re.compile(
    rb"\burl[\"']?[ \t]*:(?![ \t]*(?:null|Null|NULL|~)?[ \t]*\r?(?:#.*)?$)", re.M
)


class Project:
    """The files of one project: its settings, and what the stages write under ``cache/``.

    :param root: the project's folder, absolute or relative to the working directory of this moment.
    :param settings: the settings file; ``params.yaml`` of the folder if left out.
    :ivar settings: the settings file.
    :ivar cache: the folder that all stages write to.
    :ivar assets: what ``fetch`` resolved.
    :ivar texts_file: the rows' texts and their keys, by ``prepare``.
    :ivar labels_file: the rows' splits and labels, by ``prepare``.
    :ivar segments_file: the columns of the source that rows are compared by, by ``prepare``.
    :ivar groups_file: groups of near-duplicate rows and their parts, by ``group``.
    :ivar scores: the folder of what labelers computed of texts, kept from run to run.
    :ivar local_store: the folder of the embedding store, or of its digest where ``store.url`` of
        the settings names an object store.
    :ivar cluster: the folder of marks and logs of slices that run as tasks of a cluster.
    :ivar predictions: the folder of the store of labelled texts' vectors, if they are remembered.
    :ivar heads: the folder of the trained heads.
    :ivar report: the folder of metrics, plots and the page.
    :ivar timings: the folder that tells how long each stage's last real run took.
    :ivar last_embed: the number of texts that the last run of ``embed`` took from the store.
    :ivar logs: the folder of the training logs that a user may ask for.
    :ivar lock: the file that one run at a time may hold.
    """

    def __init__(self, root: str | os.PathLike[str] = ".", settings: Path | None = None) -> None:
        self.root = Path(root).expanduser().resolve()
        self.settings = settings.absolute() if settings else self.root / SETTINGS_FILE
        self.cache = self.root / "cache"
        self.assets = self.cache / "assets.json"
        self.texts_file = self.cache / "texts.parquet"
        self.labels_file = self.cache / "labels.parquet"
        self.segments_file = self.cache / "segments.parquet"
        self.groups_file = self.cache / "groups.parquet"
        self.scores = self.cache / "scores"
        self.local_store = self.cache / "embeddings"
        self.cluster = self.cache / "cluster"
        self.predictions = self.cache / "predictions"
        self.heads = self.cache / "heads"
        self.report = self.cache / "report"
        self.timings = self.cache / "timings"
        self.last_embed = self.timings / "embed-hits.json"
        self.logs = self.cache / "logs"
        self.lock = self.cache / ".lock"

    def __repr__(self) -> str:
        return f"Project({str(self.root)!r})"

    @functools.cached_property
    def store(self) -> Path:
        """The embedding store: a folder below ``cache/``, or what ``store.url`` names.

        :raises SettingsError: if the settings name an object store and are not right.
        """
        try:
            content = self.settings.read_bytes()
            is_at_home = b"://" not in content and not _GIVEN_URL.search(content)  # as with most
        except OSError:
            is_at_home = True
        if is_at_home:
            return self.local_store
        from pipeline.config import load_settings

        settings = load_settings(self.settings).store
        if settings.url is None:
            return self.local_store
        from pipeline.store.blocks import BlockCache
        from pipeline.store.objects import open_objects

        cache_bytes = int(settings.cache_gb * 1e9)
        try:
            return open_objects(settings.url, BlockCache(find_block_cache(), cache_bytes))
        except SettingsError as error:
            raise error.name_source(str(self.settings)) from error

    @functools.cached_property
    def slices(self) -> Path:
        """The folder of what several machines embed side by side, until the store takes it."""
        if self.store == self.local_store:
            return self.cache / "slices"
        return self.store.with_name(f"{self.store.name}.slices")

    def resolve(self, name: str) -> Path:
        """The file or folder that a setting names: relative to the project, ``~`` expanded."""
        return self.root / expand_home(name)


def find_project(params: Path) -> Project:
    """The project that a settings file belongs to.

    It is the nearest folder at or above the file that holds ``dvc.yaml``, else the file's own.

    :param params: the settings file; it need not exist.
    """
    folder = params.absolute().parent.resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / _FLOW_FILE).is_file():
            return Project(candidate, params)
    return Project(folder, params)


def find_settings_file(folder: Path) -> Path:
    """The nearest ``params.yaml`` at or above a folder; the one of the folder itself if none is."""
    folder = folder.resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / SETTINGS_FILE).is_file():
            return candidate / SETTINGS_FILE
    return folder / SETTINGS_FILE


def expand_home(name: str) -> Path:
    """A path with ``~`` expanded; unchanged where it names a user who is not known here."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def find_block_cache() -> Path:
    """The folder of this user for parts of object stores that were read before."""
    return user_cache() / "blocks"


def user_cache() -> Path:
    """The folder of this user that holds datasets, lexicons and backbones, for all projects.

    The environment variable ``PIPELINE_CACHE_DIR`` moves it; ``~`` is the home folder there, as
    files that set variables hand it on as it is.

    :raises SettingsError: if the variable names the home folder of nobody, or if this user has no
        home folder and the variable is not set.
    """
    from platformdirs import user_cache_path

    moved = os.environ.get(_CACHE_VARIABLE)
    if not moved:
        with contextlib.suppress(RuntimeError):
            folder = user_cache_path("embedding-pipeline", appauthor=False)
            if folder.is_absolute():
                return folder
        # Where nothing tells the home folder, platformdirs raises, or by its version leaves the ~.
        raise SettingsError(
            f"{_CACHE_VARIABLE}: is not set, and this user has no home folder to keep files in",
            hint=f"set {_CACHE_VARIABLE} to a folder for datasets and backbones",
            source="environment",
        )
    folder = expand_home(moved)
    if str(folder).startswith("~"):
        raise SettingsError(
            f"{_CACHE_VARIABLE}: {moved}: no home folder of that name is known",
            hint="give the whole path of a folder",
            source="environment",
        )
    return folder.absolute()
