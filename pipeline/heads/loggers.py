"""Where the losses of the chosen heads go besides ``curves.csv``: a logger of Lightning's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.heads.training import TrainedHead


def make_logger(name: str, folder: Path) -> Any:
    """The logger that the user chose.

    :param name: the setting ``runtime.logger``.
    :param folder: the folder that it writes to.
    :returns: ``None`` for ``csv``, since ``curves.csv`` is always written.
    :raises SettingsError: if it is not installed.
    """
    if name == "csv":
        return None
    import pipeline.heads.lightning  # noqa: F401, which makes the import of Lightning light

    try:
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return TensorBoardLogger(folder, name="heads")
        # Neither this project nor its tests install it: that is for users who want it.
        from dvclive.lightning import DVCLiveLogger  # type: ignore[import-not-found]

        # It is to make neither a commit of the user's work nor a line in the user's dvc.yaml.
        return DVCLiveLogger(dir=str(folder / "dvclive"), save_dvc_exp=False, dvcyaml=None)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"runtime.logger: {name} is not installed"
            + (f" (no module {error.name})" if error.name else ""),
            hint=f"pip install {name}, or set it to csv",
        ) from error


def log_curves(logger: Any, heads: Sequence[TrainedHead]) -> None:
    """Log the losses of the heads that were chosen; of the others, which may be thousands, none.

    :param logger: a logger of Lightning's kind.
    :param heads: the heads that were chosen.
    """
    for epoch in range(max(len(head.candidate.curve) for head in heads)):
        record = {}
        for head in heads:
            if epoch < len(head.candidate.curve):
                train, validation = head.candidate.curve[epoch].tolist()
                record[f"{head.task.name}/train/loss"] = train
                record[f"{head.task.name}/validation/loss"] = validation
        logger.log_metrics(record, step=epoch + 1)
    logger.finalize("success")
