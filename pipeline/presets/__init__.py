"""Settings to start from: files of ``params.yaml``'s form."""

from pathlib import Path

# Every start of the command line lists the presets. With importlib.resources, which loads tempfile,
# zipfile and random, `pipeline --help` takes about a tenth longer than with plain paths.
_FOLDER = Path(__file__).parent


def list_presets() -> list[str]:
    """The names of all presets."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def read_preset(name: str) -> str:
    """The text of a preset's ``params.yaml``.

    :param name: one of ``list_presets()``.
    """
    return (_FOLDER / f"{name}.yaml").read_text("utf-8")
