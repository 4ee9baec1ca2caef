"""The few errors that a user can meet.

Each message says what was found and where (file, key, row); ``hint`` says what to do next. The
command line prints both without a traceback and exits with status 1.
"""


class PipelineError(Exception):
    """A mistake or a mishap that the user can mend.

    :param message: what was found, and where.
    :param hint: what to do next.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(PipelineError):
    """``params.yaml`` cannot be read or holds a bad value."""


class AssetError(PipelineError):
    """A dataset, lexicon or backbone cannot be had, or is not what it should be."""


class DataError(PipelineError):
    """The corpus cannot be used as it is."""


class StageError(PipelineError):
    """A file that an earlier stage writes is missing, damaged or of another run."""


class StoreError(PipelineError):
    """The embedding store is missing, damaged or of another backbone."""


class DeviceError(PipelineError):
    """The device that was asked for is not there, or ran out of memory."""


class LockedError(PipelineError):
    """Another run is writing to the same place."""


class WriteError(PipelineError):
    """A file cannot be written: no space, no permission, a read-only disk."""
