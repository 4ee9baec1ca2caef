"""What a corpus is, in a few hashes: its texts, its split, its labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.keys import hash_keys

if TYPE_CHECKING:
    import pyarrow as pa

# The types in which values are hashed, the same on every machine, by the kind of label.
_HASHED_TYPES = {"class": "<i4", "tags": "i1", "number": "<f8"}
_HASHED_ROWS = 131_072  # that are converted to these at a time
_SHOWN_SETTINGS = 3  # in a message
_SHOWN_CHARACTERS = 60  # of the value of a setting in a message


@dataclass(frozen=True)
class LabelIdentity:
    """What the labels of one task are.

    :param values: SHA-256 over the kind of label, the names of the classes in their order, and the
        label of each row.
    :param settings: the settings that the labels were made by; ``None`` where that is not known.
        They tell people why labels differ; whether they do, ``values`` alone decides.
    """

    values: str
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class CorpusIdentity:
    """What the rows of a corpus are: equal for equal texts, parts and labels in the same order.

    :param rows: the number of rows.
    :param keys: SHA-256 over the keys of the rows' texts.
    :param split: SHA-256 over the parts that the rows are in.
    :param labels: task → its labels.
    """

    rows: int
    keys: str
    split: str
    labels: Mapping[str, LabelIdentity]

    @classmethod
    def measure(
        cls, keys: pa.Array, split: npt.NDArray[Any], labels: Mapping[str, LabelIdentity]
    ) -> CorpusIdentity:
        """The identity of some rows.

        :param keys: fixed-size binary of 16, [B], without nulls.
        :param split: the index in ``PARTS`` of each row's part: integers, [B].
        :param labels: task → its labels.
        """
        parts = hashlib.sha256(np.ascontiguousarray(split, "i1").data).hexdigest()
        return cls(len(keys), hash_keys(keys), parts, labels)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CorpusIdentity:
        """Read what ``to_record`` gave.

        :param record: a value of JSON.
        :raises ValueError: if it is of another form; ``KeyError``, ``TypeError`` and
            ``AttributeError`` likewise.
        """
        labels = {}
        for name, entry in record["labels"].items():
            settings = entry["settings"]
            if not isinstance(settings, dict | None):
                raise TypeError(f"settings of {name} are no mapping")
            labels[name] = LabelIdentity(_take_hash(entry, "values"), settings)
        rows = record["rows"]
        if not isinstance(rows, int) or rows < 0:
            raise ValueError(f"{rows!r} rows")
        return cls(rows, _take_hash(record, "keys"), _take_hash(record, "split"), labels)

    def to_record(self) -> dict[str, Any]:
        """The identity as JSON."""
        return {
            "rows": self.rows,
            "keys": self.keys,
            "split": self.split,
            "labels": {
                name: {"values": of_task.values, "settings": of_task.settings}
                for name, of_task in self.labels.items()
            },
        }

    def select_tasks(self, names: Sequence[str]) -> CorpusIdentity:
        """The identity of the same rows with the labels of some tasks alone.

        :param names: the names of the tasks.
        """
        return replace(self, labels={name: self.labels[name] for name in names})

    def list_changes(self, now: CorpusIdentity) -> list[str]:
        """What is different in another corpus, in words; nothing if it is the same.

        Tasks that are only in the other corpus do not count.

        :param now: the identity of the other corpus.
        """
        if self.keys != now.keys:
            return [
                f"other texts ({self.rows:,} rows, now {now.rows:,})"
                if self.rows != now.rows
                else "other texts"
            ]
        changes = ["another split"] if self.split != now.split else []
        for name, before in self.labels.items():
            after = now.labels.get(name)
            if after is None:
                changes.append(f"labels {name}, which are gone")
            elif after.values != before.values:
                changes.append(f"other labels {name}{_tell_settings(before, after)}")
        return changes


def hash_labels(kind: str, classes: Sequence[str], values: npt.NDArray[Any]) -> str:
    """SHA-256 over the labels of one task.

    :param kind: the kind of label: a key of ``_HASHED_TYPES``.
    :param classes: C names in the order of their index.
    :param values: [B] or [B, C]: as in ``TaskLabels``, or of narrower types.
    """
    about = json.dumps([kind, list(classes), list(values.shape)])
    digest = hashlib.sha256(about.encode("utf-8") + b"\n")
    for start in range(0, len(values), _HASHED_ROWS):
        exact = values[start : start + _HASHED_ROWS].astype(_HASHED_TYPES[kind])
        if kind == "number":
            exact[np.isnan(exact)] = np.nan  # which has many bit patterns
        digest.update(np.ascontiguousarray(exact).data)
    return digest.hexdigest()


def _take_hash(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not a hash")
    return value


def _tell_settings(before: LabelIdentity, after: LabelIdentity) -> str:
    """The settings of some labels that differ, in brackets, where both are known."""
    if before.settings is None or after.settings is None:
        return ""
    keys = dict.fromkeys([*before.settings, *after.settings])
    pairs = [(key, before.settings.get(key), after.settings.get(key)) for key in keys]
    told = [
        f"{key} {_shorten(then)}, now {_shorten(now)}" for key, then, now in pairs if then != now
    ]
    return f" ({'; '.join(told[:_SHOWN_SETTINGS])})" if told else ""


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
