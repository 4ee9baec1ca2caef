"""An exported folder as something to label texts with, away from the project that made it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.assets import Asset, check_files
from pipeline.errors import PipelineError, StageError
from pipeline.model.saved import DESCRIPTION
from pipeline.project import Project

if TYPE_CHECKING:
    from pipeline.predict.model import Model

HEADS_FOLDER = "heads"
BACKBONE_FOLDER = "backbone"


class Bundle(Project):
    """The files of an exported folder: it has heads as a project has, and perhaps the backbone.

    :param root: the folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self.heads = self.root / HEADS_FOLDER

    def find_backbone(self, asset: Asset) -> Path:
        """The folder of the backbone: in this folder, or in the user's cache folder, or fetched.

        :param asset: the backbone's record.
        :raises StageError: if it was a local folder, which is not here.
        :raises AssetError: if no source has it.
        """
        own = self.root / BACKBONE_FOLDER
        if own.is_dir():
            return own
        try:
            folder = asset.locate(self)
            check_files(asset, "backbone", folder)
        except PipelineError:
            if asset.path is not None:
                raise StageError(
                    f"{self.root}: its backbone was the local folder {asset.path}, which is not "
                    "here, or has other files here",
                    hint="export it with --with-backbone where that folder is",
                ) from None
            from pipeline.fetch.run import fetch_same_backbone

            folder = fetch_same_backbone(asset)
        return folder


def load(project: str | os.PathLike[str] | Project = ".", **options: Any) -> Model:
    """The trained model of a project or of an exported folder, for texts of any origin.

    ::

        with pipeline.load(".") as model:
            model.predict(["WINNER! Claim your prize now", "see you at eight"])

    An exported folder may hold the files of its backbone. If it does not, they are taken from the
    user's cache folder, or fetched as ``pipeline fetch`` does, and checked by their hashes.

    :param project: the project, or its folder, or a folder that ``pipeline export`` wrote.
    :param **options: ``devices``, ``threads``, ``token_budget``, as ``Embedder`` has them, and
        ``tasks``, ``thresholds`` and ``refit``, as ``Model`` has them.
    :raises StageError: if no heads were trained, a file is damaged, or the backbone's files are not
        those that the heads were trained on.
    :raises AssetError: if the backbone of an exported folder cannot be had.
    :raises SettingsError: if a task or a threshold cannot be.
    """
    from pipeline.predict.model import Model

    files = project if isinstance(project, Project) else open_folder(Path(project))
    find_backbone = files.find_backbone if isinstance(files, Bundle) else None
    return Model(files, find_backbone=find_backbone, **options)


def open_folder(folder: Path) -> Project:
    """The files of a project, or of an exported folder, which is known by the folder of its heads.

    :param folder: the folder.
    """
    is_bundle = (folder / HEADS_FOLDER / DESCRIPTION).is_file()
    return Bundle(folder) if is_bundle else Project(folder)
