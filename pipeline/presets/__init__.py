"""Settings to start from: files of ``params.yaml``'s form."""

from importlib import resources

_ENDING = ".yaml"


def list_presets() -> list[str]:
    """The names of all presets."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(_ENDING) for f in files if f.name.endswith(_ENDING))


def read_preset(name: str) -> str:
    """The text of a preset's ``params.yaml``."""
    return resources.files(__name__).joinpath(f"{name}{_ENDING}").read_text("utf-8")
