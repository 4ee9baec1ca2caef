"""The few errors that a user can meet.

Each message says what was found and where (file, key, row); ``hint`` says what to do next. The
command line prints both without a traceback and exits with status 1.
"""

from __future__ import annotations


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
    """The settings cannot be read or hold a bad value.

    :param message: one line a problem, ``key: what is wrong with it``.
    :param hint: what to do next.
    :param source: what the settings were read from, if whoever raises it knows; the command line
        adds the file that it was given otherwise.
    """

    def __init__(self, message: str, *, hint: str | None = None, source: str | None = None) -> None:
        if source is not None:
            message = "\n".join(f"{source}: {line}" for line in message.splitlines())
        super().__init__(message, hint=hint)
        self.source = source

    def name_source(self, source: str) -> SettingsError:
        """The same error with its source, unless it knows one already."""
        if self.source is not None:
            return self
        return SettingsError(self.message, hint=self.hint, source=source)


class AssetError(PipelineError):
    """A dataset, lexicon or backbone cannot be had, or is not what it should be."""


class DataError(PipelineError):
    """The corpus cannot be used as it is."""


class StageError(PipelineError):
    """A file that an earlier stage writes is missing, damaged or of another run."""


class StoreError(PipelineError):
    """The embedding store is missing, damaged or of another backbone."""


class ObjectStoreError(PipelineError):
    """An object store does not serve: no client, no network, no such bucket, no permission."""


class DeviceError(PipelineError):
    """The device that was asked for is not there, or ran out of memory."""


class ExportError(PipelineError):
    """A model cannot be exported, or what was exported does not answer as the model does."""


class LockedError(PipelineError):
    """Another run is writing to the same folder."""


class ReadError(PipelineError):
    """A file cannot be read: no permission, a folder in its place, a faulty disk."""


class WriteError(PipelineError):
    """A file cannot be written: no space, no permission, a read-only disk."""
