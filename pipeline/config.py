"""``params.yaml`` → frozen, validated settings.

One section per stage, plus ``runtime`` for what changes the speed. The defaults of these models are
the ``default`` preset; ``pipeline/presets`` holds it, and the others, as files.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from pipeline.config_errors import (
    NestedKeyError,
    SectionError,
    describe_choice,
    describe_errors,
    suggest,
)
from pipeline.errors import SettingsError
from pipeline.files import describe_read_error, read_bounded
from pipeline.losses import LOSSES, describe_losses, list_options

# A settings file with the names of ten thousand classes has a fifth of this.
_SETTINGS_BYTES = 1_000_000
_SETTINGS_VALUES = 100_000
Positive = Annotated[float, Field(gt=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Name = Annotated[str, Field(min_length=1, strict=True)]
Optimizer = Literal["sgd", "adamw", "lbfgs"]
Head = Literal["linear", "kernel", "hidden"]
# Below a bandwidth of 0.1 no row is similar to any other, and a kernel head learns nothing; above 3
# all rows are about equally similar, and a kernel head is little more than a linear one.
Bandwidth = Annotated[float, Field(ge=0.1, le=3, strict=True)]
Metric = Literal[
    "accuracy", "precision", "recall", "f1", "precision_macro", "recall_macro", "f1_macro",
    "f1_weighted", "f1_micro", "roc_auc", "average_precision", "loss",
    "mean_absolute_error", "root_mean_squared_error", "r2",
]  # fmt: skip
_Value = TypeVar("_Value")
Values = Annotated[tuple[_Value, ...], Field(min_length=1)]
LabelKind = Literal["class", "tags", "number"]
TaskType = Literal["binary", "multiclass", "multilabel", "ordinal", "regression"]
# A loss is declared once, with its options, in the table of losses; a checker of types sees text.
if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]
Layers = Literal["all", "last"] | Annotated[tuple[StrictInt, ...], Field(min_length=1)]
PoolingName = Literal["mean", "cls", "max", "mean_sqrt_len", "last"]
# Task names become columns of labels.parquet and prefixes of tensors in heads.safetensors.
# They also name files of plots, which may have 255 characters.
TASK_NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
TASK_NAME_CHARACTERS = 200
TaskName = Annotated[str, Field(pattern=TASK_NAME, max_length=TASK_NAME_CHARACTERS, strict=True)]
# What a class or tag may be called in the settings, and a value that stands for one.
LabelValue = StrictStr | StrictInt | StrictFloat | StrictBool
ONE_FILE_HASH = (
    "is the hash of one file, and fetch.dataset names several; cache/assets.json holds the hash of "
    "each, and a file that changes is noticed"
)
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+", re.ASCII)


def normalize_value(value: object) -> str:
    """A label value as text, the same from YAML, CSV, JSON and Parquet.

    ``True`` is ``true`` and ``1.0`` is ``1``, also where a CSV file spells them so: pandas writes
    whole numbers with a decimal point where some are missing.
    """
    if isinstance(value, bool) or value in ("True", "False", "TRUE", "FALSE"):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    whole = _WHOLE_NUMBER.fullmatch(text)
    if whole is None:
        return text
    return "0" if whole[1] == "-0" else whole[1]


class Section(BaseModel):
    """A part of the settings: frozen, without unknown keys, all its numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FetchSettings(Section):
    """Which dataset, lexicon and backbone the stage ``fetch`` gets."""

    dataset: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="sms-spam-collection",
        description="The corpus: `sms-spam-collection`, or a path or URL of a CSV, TSV, JSON or "
        "Parquet file, of a folder of such files, or a pattern for their names such as "
        "`data/*.csv`; a list of these joins them in its order. A folder without tables is one of "
        "`.txt` files, a text each. A relative path starts at the project's folder; `hf://datasets/"
        "OWNER/NAME/FILE` names files on the Hugging Face hub, `s3://…` and `gs://…` those of "
        "object stores.",
    )
    dataset_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", strict=True)] | None = Field(
        default=None,
        description="The SHA-256 that the dataset's file must have, 64 hexadecimal digits; a file "
        "with any other is refused. Null accepts what is there. It is for a dataset of one file.",
    )
    lexicon: Name = Field(
        default="vader",
        description="The lexicon of labels made by VADER: `vader`, or the path of a file of the "
        "same form (a word, a tab and its valence, from -4 to 4, on each line). It is fetched only "
        "if a label needs it.",
    )
    backbones: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default=("thenlper/gte-base", "sentence-transformers/all-MiniLM-L6-v2"),
        description="Backbones in order of preference: ids on the Hugging Face hub (`owner/name`, "
        "or `owner/name@revision` to pin one) or local folders. The first that can be had is used; "
        "a list of one name accepts no other.",
    )

    @model_validator(mode="after")
    def _hash_is_of_one_file(self) -> FetchSettings:
        if self.dataset_sha256 is not None and not isinstance(self.dataset, str):
            raise NestedKeyError(("dataset_sha256",), ONE_FILE_HASH)
        return self

    def list_datasets(self) -> tuple[str, ...]:
        """The names that the dataset is made of."""
        return (self.dataset,) if isinstance(self.dataset, str) else self.dataset

    def name_dataset(self) -> str:
        """The name of the dataset, which is several names joined where it is a list."""
        return ", ".join(self.list_datasets())


class WantedAsset(NamedTuple):
    """A file or a model that a labeler wants the stage ``fetch`` to get.

    :param name: its name in the catalog, or a path as ``Project.resolve`` takes it; of a model, a
        hub id or the path of a folder.
    :param key: the setting that gives the name, for messages.
    :param is_model: whether it is a folder with a Hugging Face model, which is fetched as a
        backbone is.
    """

    name: str
    key: str
    is_model: bool = False


class WantedColumn(NamedTuple):
    """A column of the source that the stage ``prepare`` needs.

    :param name: its name.
    :param key: the setting that gives the name, for messages.
    :param kind: what its values are to be: texts, or labels of a kind.
    """

    name: str
    key: str
    kind: LabelKind | Literal["text"]


class LabelSettings(Section):
    """What every label declares; each labeler has settings of its own that derive from this.

    A labeler is known by its entry in ``LABELERS``.

    :cvar implementation: ``module:class`` of its ``pipeline.prepare.labelers.base.Labeler``, which
        is imported when labels are made, so that reading settings needs none of its libraries.
    :cvar in_project: whether that labeler is made with a ``LabelingContext`` too, as it reads or
        keeps files of the project.
    """

    implementation: ClassVar[str]
    in_project: ClassVar[bool] = False

    labeler: StrictStr = Field(description="Where the label comes from: the name of a labeler.")

    def get_kind(self) -> LabelKind:
        """What a row's label is."""
        return "class"

    def get_classes(self) -> tuple[str, ...] | None:
        """The names of the classes or tags in the order of their index, if the settings tell."""
        return None

    def finds_classes(self) -> bool:
        """Whether the classes are those that the source happens to hold.

        Nothing then tells an order of theirs, unless they are numbers.
        """
        return False

    def get_scores(self, task: str) -> tuple[str, ...]:
        """The columns of raw scores that stand beside the label of a task in ``labels.parquet``."""
        return ()

    def get_columns(self, task: str) -> tuple[WantedColumn, ...] | None:
        """The columns of the source that the labels of a task need; no others are read for them.

        :param task: the task, whose settings are ``prepare.labels.TASK``.
        :returns: the columns, beside that of the texts; ``None`` if it may be any.
        """
        return None

    def get_assets(self, task: str, fetch: FetchSettings) -> dict[str, WantedAsset]:
        """What ``fetch`` has to get for the labels of a task.

        :param task: the task, whose settings are ``prepare.labels.TASK``.
        :param fetch: the settings of the stage.
        :returns: key in ``assets.json``, which is also what messages call the asset → the asset.
            Labels that want the same file share its key; no other asset may have it.
        """
        return {}


class NamedClasses(LabelSettings):
    """The classes of a label, and which values stand for them."""

    classes: Annotated[tuple[LabelValue, ...], Field(min_length=2)] | None = Field(
        default=None,
        description="The names of the classes or tags; their order gives the indices, from 0. Null "
        "takes the distinct values that are there, numbers in the order of their size and others "
        "in that of their spelling; of a model it takes all that the model knows, in its order.",
    )
    mapping: dict[LabelValue, LabelValue] | None = Field(
        default=None,
        description="For each value that is not itself the name of a class, the "
        "class that it means, such as `{1: bad, 5: good}`. Only for `kind: class`.",
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if classes is not None and len({normalize_value(c) for c in classes}) < len(classes):
            raise ValueError("must name each class once")
        return classes

    @field_validator("mapping", mode="before")
    @classmethod
    def _leads_somewhere(cls, mapping: Any) -> Any:
        for value, name in mapping.items() if isinstance(mapping, dict) else ():
            if name is None:
                raise NestedKeyError(
                    (str(value),),
                    "null is no class; if the value means that a label is missing, name it in "
                    "prepare.missing",
                )
        return mapping

    @field_validator("mapping")
    @classmethod
    def _distinct_values(cls, mapping: dict[Any, Any] | None) -> dict[Any, Any] | None:
        first: dict[str, Any] = {}
        for value in mapping or {}:
            other = first.setdefault(normalize_value(value), value)
            if other is not value:
                raise NestedKeyError((str(value),), f"is the same value as {other!r}")
        return mapping

    @model_validator(mode="after")
    def _mapping_leads_to_classes(self) -> NamedClasses:
        if self.mapping and self.classes:
            known = {normalize_value(c) for c in self.classes}
            for value, name in self.mapping.items():
                if normalize_value(name) not in known:
                    raise NestedKeyError(
                        ("mapping", str(value)),
                        f"must be one of the classes {', '.join(sorted(known))}, got {name!r}",
                    )
        return self

    def get_classes(self) -> tuple[str, ...] | None:
        """The names of the classes or tags, if ``classes`` gives them."""
        return tuple(map(normalize_value, self.classes)) if self.classes is not None else None


class ReadValues(LabelSettings):
    """What the values that something gives for the rows are to a label."""

    kind: LabelKind = Field(
        default="class",
        description="What a row's label is: one `class`, any number of `tags`, or a `number`.",
    )
    separator: Name = Field(
        default=",",
        description="The text between two tags of a row, where they are one text. Lists need none.",
    )
    empty: Literal["none", "missing"] | None = Field(
        default=None,
        description="What an empty cell of a text column of tags means: `none`, that the row has "
        "none of the tags, or `missing`, that its tags are not known. Null is `missing` if the "
        "label is optional, else `none`. Of lists an empty one always means `none`, "
        "and a null always that the tags are missing. Only for `kind: tags`.",
    )
    optional: StrictBool = Field(
        default=False,
        description="Whether a row may lack this label. Such a row is kept, and takes no part in "
        "training and judging this task's head.",
    )

    def get_kind(self) -> LabelKind:
        """What a row's label is, as ``kind`` says."""
        return self.kind


class ValueLabel(NamedClasses, ReadValues):
    """A label that is read from a value for each row."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ValueLabel:
        if self.kind == "number" and self.classes:
            raise NestedKeyError(("classes",), "a number has none; set kind to class or tags")
        if self.kind != "class" and self.mapping:
            raise NestedKeyError(("mapping",), f"is for classes, not for {self.kind}")
        if self.kind != "tags" and self.empty:
            raise NestedKeyError(("empty",), f"is for tags, not for {self.kind}")
        return self

    def finds_classes(self) -> bool:
        return self.classes is None


class NamedColumn(LabelSettings):
    """The column that a label comes from."""

    column: Name = Field(description="The column that holds the label.")


class ColumnLabel(ValueLabel, NamedColumn):
    """A label that a column of the source holds."""

    implementation = "pipeline.prepare.labelers.column:ColumnLabeler"

    labeler: Literal["column"] = Field(
        default="column", description="Where the label comes from: a `column` of the source."
    )

    def get_columns(self, task: str) -> tuple[WantedColumn, ...]:
        return (WantedColumn(self.column, f"prepare.labels.{task}.column", self.kind),)


class NamedFunction(LabelSettings):
    """The function that a label comes from."""

    function: Name = Field(
        description="The function that labels texts, as `module:name`. The module is one that is "
        "installed, or a file of the project's folder: `labels:is_urgent` is `is_urgent` in "
        "`labels.py`. It is called with lists of texts, at most 1,024 at once and each distinct "
        "text once, and returns as many labels: what a column would hold, `None` if one is "
        "missing."
    )

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        module, _, name = function.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), name)):
            raise ValueError(f"must be module:name, such as labels:is_urgent, got {function!r}")
        return function


class FunctionLabel(ValueLabel, NamedFunction):
    """A label that a Python function of your own gives to the text."""

    implementation = "pipeline.prepare.labelers.function:FunctionLabeler"
    in_project = True

    labeler: Literal["function"] = Field(
        description="Where the label comes from: the text itself, labelled by a `function`."
    )

    def get_columns(self, task: str) -> tuple[WantedColumn, ...]:
        return ()


class NamedModel(LabelSettings):
    """The model that a label comes from, and what its answers mean."""

    model: Name = Field(
        description="The classification model: an id on the Hugging Face hub (`owner/name`, or "
        "`owner/name@revision` to pin one) or a local folder, with `tokenizer.json` and weights as "
        "safetensors. The stage `fetch` gets it."
    )
    kind: Literal["class", "tags"] = Field(
        default="class",
        description="What a row's label is: the `class` to which the model gives the highest "
        "score, or all `tags` whose probability reaches the threshold.",
    )
    threshold: Share = Field(
        default=0.5,
        description="The probability from which on a text has a tag, between 0 and 1. Only for "
        "`kind: tags`.",
    )
    max_tokens: Annotated[int, Field(ge=3, strict=True)] = Field(
        default=128,
        description="The number of tokens at which a text is cut for the model, special tokens "
        "counted in; from 3 to what the model allows.",
    )

    def get_kind(self) -> LabelKind:
        """What a row's label is, as ``kind`` says."""
        return self.kind


class ModelLabel(NamedClasses, NamedModel):
    """A label that a classification model gives to the text.

    The model's scores are kept in ``cache/scores/``, so that each text is scored once.
    """

    implementation = "pipeline.prepare.labelers.model:ModelLabeler"
    in_project = True

    labeler: Literal["model"] = Field(
        description="Where the label comes from: the text itself, labelled by a `model`."
    )

    @model_validator(mode="after")
    def _maps_classes(self) -> ModelLabel:
        if self.kind != "class" and self.mapping:
            raise NestedKeyError(("mapping",), f"is for classes, not for {self.kind}")
        return self

    def get_columns(self, task: str) -> tuple[WantedColumn, ...]:
        return ()

    def get_assets(self, task: str, fetch: FetchSettings) -> dict[str, WantedAsset]:
        """The model, whose key in ``assets.json`` no other task has."""
        key = f"prepare.labels.{task}.model"
        return {f"{task}.model": WantedAsset(self.model, key, is_model=True)}


class VaderLabel(LabelSettings):
    """A sentiment label (negative 0, neutral 1, positive 2) that VADER gives to the text."""

    implementation = "pipeline.prepare.labelers.vader:VaderLabeler"
    in_project = True

    labeler: Literal["vader"] = Field(
        description="Where the label comes from: the text itself, scored by `vader`."
    )
    negative_at_most: Annotated[float, Field(ge=-1, le=1, strict=True)] = Field(
        default=-0.05,
        description="A text whose compound score is this or lower is negative. From -1 to 1; the "
        "default is the threshold that VADER's authors recommend.",
    )
    positive_at_least: Annotated[float, Field(ge=-1, le=1, strict=True)] = Field(
        default=0.05,
        description="A text whose compound score is this or higher is positive, and one between "
        "the two thresholds is neutral. From -1 to 1; the default is the threshold that VADER's "
        "authors recommend.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> VaderLabel:
        if self.negative_at_most >= self.positive_at_least:
            raise ValueError(
                f"negative_at_most must be < positive_at_least, got {self.negative_at_most} and "
                f"{self.positive_at_least}"
            )
        return self

    def get_classes(self) -> tuple[str, ...]:
        """The three sentiments, in the order of their index."""
        return ("negative", "neutral", "positive")

    def get_scores(self, task: str) -> tuple[str, ...]:
        """The column of the compound scores."""
        return (f"{task}_compound",)

    def get_columns(self, task: str) -> tuple[WantedColumn, ...]:
        return ()

    def get_assets(self, task: str, fetch: FetchSettings) -> dict[str, WantedAsset]:
        """The lexicon, which ``fetch.lexicon`` names."""
        return {"lexicon": WantedAsset(fetch.lexicon, "fetch.lexicon")}


# Every labeler by the name that `prepare.labels.TASK.labeler` gives it.
LABELERS: dict[str, type[LabelSettings]] = {
    "column": ColumnLabel,
    "vader": VaderLabel,
    "function": FunctionLabel,
    "model": ModelLabel,
}


class _UnknownLabel(LabelSettings):
    """A label whose labeler is misspelt: all of its other keys would only seem wrong, too."""

    model_config = ConfigDict(extra="ignore")
    labeler: Any

    @field_validator("labeler")
    @classmethod
    def _refuse(cls, labeler: Any) -> Any:
        raise ValueError(describe_choice(labeler, LABELERS))


class DrawnSplit(Section):
    """Which share of the rows each part gets, drawn at random.

    The parts are drawn in two steps, as the notebook did that this project replaces: first the
    training rows, then the validation rows out of the others.
    """

    train: Share = Field(
        default=0.7,
        description="The share of the rows that heads are trained on, between 0 and 1. The three "
        "shares must sum to 1.",
    )
    validation: Share = Field(
        default=0.15,
        description="The share of the rows that configurations, thresholds and temperatures are "
        "chosen by, between 0 and 1.",
    )
    test: Annotated[float, Field(ge=0, lt=1, strict=True)] = Field(
        default=0.15,
        description="The share of the rows that only the report looks at, from 0 to below 1. With "
        "0 there is no test part, and the report shows the validation rows instead.",
    )
    seed: Seed = Field(
        default=0, description="The seed of the random draw; the same seed gives the same parts."
    )
    stratify_by: tuple[TaskName, ...] = Field(
        default=(),
        description="The labels whose joint distribution every part keeps. They must hold classes.",
    )
    keep_duplicates_together: StrictBool = Field(
        default=False,
        description="Whether all rows with the same text go to the same part, so that no text of "
        "the test rows has been trained on. Texts that differ only in case, blanks, Unicode form "
        "or invisible characters count as the same.",
    )

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _is_no_list(cls, share: Any) -> Any:
        if isinstance(share, list | tuple | str):
            raise ValueError(
                "must be a number, the share of the rows; values of a column need "
                f"prepare.split.column, which names it, got {share!r:.60}"
            )
        return share

    @model_validator(mode="after")
    def _sum_to_one(self) -> DrawnSplit:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        return self

    @property
    def drawn_shares(self) -> Mapping[str, float]:
        """The parts that are drawn and the share of the rows that each gets; the rest trains."""
        drawn = {"validation": self.validation, "test": self.test}
        return {part: share for part, share in drawn.items() if share}

    def get_columns(self) -> tuple[WantedColumn, ...]:
        """The columns of the source that the split needs."""
        return ()


class GivenSplit(Section):
    """Which part each row is in by a column of the source.

    Parts are lists of values of that column here, where a split without ``column`` has shares of
    the rows. Every value of the column must stand in one of the lists.
    """

    column: Name = Field(
        description="The column whose values name the part of each row. With this key, `train`, "
        "`validation` and `test` are lists of its values."
    )
    train: Annotated[tuple[LabelValue, ...], Field(min_length=1)] = Field(
        default=("train",),
        description="The values of the rows that heads are trained on, such as `[train]`, or "
        "`[0, 1, 2]` of a column of folds.",
    )
    validation: tuple[LabelValue, ...] = Field(
        default=(),
        description="The values of the rows that configurations, thresholds and temperatures are "
        "chosen by. If the list is empty, a share of the training rows is drawn for it.",
    )
    test: tuple[LabelValue, ...] = Field(
        default=("test",),
        description="The values of the rows that only the report looks at. If the list is empty, "
        "there is no test part, and the report shows the validation rows instead.",
    )
    leave_out: tuple[LabelValue, ...] = Field(
        default=(),
        description='The values of rows that are not used at all. `""` is a row without a value.',
    )
    validation_share: Share = Field(
        default=0.15,
        description="The share of the training rows that is drawn for validation, between 0 and "
        "1, if `validation` lists no value.",
    )
    seed: Seed = Field(
        default=0, description="The seed of that draw; the same seed gives the same parts."
    )
    stratify_by: tuple[TaskName, ...] = Field(
        default=(),
        description="The labels whose joint distribution that draw keeps. They must hold classes.",
    )
    keep_duplicates_together: StrictBool = Field(
        default=False,
        description="Whether that draw takes all training rows with the same text, or none of "
        "them. Rows stay in the part that the column gives, whatever their texts.",
    )

    @field_validator("train", "validation", "test", "leave_out", mode="before")
    @classmethod
    def _is_no_share(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            raise ValueError(
                "must be a list of values of prepare.split.column; a share of the rows is for a "
                f"split without that key, got {values!r:.60}"
            )
        return values

    @model_validator(mode="after")
    def _each_value_once(self) -> GivenSplit:
        first: dict[str, str] = {}
        for key in ("train", "validation", "test", "leave_out"):
            for value in getattr(self, key):
                other = first.setdefault(normalize_value(value).strip(), key)
                if other != key:
                    raise NestedKeyError((key,), f"{value!r} stands in {other} too")
        return self

    @property
    def drawn_shares(self) -> Mapping[str, float]:
        """The parts that are drawn from the training rows, and the share of them that each gets."""
        return {} if self.validation else {"validation": self.validation_share}

    def get_columns(self) -> tuple[WantedColumn, ...]:
        """The columns of the source that the split needs."""
        return (WantedColumn(self.column, "prepare.split.column", "class"),)


SplitSettings = DrawnSplit | GivenSplit


# The other columns of the files that labels stand in or are joined with: texts.parquet,
# labels.parquet, the store's shards and what `pipeline cache export` writes.
_RESERVED = re.compile(r"row|split|key|text|n_tokens|layer_\d+", re.ASCII | re.IGNORECASE)


def is_reserved(column: str) -> bool:
    """Whether a label may not be called so, as another column is."""
    return _RESERVED.fullmatch(column) is not None


def _default_labels() -> dict[str, LabelSettings]:
    return {
        "spam": ColumnLabel(column="label", classes=("ham", "spam")),
        "sentiment": VaderLabel(labeler="vader"),
    }


class PrepareSettings(Section):
    """How rows of the source become texts, labels and parts."""

    format: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet"] = Field(
        default="auto",
        description="The format of the dataset's file; `auto` goes by what is known of a dataset "
        "that has a name of its own, and by the ending of the file's name otherwise. Files that "
        "gzip, bzip2, xz or zstd compressed are unpacked, whatever they are called. `json` and "
        "`jsonl` both read an array of objects, and one object a line.",
    )
    encoding: Name = Field(
        default="auto",
        description="The encoding of a CSV, TSV or JSON file, by the name that Python has for it, "
        "such as `cp1252`. `auto` is UTF-8, or UTF-16 or UTF-32 if the file begins with their byte "
        "order mark.",
    )
    delimiter: Literal["auto", "comma", "tab", "semicolon", "pipe"] = Field(
        default="auto",
        description="What stands between two cells of a CSV or TSV file. `auto` is a comma, or a "
        "tab in TSV, unless the first line has but one cell by it and several by another.",
    )
    quoting: Literal["auto", "double", "none"] = Field(
        default="auto",
        description="What double quotes mean in a CSV or TSV file: `double`, that they enclose a "
        "cell that begins with one, as pandas reads them, or `none`, that they are parts of the "
        "texts. `auto` is `double`, but `none` for a TSV file whose every line is a row without "
        "quoting, while with it cells would break or rows be joined; a file that could be either "
        "is refused.",
    )
    escape: Literal["none", "backslash"] = Field(
        default="none",
        description="What a backslash means in a CSV or TSV file: `none`, that it is a part of the "
        "text, or `backslash`, that a quote or backslash after it is one, and without quoting also "
        "a delimiter or line break.",
    )
    header: Annotated[tuple[Name, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="The names of the columns of a CSV or TSV file that has no header line. Null "
        "takes the first line as the header, unless the dataset is known to have none.",
    )
    text_column: Name = Field(
        default="message", description="The column that holds the texts to embed."
    )
    on_bad_rows: Literal["stop", "drop"] = Field(
        default="stop",
        description="What happens if a row has no usable text or label (a text of nothing but "
        "blanks and invisible characters is blank): `stop` names the first "
        "such rows and writes nothing. `drop` leaves out rows without a usable text, and rows "
        "without a usable label for any task; a row with an unusable label for one task lacks that "
        "label alone. It counts both and names the first.",
    )
    missing: tuple[StrictStr | StrictInt | StrictFloat, ...] = Field(
        default=(),
        description="The words that mean that a label is missing, such as `[NA, n/a, None]`, "
        "written just so. An empty or blank cell and a null always mean it, and a text is never "
        "taken for one of these words.",
    )
    labels: dict[TaskName, SerializeAsAny[LabelSettings]] = Field(
        default_factory=_default_labels,
        description="Where the label of each task comes from: name of the task → its labeler and "
        "that labeler's settings. The name becomes a column of `labels.parquet`. An empty mapping, "
        "`{}`, is a corpus without labels: `prepare` and `embed` serve it, and no head is trained.",
    )
    split: SplitSettings = Field(
        default=DrawnSplit(),
        description="How the rows are divided into training, validation and test rows: drawn at "
        "random by shares, or, with `column`, as a column of the source says.",
    )

    @field_validator("split", mode="before")
    @classmethod
    def _choose_split(cls, split: Any) -> Any:
        """Validate the split by the model that it means, so that errors name only its keys."""
        if not isinstance(split, dict):
            return split
        model = GivenSplit if "column" in split else DrawnSplit
        try:
            return model.model_validate(split)
        except ValidationError as error:
            raise SectionError([(None, model, error)]) from error

    @field_validator("missing", mode="before")
    @classmethod
    def _null_is_a_word(cls, missing: Any) -> Any:
        """In YAML the bare word null is no text; whoever lists it means the word."""
        if isinstance(missing, list):
            return ["null" if word is None else word for word in missing]
        return missing

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            if encoding != "auto":
                io.TextIOWrapper(io.BytesIO(), encoding)
        except (LookupError, ValueError) as error:
            raise ValueError(f"must be auto or an encoding of Python's: {error}") from error
        return encoding

    @field_validator("labels", mode="before")
    @classmethod
    def _choose_labeler(cls, labels: Any) -> Any:
        """Validate each label by its own model, so that errors name only that model's keys."""
        if not isinstance(labels, dict):
            return labels
        chosen: dict[Any, LabelSettings] = {}
        errors: list[tuple[Any, type[BaseModel], ValidationError]] = []
        for name, label in labels.items():
            if isinstance(label, LabelSettings):
                chosen[name] = label
                continue
            labeler = label.get("labeler", "column") if isinstance(label, dict) else "column"
            model = LABELERS.get(labeler) if isinstance(labeler, str) else None
            try:
                chosen[name] = (model or _UnknownLabel).model_validate(label)
            except ValidationError as error:
                errors.append((name, model or _UnknownLabel, error))
        if errors:
            raise SectionError(errors)
        return chosen

    @field_validator("labels")
    @classmethod
    def _names_are_free(cls, labels: dict[str, LabelSettings]) -> dict[str, LabelSettings]:
        scores = [score for task, label in labels.items() for score in label.get_scores(task)]
        first: dict[str, str] = {}  # names are compared as databases and some file systems do
        for name in labels:
            other = first.setdefault(name.lower(), name)
            if is_reserved(name) or name.lower() in {score.lower() for score in scores}:
                raise NestedKeyError(
                    (name,),
                    "is the name of another column of labels.parquet or of an exported file; "
                    "choose another",
                )
            if other != name:
                raise NestedKeyError((name,), f"differs from {other} in nothing but case")
        for score, times in Counter(score.lower() for score in scores).items():
            if times > 1 or is_reserved(score):
                raise ValueError(
                    f"two columns of labels.parquet or of an exported file would be called {score}"
                )
        return labels

    @model_validator(mode="after")
    def _stratify_by_known_labels(self) -> PrepareSettings:
        for name in self.split.stratify_by:
            if name not in self.labels:
                raise NestedKeyError(
                    ("split", "stratify_by"),
                    f"no such label in prepare.labels: {name!r}{suggest(name, self.labels)}",
                )
            kind = self.labels[name].get_kind()
            if kind != "class":
                raise NestedKeyError(
                    ("split", "stratify_by"), f"{name} holds {kind}, it must be a class"
                )
        return self

    @model_validator(mode="after")
    def _split_column_is_its_own(self) -> PrepareSettings:
        named = {self.text_column: "prepare.text_column"}
        for task, label in self.labels.items():
            named |= {want.name: want.key for want in label.get_columns(task) or ()}
        for want in self.split.get_columns():
            if want.name in named:
                raise NestedKeyError(
                    ("split", "column"), f"{want.name!r} is the column of {named[want.name]} too"
                )
        return self

    def list_columns(self) -> tuple[tuple[WantedColumn, ...], bool]:
        """The columns of the source that texts, labels and the split need.

        :returns: the columns, and whether a labeler may want others beside them.
        """
        wanted = [
            WantedColumn(self.text_column, "prepare.text_column", "text"),
            *self.split.get_columns(),
        ]
        may_be_any = False
        for task, label in self.labels.items():
            columns = label.get_columns(task)
            may_be_any = may_be_any or columns is None
            wanted += columns or ()
        return tuple(wanted), may_be_any


class EmbedSettings(Section):
    """What a vector is. Every text is embedded again if one of these settings changes."""

    max_tokens: Annotated[int, Field(ge=3, strict=True)] | Literal["auto"] = Field(
        default=128,
        description="The number of tokens at which a text is cut, special tokens counted in; from "
        "3 to what the backbone allows. `auto` is the length that the backbone declares in "
        "`sentence_bert_config.json`, or else the most that it allows.",
    )
    pooling: (
        Literal["auto"] | PoolingName | Annotated[tuple[PoolingName, ...], Field(min_length=1)]
    ) = Field(
        default="auto",
        description="How the vectors of a text's tokens become one: their `mean`, the first "
        "(`cls`) or the `last` token's, the `max` of each number, or the sum divided by the "
        "root of their number (`mean_sqrt_len`). `auto` is what the backbone declares in "
        "`modules.json`, the mean where it has no such file. A list, such as `[mean, cls]`, "
        "stores each in columns of its own and gives heads all of them.",
    )
    prompt: Name = Field(
        default="none",
        description="What stands before each text: `none`, the name of one of the prompts that the "
        "backbone declares in `config_sentence_transformers.json`, such as `query`, or a text of "
        "your own, such as `'query: '`.",
    )
    normalize: Literal[False, "auto"] = Field(
        default=False,
        description="Whether vectors are scaled to length 1. `auto` does so if the backbone "
        "declares it in `modules.json`. Heads standardize their features, so that it seldom "
        "matters to them.",
    )
    long_texts: Literal["cut", "windows"] = Field(
        default="cut",
        description="What becomes of texts of more than `max_tokens`. `cut` cuts off the rest, "
        "which is counted and told. `windows` embeds them whole, in overlapping windows, of which "
        "each token counts once, where it stands most central; it is for backbones that are pooled "
        "by mean, and such a model has no ONNX graph.",
    )
    layers: Layers = Field(
        default="all",
        description="The layers whose pooled output is stored: `all`, `last`, or a list of "
        "numbers, where 0 is the embedding layer and -1 the last layer. All layers cost no more "
        "time to compute than one, only more disk.",
    )
    dtype: Literal["float16", "float32"] = Field(
        default="float16",
        description="The type in which vectors are stored. `float16` takes half the disk of "
        "`float32`, at a cosine similarity to it above 0.999999.",
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="The type in which vectors are computed. `auto` is float16 on a GPU, bfloat16 "
        "on a CPU that multiplies it natively (AVX512-BF16 or AMX), else float32; the type of a "
        "store that is there already stays.",
    )

    @model_validator(mode="after")
    def _poolings_differ(self) -> EmbedSettings:
        if not isinstance(self.pooling, str):
            twice = [name for name, times in Counter(self.pooling).items() if times > 1]
            if twice:
                raise NestedKeyError(("pooling",), f"has {twice[0]} twice")
        return self


class StoreSettings(Section):
    """Where the vectors are kept; it changes none of them."""

    url: Name | None = Field(
        default=None,
        description="A folder in an object store, such as `s3://bucket/folder` or "
        "`gs://bucket/folder`, that holds the vectors and the slices in the place of "
        "`cache/embeddings` and `cache/slices`. The client is the extra `s3` or `gcs`; credentials "
        "come from its environment, never from here. Null keeps them below `cache/`.",
    )
    cache_gb: Annotated[float, Field(ge=0, strict=True)] = Field(
        default=4.0,
        description="The GB that parts of vectors read from there may take in your cache folder, "
        "so that they are read over the network once; what was not read for longest goes. 0 keeps "
        "none.",
    )


Floor = Annotated[float, Field(gt=0, le=1, strict=True)]


class ThresholdAim(Section):
    """What a threshold is chosen for on held-out rows.

    It gives one of ``precision``, ``recall``, or both of ``false_positive`` and
    ``false_negative``.
    """

    precision: Floor | None = Field(
        default=None,
        description="The lowest precision allowed, above 0 and up to 1: the threshold with the "
        "highest recall among those that reach it is chosen.",
    )
    recall: Floor | None = Field(
        default=None,
        description="The lowest recall allowed, above 0 and up to 1: the threshold with the "
        "highest precision among those that reach it is chosen.",
    )
    false_positive: Positive | None = Field(
        default=None,
        description="What one false alarm costs, in any unit: the threshold with the lowest total "
        "cost is chosen.",
    )
    false_negative: Positive | None = Field(
        default=None, description="What one miss costs, in the unit of `false_positive`."
    )

    @model_validator(mode="after")
    def _one_aim(self) -> ThresholdAim:
        given = set(self.model_dump(exclude_none=True))
        if given not in ({"precision"}, {"recall"}, {"false_positive", "false_negative"}):
            raise ValueError("must give precision, or recall, or false_positive and false_negative")
        return self


Threshold = Share | Literal["auto", "f1", "f1_micro"] | ThresholdAim
ClassWeights = (
    Literal["none", "balanced", "effective_number", "pos_weight"] | dict[LabelValue, Positive]
)
Smoothing = Annotated[float, Field(ge=0, lt=1, strict=True)]


_Model = TypeVar("_Model", bound=BaseModel)


def _add_fields(fields: Mapping[str, tuple[Any, Any]]) -> Callable[[type[_Model]], type[_Model]]:
    """Make a model's decorator that adds fields, which the table of losses declares.

    :param fields: name → type, and default or ``Field``.
    """

    def extend(model: type[_Model]) -> type[_Model]:
        definitions: dict[str, Any] = dict(fields)
        return create_model(
            model.__name__,
            __base__=model,
            __module__=model.__module__,
            __doc__=model.__doc__,
            **definitions,
        )

    return extend


@_add_fields(list_options())
class TaskSettings(Section):
    """One head; its classes are those of the label of the same name."""

    type: TaskType | None = Field(
        default=None,
        description="What the head predicts: `binary` (two classes, one logit), `multiclass`, "
        "`ordinal` (classes whose order means something), `multilabel` (tags) or `regression` (a "
        "number). Null goes by the label: `binary` for two classes, `multiclass` for more.",
    )
    loss_weight: NotNegative = Field(
        default=1.0,
        description="The factor of this task's loss in the sum over all tasks, 0 or more. Tasks "
        "share no weights, so it matters only in relation to `heads.weight_decay`.",
    )
    metric: Metric | None = Field(
        default=None,
        description="The score on held-out rows by which a configuration is chosen. Null goes by "
        "the type: `f1` if it is binary, `f1_micro` for tags, `mean_absolute_error` if ordinal, "
        "`root_mean_squared_error` for a regression, else `f1_macro`.",
    )
    loss: LossName | None = Field(
        default=None,
        description=f"The loss to minimize: {describe_losses()}. Null is the first of these that "
        "serves the task's type; beside it, the default search tries `least_squares` where outputs "
        "are many.",
    )
    class_weights: ClassWeights = Field(
        default="none",
        description="The weight of each class in the loss: `none`; `balanced`, n / (C n_c) with "
        "n_c of n training rows in class c of C; `effective_number`, (1 - β) / (1 - β^n_c) with β "
        "of `effective_number_beta`; `pos_weight`, negatives / positives on the positive class; or "
        "a mapping of every class to its weight.",
    )
    effective_number_beta: Annotated[float, Field(gt=0, lt=1, strict=True)] = Field(
        default=0.999,
        description="The β of `class_weights: effective_number`, between 0 and 1. The nearer to 1, "
        "the nearer the weights are to `balanced`; the default is one of those that the method's "
        "authors tried.",
    )
    label_smoothing: Smoothing = Field(
        default=0.0,
        description="The share of each target that is spread evenly over all classes, from 0 to "
        "below 1.",
    )
    logit_adjustment: NotNegative | Literal["auto"] = Field(
        default="auto",
        description="The factor, 0 or more, of the logarithm of the classes' shares that is added "
        "to the logits in training. It favours rare classes; 1 optimizes the balanced error. "
        "`auto` is what the default search tries, and 0 elsewhere.",
    )
    threshold: Threshold = Field(
        default="auto",
        description="The probability from which a row of a binary task, or a tag, is positive: a "
        "number between 0 and 1, or what it is chosen for on held-out rows, which is `f1`, "
        "`f1_micro`, `{precision: 0.99}`, `{recall: 0.95}` or `{false_positive: 5, "
        "false_negative: 1}`. `f1_micro` is one threshold for all tags, and `f1` one for each tag, "
        "drawn towards the common one where few held-out rows have the tag. `auto` is 0.5 for a "
        "binary task, and for tags as `f1`, but drawn more. A tag that no training row has is "
        "never predicted.",
    )


def _offer_values(name: str, kind: Any) -> tuple[Any, Any]:
    """The field of a search for an option of a loss: its type and its ``Field``."""
    values: Any = Values
    description = f"Values to try in place of the task's `{name}`."
    return values[kind] | None, Field(default=None, description=description)


@_add_fields({name: _offer_values(name, kind) for name, (kind, _) in list_options().items()})
class SearchSettings(Section):
    """A grid of configurations: every combination of the values that its lists give.

    A key that is left out keeps what ``heads``, or the task, says; one that is listed takes
    precedence over it, and ``train-heads`` names the settings that thereby do nothing.
    """

    layers: Annotated[tuple[Layers, ...], Field(min_length=1)] | None = Field(
        default=None, description="Choices of layers to try, each as `heads.layers` takes it."
    )
    combine: Values[Literal["join", "mix"]] | None = Field(
        default=None, description="Values of `heads.combine` to try."
    )
    head: Values[Head] | None = Field(default=None, description="Values of `heads.head` to try.")
    bandwidth: Values[Bandwidth] | None = Field(
        default=None, description="Values of `heads.bandwidth` to try, for kernel heads."
    )
    hidden_size: Values[Count] | None = Field(
        default=None,
        description="Values of `heads.hidden_size` to try, for heads with a hidden layer.",
    )
    dropout: Values[Smoothing] | None = Field(
        default=None, description="Values of `heads.dropout` to try."
    )
    optimizer: Values[Optimizer] | None = Field(
        default=None, description="Values of `heads.optimizer` to try."
    )
    learning_rate: Values[Positive] | None = Field(
        default=None, description="Values of `heads.learning_rate` to try, for sgd and adamw."
    )
    weight_decay: Values[NotNegative] | None = Field(
        default=None, description="Values of `heads.weight_decay` to try."
    )
    loss: Values[LossName] | None = Field(
        default=None, description="Losses to try in place of the task's `loss`."
    )
    class_weights: Annotated[tuple[ClassWeights, ...], Field(min_length=1)] | None = Field(
        default=None, description="Class weights to try in place of the task's `class_weights`."
    )
    label_smoothing: Values[Smoothing] | None = Field(
        default=None, description="Values to try in place of the task's `label_smoothing`."
    )
    logit_adjustment: Values[NotNegative] | None = Field(
        default=None, description="Values to try in place of the task's `logit_adjustment`."
    )
    seeds: Values[Seed] | None = Field(
        default=None,
        description="Seeds to train each configuration with. They are not chosen among: their "
        "scores are averaged, and the head of the first seed is kept. `lbfgs` draws nothing at "
        "random and trains one head for all of them.",
    )


# What `auto` tries in the default search: a grid for each form of head, whose weight decay follows
# a path (`heads/path.py`). tests/benchmarks/corpora.py measures it.
DEFAULT_SEARCH: tuple[SearchSettings, ...] = (
    SearchSettings(head=("linear",), logit_adjustment=(0, 0.5)),
    SearchSettings(head=("kernel",), logit_adjustment=(0, 0.5)),
    SearchSettings(head=("linear",), loss=("least_squares",), logit_adjustment=(0, 0.5)),
    SearchSettings(
        head=("kernel",), bandwidth=(2.0,), loss=("least_squares",), logit_adjustment=(0, 0.5)
    ),
)
# What `auto` is outside the default search.
PLAIN_VALUES: Mapping[str, Any] = {
    "head": "linear",
    "weight_decay": 3e-2,
    "logit_adjustment": 0.0,
    "bandwidth": 1.0,
}


class HeadsSettings(Section):
    """How the heads train, and which configurations they choose among."""

    tasks: Annotated[dict[TaskName, TaskSettings], Field(min_length=1)] | None = Field(
        default=None,
        description="The heads: name of a label → settings of its head. Null trains one head with "
        "default settings for every label.",
    )
    layers: Layers = Field(
        default="all",
        description="The stored layers whose vectors are a head's features: `all`, `last`, or a "
        "list of numbers as in `embed.layers`.",
    )
    combine: Literal["join", "mix"] = Field(
        default="join",
        description="How several layers become features: `join` puts their vectors side by side, "
        "`mix` adds them up with weights that each head learns.",
    )
    head: Head | Literal["auto"] = Field(
        default="auto",
        description="The form of a head. `linear` is a linear function of the features. `kernel` "
        "is a linear function of a row's similarity, by a Gaussian kernel, to up to 4,096 training "
        "rows, and is always trained by `lbfgs` on joined "
        "layers. `hidden` has one hidden layer. `auto` is linear and kernel heads in the default "
        "search, kernel ones up to 20,000 training rows, and linear ones elsewhere.",
    )
    bandwidth: Bandwidth = Field(
        default=1.0,
        description="The width of the kernel of a `kernel` head, from 0.1 to 3, as a multiple of "
        "the root mean squared distance between two training rows.",
    )
    hidden_size: Count = Field(
        default=64, description="The number of units in the hidden layer of a `hidden` head."
    )
    dropout: Smoothing = Field(
        default=0.0,
        description="The share of the inputs of each linear layer that a training step leaves out, "
        "from 0 to below 1. `lbfgs` takes none.",
    )
    standardize: StrictBool = Field(
        default=True,
        description="Whether each feature is scaled by the training rows' mean and standard "
        "deviation. The saved weights hold the scaling, so that heads apply to plain vectors.",
    )
    optimizer: Optimizer = Field(
        default="lbfgs",
        description="How weights are found: `lbfgs` takes all rows at once to the optimum, for "
        "linear and kernel heads on joined layers; `adamw` and `sgd` (with Nesterov momentum) go "
        "by batches and train linear and hidden heads.",
    )
    learning_rate: Positive = Field(
        default=1e-3, description="The step size of `adamw` and `sgd`; `lbfgs` does not look at it."
    )
    weight_decay: NotNegative | Literal["auto"] = Field(
        default="auto",
        description="The strength of the penalty on large weights, 0 or more. For `lbfgs` it is "
        "the factor of half the squared weights in the mean loss, scikit-learn's 1 / (C n); for "
        "`adamw` and `sgd` it is torch's parameter of this name. `auto` is found "
        "along a path in the default search, and 0.03 elsewhere.",
    )
    batch_size: Count = Field(
        default=256,
        description="The number of rows in one step of `adamw` and `sgd`; `lbfgs` does not look at "
        "it.",
    )
    max_epochs: Count = Field(
        default=100,
        description="The largest number of passes over the training rows; for `lbfgs`, of its "
        "steps.",
    )
    patience: Count | None = Field(
        default=10,
        description="The number of epochs without a lower validation loss after which `adamw` and "
        "`sgd` stop; null trains all epochs.",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="The epoch whose weights `adamw` and `sgd` keep for each task: the `best` by "
        "validation loss, or the `last`.",
    )
    folds: Annotated[int, Field(ge=2, le=20, strict=True)] | None = Field(
        default=5,
        description="The number of folds, from 2 to 20, by which training rows also judge "
        "configurations: each row is scored by the head of a fold that has not seen it. Null "
        "judges by validation rows alone, which is faster and less certain.",
    )
    calibrate: StrictBool = Field(
        default=True,
        description="Whether a temperature is fitted to the held-out rows, so that probabilities "
        "are as high as the head is often right.",
    )
    refit: Literal["train", "train+validation", "all"] = Field(
        default="train",
        description="The rows that the heads which label new texts are trained on: those of "
        "`train`, as the heads that the report scores, or also the validation rows, or all. With "
        "more rows the chosen configurations are trained again, and temperatures and thresholds "
        "stay as chosen on held-out rows; the report still scores heads that saw only training "
        "rows.",
    )
    layer_scores: StrictBool = Field(
        default=True,
        description="Whether `train-heads` also measures what each layer is worth, for the report: "
        "the score on validation rows of a quick least squares head on the layer alone, and of one "
        "on all layers. It takes about half a second for some thousand rows, and leaves out tasks "
        "of more than 200 classes.",
    )
    seed: Seed = Field(
        default=0,
        description="The seed of start weights, of the order of batches and of the folds.",
    )
    search: tuple[SearchSettings, ...] | Literal["auto"] = Field(
        default="auto",
        description="Grids of configurations; each task takes the configuration with the best "
        "held-out score. `auto`, the default search, tries several values of whatever is `auto` "
        "among `head`, `weight_decay` and each task's `logit_adjustment`, for heads that `lbfgs` "
        "trains; a value that is given holds throughout. An empty list is the one configuration "
        "that the other settings make.",
    )

    @field_validator("search", mode="before")
    @classmethod
    def _take_null_as_auto(cls, search: Any) -> Any:
        return "auto" if search is None else search  # as earlier versions wrote the default search

    @property
    def grids(self) -> tuple[SearchSettings, ...]:
        """The grids that ``search`` comes to; none for a single configuration."""
        if self.search != "auto":
            return self.search
        grids = DEFAULT_SEARCH
        if self.weight_decay != "auto":  # one strength would not suit several losses
            grids = tuple(grid for grid in grids if grid.loss is None)
        if self.bandwidth != PLAIN_VALUES["bandwidth"]:
            grids = tuple(grid.model_copy(update={"bandwidth": None}) for grid in grids)
        if self.head != "auto":
            grids = tuple(grid for grid in grids if grid.head == (self.head,))
        is_full_batch = (self.optimizer, self.combine, self.dropout) == ("lbfgs", "join", 0.0)
        if not is_full_batch and self.head != "kernel":  # kernel heads go by none of the three
            return ()
        fixed: dict[str, Any] = {}
        tasks = (self.tasks or {"any": TaskSettings()}).values()
        if all(task.logit_adjustment != "auto" for task in tasks):
            fixed["logit_adjustment"] = None
        return tuple(grid.model_copy(update=fixed) for grid in grids)

    @property
    def kept(self) -> frozenset[str]:
        """The settings of tasks that the search leaves alone where a task gives them."""
        return frozenset({"logit_adjustment", "loss"} if self.search == "auto" else ())


class GroupSettings(Section):
    """Whether near-duplicates are kept in one part, by their vectors, after ``embed``."""

    split: StrictBool = Field(
        default=False,
        description="Whether parts are drawn anew, as `prepare.split` says, but with all rows of a "
        "group of near-duplicates in the same part, so that none of the test rows is nearly one of "
        "training. With `prepare.split.column` only what that draws is drawn so.",
    )
    threshold: Literal["auto"] | Floor = Field(
        default="auto",
        description="The cosine of their vectors in the last stored layer above which texts are "
        "near-duplicates, above 0 and up to 1; `auto` finds one from the corpus, 0.8 at least.",
    )


class ReportSettings(Section):
    """What the report shows."""

    title: Name = Field(
        default="Heads on a frozen backbone", description="The heading of the report's page."
    )
    texts: Literal["show", "hide"] = Field(
        default="show",
        description="Whether the page and the CSV files beside it hold texts of the corpus. With "
        "`hide` they have the numbers of rows alone, for corpora that must not leave the machine; "
        "names of classes are shown in any case.",
    )
    segments: tuple[Name, ...] = Field(
        default=(),
        description="Columns of the source, such as `[source, language]`, by whose values the "
        "report looks for rows on which heads are weak, beside classes, lengths and clusters. "
        "`prepare` keeps them in `segments.parquet`.",
    )
    map: Literal["pca", "umap"] = Field(
        default="pca",
        description="How texts are placed on the map: by the two directions in which their "
        "vectors vary most, `pca`, which takes no time; or by `umap`, which keeps neighbours "
        "together and takes minutes for 20,000 texts: `pip install umap-learn`.",
    )

    def list_columns(self) -> tuple[WantedColumn, ...]:
        """The columns of the source that the report wants ``prepare`` to keep."""
        return tuple(WantedColumn(name, "report.segments", "class") for name in self.segments)


class RuntimeSettings(Section):
    """What changes the speed, and results by no more than rounding; DVC does not track it."""

    devices: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="auto",
        description="Where to compute: `auto` (all GPUs, else the CPU), `cpu`, `cuda`, `cuda:N`, "
        "`mps`, or a list of these. `embed` shares its texts among them, with a process for each; "
        "`train-heads` takes the first.",
    )
    threads: Count | None = Field(
        default=None,
        description="The number of threads on the CPU; null is one for each core, or a single one "
        "where the work of `train-heads` is too small for more. Another number adds numbers up in "
        "another order: weights of heads differ by a fraction of a percent, and figures by some "
        "millionths, unless a row stands at a threshold; configurations that are about equally "
        "good may change places.",
    )
    token_budget: Annotated[int, Field(ge=16, strict=True)] | None = Field(
        default=None,
        description="The number of tokens in one batch of `embed`, 16 or more; null is what suits "
        "the device.",
    )
    max_memory: Positive | None = Field(
        default=None,
        description="The memory in GB that `train-heads` may take for vectors and what it holds of "
        "each row, and `report` for vectors; larger ones are streamed from the store. Null is half "
        "of the machine's memory.",
    )
    logger: Literal["csv", "tensorboard", "dvclive"] = Field(
        default="csv",
        description="Where the training curves of the chosen heads go, besides `curves.csv`, which "
        "always has them: `tensorboard` and `dvclive` write to `cache/logs` too.",
    )

    @field_validator("devices", mode="before")
    @classmethod
    def _known_devices(cls, devices: Any) -> Any:
        names = devices if isinstance(devices, list) else [devices]
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
                raise ValueError(f"must be auto, cpu, cuda, cuda:N, mps, or a list, got {name!r}")
        if "auto" in names and names is devices:
            raise ValueError("must be auto alone, or name the devices in a list")
        return devices

    def limit_memory(self) -> float:
        """The number of bytes that vectors may take in memory."""
        if self.max_memory is not None:
            return float(self.max_memory * 1e9)
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
        except (ValueError, OSError, AttributeError):  # a system that does not tell its memory
            return 8e9


class Settings(Section):
    """All of ``params.yaml``."""

    fetch: FetchSettings = Field(
        default=FetchSettings(), description="What to get, and from where."
    )
    prepare: PrepareSettings = Field(
        default=PrepareSettings(),
        description="How rows of the source become texts, labels and parts.",
    )
    embed: EmbedSettings = Field(
        default=EmbedSettings(),
        description="What a vector is; every text is embedded again if one of these changes.",
    )
    store: StoreSettings = Field(default=StoreSettings(), description="Where the vectors are kept.")
    group: GroupSettings = Field(
        default=GroupSettings(), description="How near-duplicates are kept in one part."
    )
    heads: HeadsSettings = Field(default=HeadsSettings(), description="How the heads train.")
    report: ReportSettings = Field(default=ReportSettings(), description="What the report shows.")
    runtime: RuntimeSettings = Field(
        default=RuntimeSettings(),
        description="What changes the speed, and results by no more than rounding; DVC does not "
        "track it.",
    )

    @model_validator(mode="after")
    def _tasks_have_labels(self) -> Settings:
        labels = self.prepare.labels
        for name, task in (self.heads.tasks or {}).items():
            if name not in labels:
                raise NestedKeyError(
                    ("heads", "tasks", name),
                    f"no such label in prepare.labels{suggest(name, labels)}",
                )
            classes = labels[name].get_classes()
            kind = labels[name].get_kind()
            if task.type is not None and task.type not in _TYPES_OF[kind]:
                raise NestedKeyError(
                    ("heads", "tasks", name, "type"),
                    f"must be one of {', '.join(_TYPES_OF[kind])} for a label that holds "
                    f"{kind}, got '{task.type}'",
                )
            if classes is not None and isinstance(task.class_weights, dict):
                given = {normalize_value(c) for c in task.class_weights}
                if given != set(classes):
                    raise NestedKeyError(
                        ("heads", "tasks", name, "class_weights"),
                        f"must give a weight for each of {', '.join(classes)}, got "
                        f"{', '.join(sorted(given))}",
                    )
        return self

    @model_validator(mode="after")
    def _labels_agree_on_assets(self) -> Settings:
        first: dict[str, WantedAsset] = {
            "dataset": WantedAsset(self.fetch.name_dataset(), "fetch.dataset"),
            "backbone": WantedAsset(self.fetch.backbones[0], "fetch.backbones"),
        }
        for task, label in self.prepare.labels.items():
            for key, wanted in label.get_assets(task, self.fetch).items():
                other = first.setdefault(key, wanted)
                if other != wanted:
                    raise NestedKeyError(
                        ("prepare", "labels", task),
                        f"wants {wanted.name} as its {key}, which is {other.name} by {other.key}",
                    )
        return self

    def list_assets(self) -> dict[str, WantedAsset]:
        """What the labels want fetched: key in ``assets.json`` → asset."""
        return {
            key: wanted
            for task, label in self.prepare.labels.items()
            for key, wanted in label.get_assets(task, self.fetch).items()
        }


_TYPES_OF: dict[LabelKind, tuple[TaskType, ...]] = {
    "class": ("binary", "multiclass", "ordinal"),
    "tags": ("multilabel",),
    "number": ("regression",),
}


def load_settings(path: Path) -> Settings:
    """Read and validate a settings file.

    :param path: a YAML file (YAML 1.2, as DVC reads it). Sections and keys that it leaves out have
        their defaults.
    :raises SettingsError: listing every problem at once, one a line.
    :raises ReadError: if the file cannot be read.
    """
    name = str(path)
    try:
        content = read_bounded(path, _SETTINGS_BYTES)
    except FileNotFoundError as error:
        raise SettingsError(
            "no such file",
            hint="run in the project, name the file with --params, or write one with "
            "`pipeline params default > params.yaml`",
            source=name,
        ) from error
    except OSError as error:
        raise describe_read_error(error, path, hint="name another file with --params") from error
    except ValueError as error:
        raise SettingsError(
            f"is no settings file: {error}", hint="name another file with --params", source=name
        ) from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"line {line}: byte 0x{content[error.start]:02x} is not UTF-8",
            hint="save the file as UTF-8",
            source=name,
        ) from error
    return parse_settings(text, name)


def parse_settings(text: str, name: str) -> Settings:
    """Validate the text of a settings file.

    :param text: the text of a settings file, YAML 1.2.
    :param name: what the messages call it.
    :raises SettingsError: listing every problem at once, one a line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        if "&" in text:  # otherwise there is no anchor, and nothing can stand for more than it is
            _check_aliases(yaml.parse(text))
        content = yaml.load(text)
    except YAMLError as error:
        line = _find_line(error, text)
        where = f"line {line} " if line else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{where}is not valid YAML: {problem}", source=name) from error
    except RecursionError as error:
        raise SettingsError("is nested too deeply", source=name) from error
    # An impossible date, an endless number, a tag that does not suit its value: ruamel raises
    # whatever its conversion of the value does.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise SettingsError(f"holds a value that YAML cannot read: {error}", source=name) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SettingsError(
            f"must hold sections such as `embed:`, got {content!r:.60}", source=name
        )
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        lines = describe_errors(error, Settings, content)
        raise SettingsError("\n".join(lines), source=name) from None


def _check_aliases(events: Iterable[Any]) -> None:
    """Make sure that a document's aliases do not make it many times as large as it is written.

    An alias (``*name``) stands for all that its anchor (``&name``) marks, which may hold aliases
    itself, so that a few lines can stand for more values than any memory holds.

    :param events: what ruamel's parser finds in the document, in its order.
    :raises ValueError: if the document stands for more than ``_SETTINGS_VALUES`` values.
    """
    sizes: dict[str, int] = {}  # of what each anchor marks, aliases written out
    open_sizes: list[tuple[str | None, int]] = [(None, 0)]  # of what has begun and not ended
    for event in events:
        kind = type(event).__name__
        if kind in {"MappingStartEvent", "SequenceStartEvent"}:
            open_sizes.append((event.anchor, 1))
            continue
        if kind in {"MappingEndEvent", "SequenceEndEvent"}:
            anchor, size = open_sizes.pop()
        elif kind == "ScalarEvent":
            anchor, size = event.anchor, 1
        elif kind == "AliasEvent":
            # An alias inside of what its own anchor marks would have no end.
            is_endless = any(anchor == event.anchor for anchor, _ in open_sizes)
            anchor, size = None, _SETTINGS_VALUES if is_endless else sizes.get(event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, outer_size = open_sizes[-1]
        open_sizes[-1] = outer, outer_size + size
        if outer_size + size > _SETTINGS_VALUES:
            raise ValueError(f"its aliases stand for more than {_SETTINGS_VALUES:,} values")


def _find_line(error: Exception, text: str) -> int | None:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else None
