"""``params.yaml`` → frozen, validated settings.

One section per stage, plus ``runtime`` for what changes only the speed. The defaults of these
models are the ``default`` preset; ``pipeline/presets`` holds it, and the others, as files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.config_errors import NestedError, PlacedError, describe_errors, suggest
from pipeline.errors import SettingsError

Positive = Annotated[float, Field(gt=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Name = Annotated[str, Field(min_length=1, strict=True)]
Optimizer = Literal["sgd", "adamw", "lbfgs"]
Head = Literal["linear", "kernel", "hidden"]
# Narrower, no row is like another; wider, a kernel head is little else than a linear one.
Bandwidth = Annotated[float, Field(ge=0.1, le=3, strict=True)]
Metric = Literal[
    "accuracy", "f1", "f1_macro", "f1_micro", "roc_auc", "loss",
    "mean_absolute_error", "root_mean_squared_error", "r2",
]  # fmt: skip
_Value = TypeVar("_Value")
Values = Annotated[tuple[_Value, ...], Field(min_length=1)]
LabelKind = Literal["class", "tags", "number"]
TaskType = Literal["binary", "multiclass", "multilabel", "ordinal", "regression"]
Loss = Literal["cross_entropy", "focal", "mse", "huber"]
Layers = Literal["all", "last"] | Annotated[tuple[StrictInt, ...], Field(min_length=1)]
# Task names become columns of labels.parquet and prefixes of tensors in heads.safetensors.
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", strict=True)]


def normalize_value(value: object) -> str:
    """A label value as text, the same from YAML, CSV, JSON and Parquet: ``True`` → ``true``, also
    where a CSV file spells it so; ``1.0`` → ``1``."""
    if isinstance(value, bool) or value in ("True", "False", "TRUE", "FALSE"):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FetchSettings(Section):
    """What to get, and from where.

    ``dataset``: ``sms-spam-collection``, or a path or URL to CSV, TSV, JSON Lines or Parquet.
    ``dataset_sha256``: refuse a dataset with any other hash.
    ``lexicon``: ``vader``, or a path to a lexicon file of the same form.
    ``backbones``: hub ids (``id@revision`` to pin) or folders, the first that can be had is used.
    """

    dataset: Name = "sms-spam-collection"
    dataset_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", strict=True)] | None = None
    lexicon: Name = "vader"
    backbones: Annotated[tuple[Name, ...], Field(min_length=1)] = (
        "thenlper/gte-base",
        "sentence-transformers/all-MiniLM-L6-v2",
    )


class ColumnLabel(Section):
    """A label read from a column of the source.

    ``kind``: a row has one ``class``, any number of ``tags``, or a ``number``.
    ``classes`` in the order of their index; without it, the distinct values in sorted order.
    ``mapping``: value in the column → class, for values that are not themselves class names.
    ``separator``: between the tags of a text; a list needs none.
    ``optional``: a row without this label is kept, and counts only for the other tasks.
    """

    labeler: Literal["column", "vader"] = "column"
    column: Name
    kind: LabelKind = "class"
    separator: Name = ","
    optional: StrictBool = False
    classes: (
        Annotated[tuple[StrictStr | StrictInt | StrictBool, ...], Field(min_length=2)] | None
    ) = None
    mapping: dict[StrictStr | StrictInt | StrictBool, StrictStr | StrictInt | StrictBool] | None = (
        None
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if classes is not None and len({normalize_value(c) for c in classes}) < len(classes):
            raise ValueError("must name each class once")
        return classes

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ColumnLabel:
        if self.kind == "number" and self.classes:
            raise PlacedError(("classes",), "a number has none; set kind to class or tags")
        if self.kind != "class" and self.mapping:
            raise PlacedError(("mapping",), f"is for classes, not for {self.kind}")
        return self

    @model_validator(mode="after")
    def _mapping_leads_to_classes(self) -> ColumnLabel:
        if self.mapping and self.classes:
            known = {normalize_value(c) for c in self.classes}
            for value, name in self.mapping.items():
                if normalize_value(name) not in known:
                    raise PlacedError(
                        ("mapping", str(value)),
                        f"must be one of the classes {', '.join(sorted(known))}, got {name!r}",
                    )
        return self


class VaderLabel(Section):
    """A sentiment label from NLTK's VADER: negative 0, neutral 1, positive 2.

    A compound score (-1 to 1) of ``negative_at_most`` or less is negative, of
    ``positive_at_least`` or more positive, anything between neutral.
    """

    labeler: Literal["vader"]
    negative_at_most: Annotated[float, Field(ge=-1, le=1, strict=True)] = -0.05
    positive_at_least: Annotated[float, Field(ge=-1, le=1, strict=True)] = 0.05

    @model_validator(mode="after")
    def _ordered(self) -> VaderLabel:
        if self.negative_at_most >= self.positive_at_least:
            raise ValueError(
                f"negative_at_most must be < positive_at_least, got {self.negative_at_most} and "
                f"{self.positive_at_least}"
            )
        return self


class AnyLabel(BaseModel):
    """What every label has."""

    labeler: Literal["column", "vader"] = "column"


Label = ColumnLabel | VaderLabel
_LABELERS: dict[str, type[Section]] = {"column": ColumnLabel, "vader": VaderLabel}


class SplitSettings(Section):
    """Shares of the rows, drawn at random in two steps as the notebook did.

    ``stratify_by``: labels whose joint distribution every part keeps.
    ``keep_duplicates_together``: identical texts never straddle two parts.
    """

    train: Share = 0.7
    validation: Share = 0.15
    test: Share = 0.15
    seed: Seed = 0
    stratify_by: tuple[TaskName, ...] = ()
    keep_duplicates_together: StrictBool = False

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitSettings:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        return self


def _default_labels() -> dict[str, Label]:
    return {
        "spam": ColumnLabel(column="label", classes=("ham", "spam")),
        "sentiment": VaderLabel(labeler="vader"),
    }


class PrepareSettings(Section):
    """How rows become texts and labels.

    ``format``: ``auto`` goes by the file's name. ``header``: column names of a CSV or TSV file that
    has no header line. ``on_bad_rows``: ``stop``, or ``drop`` and count them.
    """

    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    header: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    text_column: Name = "message"
    on_bad_rows: Literal["stop", "drop"] = "stop"
    labels: dict[TaskName, Label] = Field(default_factory=_default_labels, min_length=1)
    split: SplitSettings = SplitSettings()

    @field_validator("labels", mode="before")
    @classmethod
    def _choose_labeler(cls, labels: Any) -> Any:
        """Validate each label by its own model, so that errors name only that model's keys."""
        if not isinstance(labels, dict):
            return labels
        chosen, errors = {}, []
        for name, label in labels.items():
            labeler = label.get("labeler", "column") if isinstance(label, dict) else "column"
            known = isinstance(labeler, str) and labeler in _LABELERS
            # The keys of a label whose labeler is misspelt would only all seem wrong.
            model = _LABELERS[labeler] if known else AnyLabel
            try:
                chosen[name] = model.model_validate(label)
            except ValidationError as error:
                errors.append((name, model, error))
        if errors:
            raise NestedError(errors)
        return chosen

    @field_validator("labels")
    @classmethod
    def _names_are_free(cls, labels: dict[str, Label]) -> dict[str, Label]:
        scores = {f"{n}_compound" for n, label in labels.items() if isinstance(label, VaderLabel)}
        for name in labels:
            if name in {"row", "split", "key"} | scores:
                raise PlacedError((name,), "is the name of another column of labels.parquet")
        return labels

    @model_validator(mode="after")
    def _stratify_by_known_labels(self) -> PrepareSettings:
        for name in self.split.stratify_by:
            if name not in self.labels:
                raise PlacedError(
                    ("split", "stratify_by"),
                    f"no such label in prepare.labels: {name!r}{suggest(name, self.labels)}",
                )
            label = self.labels[name]
            if isinstance(label, ColumnLabel) and label.kind != "class":
                raise PlacedError(
                    ("split", "stratify_by"), f"{name} holds {label.kind}, it must be a class"
                )
        return self


class EmbedSettings(Section):
    """What a vector is; a change of any of these embeds again.

    ``max_tokens``: longer texts are cut, special tokens counted in.
    ``layers``: ``all``, ``last``, or numbers (0 is the embedding layer, -1 the last layer).
    ``dtype``: how vectors are stored. ``precision``: how they are computed; ``auto`` is float16 on
    a GPU and float32 on a CPU.
    """

    max_tokens: Annotated[int, Field(ge=3, strict=True)] = 128
    layers: Layers = "all"
    dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"


Floor = Annotated[float, Field(gt=0, le=1, strict=True)]


class ThresholdAim(Section):
    """What a threshold is chosen for, on held-out rows.

    ``precision``: the highest recall whose precision is at least this. ``recall``: the highest
    precision whose recall is at least this. ``false_positive`` and ``false_negative``: what a
    false alarm and a miss cost; the lowest total.
    """

    precision: Floor | None = None
    recall: Floor | None = None
    false_positive: Positive | None = None
    false_negative: Positive | None = None

    @model_validator(mode="after")
    def _one_aim(self) -> ThresholdAim:
        given = set(self.model_dump(exclude_none=True))
        if given not in ({"precision"}, {"recall"}, {"false_positive", "false_negative"}):
            raise ValueError("must give precision, or recall, or false_positive and false_negative")
        return self


Threshold = Share | Literal["f1"] | ThresholdAim
ClassWeights = (
    Literal["none", "balanced", "effective_number", "pos_weight"]
    | dict[StrictStr | StrictInt | StrictBool, Positive]
)
Smoothing = Annotated[float, Field(ge=0, lt=1, strict=True)]


class TaskSettings(Section):
    """One head. Its classes are those of the label of the same name.

    ``type``: by the label if left out: ``binary`` of two classes (one logit), ``multiclass`` of
    more, ``multilabel`` of tags, ``regression`` of a number; ``ordinal`` if the order of the
    classes means something.
    ``metric``: what configurations are chosen by; by the type if left out.
    ``loss``: ``cross_entropy`` or ``focal``; of a regression ``mse`` or ``huber``, whose
    ``huber_delta`` is in deviations of the training labels.
    ``class_weights``: ``none``, ``balanced`` (n / (C * n_c) over the training rows),
    ``effective_number`` (by ``effective_number_beta``), ``pos_weight`` (negatives / positives), or
    a weight for each class by name.
    ``logit_adjustment``: times the log of the classes' shares is added to the logits in training.
    ``threshold``: of a binary or multilabel head, in probability; a number, or what to choose it
    for on held-out rows: ``f1``, ``{precision: 0.99}``, ``{recall: 0.95}``,
    ``{false_positive: 5, false_negative: 1}``.
    """

    type: TaskType | None = None
    loss_weight: NotNegative = 1.0
    metric: Metric | None = None
    loss: Loss | None = None
    class_weights: ClassWeights = "none"
    effective_number_beta: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.999
    label_smoothing: Smoothing = 0.0
    focal_gamma: NotNegative = 2.0
    logit_adjustment: NotNegative = 0.0
    huber_delta: Positive = 1.0
    threshold: Threshold = 0.5


class SearchSettings(Section):
    """A grid of configurations: every combination of the values that its lists give.

    A key that is left out keeps what ``heads``, or the task, says. ``seeds`` are no choice: their
    scores are averaged, and the head of the first one is kept; ``lbfgs`` draws nothing at random
    and trains one head for all of them.
    """

    layers: Annotated[tuple[Layers, ...], Field(min_length=1)] | None = None
    combine: Values[Literal["join", "mix"]] | None = None
    head: Values[Head] | None = None
    bandwidth: Values[Bandwidth] | None = None
    hidden_size: Values[Count] | None = None
    dropout: Values[Smoothing] | None = None
    optimizer: Values[Optimizer] | None = None
    learning_rate: Values[Positive] | None = None
    weight_decay: Values[NotNegative] | None = None
    loss: Values[Loss] | None = None
    class_weights: Annotated[tuple[ClassWeights, ...], Field(min_length=1)] | None = None
    label_smoothing: Values[Smoothing] | None = None
    focal_gamma: Values[NotNegative] | None = None
    logit_adjustment: Values[NotNegative] | None = None
    seeds: Values[Seed] | None = None


# Enough for most corpora, and done in seconds; tests/benchmarks/heads.py measures it.
DEFAULT_SEARCH = (
    SearchSettings(weight_decay=(0.01, 0.03, 0.1), logit_adjustment=(0, 0.5)),
    SearchSettings(head=("kernel",), weight_decay=(0.003, 0.01, 0.03), logit_adjustment=(0, 0.5)),
)
_VARIED = {"head", "optimizer", "weight_decay", "logit_adjustment"}


class HeadsSettings(Section):
    """How the heads train.

    ``tasks``: one entry per head, named after its label; every label if left out.
    ``layers``: which of the cached layers make the features: ``all``, ``last``, numbers.
    ``combine``: ``join`` them side by side, or ``mix`` them by weights that each head learns.
    ``head``: ``linear``; ``kernel``, linear in how like a row is to up to 4,096 training rows by a
    Gaussian kernel, ``bandwidth``, 0.1 to 3, times as wide as rows are apart on average: for up to
    20,000 training rows, always by ``lbfgs`` on joined layers; or with one ``hidden`` layer of
    ``hidden_size``.
    ``dropout``: share of the inputs of each linear layer that a step leaves out.
    ``standardize``: scale each feature by the training rows' mean and deviation; folded into the
    saved weights. ``optimizer``: ``sgd`` (with Nesterov momentum), ``adamw``, or ``lbfgs``: all
    rows at once to the optimum, for linear and kernel heads on joined layers; ``weight_decay`` is
    then the factor of half the squared weights in the mean loss, 1 / (C n) of scikit-learn.
    ``max_epochs``: of ``lbfgs``, its steps. ``patience``: stop after so many epochs without a lower
    validation loss; null to train them all. ``keep``: each task's ``best`` epoch by validation
    loss, or the ``last``. ``lbfgs`` looks at neither, nor at ``learning_rate`` and ``batch_size``.
    ``folds``: configurations are judged by validation rows and, in as many folds, by training rows
    that the head of a fold has not seen; null for validation rows alone.
    ``calibrate``: fit a temperature to the held-out rows.
    ``search``: grids of configurations to choose among, for each task its own. Left out, the
    default one, unless something that it varies is given: ``head``, ``optimizer``,
    ``weight_decay``, or a task's ``logit_adjustment``. Empty, the one configuration that the other
    settings make.
    """

    tasks: Annotated[dict[TaskName, TaskSettings], Field(min_length=1)] | None = None
    layers: Layers = "all"
    combine: Literal["join", "mix"] = "join"
    head: Head = "linear"
    bandwidth: Bandwidth = 1.0
    hidden_size: Count = 64
    dropout: Smoothing = 0.0
    standardize: StrictBool = True
    optimizer: Optimizer = "lbfgs"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 3e-2
    batch_size: Count = 256
    max_epochs: Count = 100
    patience: Count | None = 10
    keep: Literal["best", "last"] = "best"
    folds: Annotated[int, Field(ge=2, le=20, strict=True)] | None = 5
    calibrate: StrictBool = True
    seed: Seed = 0
    search: tuple[SearchSettings, ...] | None = None

    @property
    def grids(self) -> tuple[SearchSettings, ...]:
        """What ``search`` comes to."""
        if self.search is not None:
            return self.search
        of_tasks = (task.model_fields_set for task in (self.tasks or {}).values())
        given = self.model_fields_set.union(*of_tasks)
        return () if given & _VARIED else DEFAULT_SEARCH


class ReportSettings(Section):
    """What the report shows. ``title`` heads the page."""

    title: Name = "Heads on a frozen backbone"


class RuntimeSettings(Section):
    """What changes only the speed; DVC does not track it.

    ``devices``: ``auto`` is all GPUs, else the CPU; or one by name, or a list. ``embed`` shares its
    texts among them, a process each; ``train-heads`` takes the first. ``threads``: of the CPU; null
    for all cores. ``token_budget``: tokens in one batch; null for what suits the device.
    ``max_memory``: GB that the vectors of ``train-heads`` may take; beyond that they are streamed
    from the store; null for half of what the machine has. ``logger``: where the curves of the
    chosen heads also go, ``tensorboard`` or ``dvclive``, in ``cache/logs``; they are always in
    ``curves.csv``.
    """

    devices: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = "auto"
    threads: Count | None = None
    token_budget: Annotated[int, Field(ge=16, strict=True)] | None = None
    max_memory: Positive | None = None
    logger: Literal["csv", "tensorboard", "dvclive"] = "csv"

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


class Settings(Section):
    """All of ``params.yaml``."""

    fetch: FetchSettings = FetchSettings()
    prepare: PrepareSettings = PrepareSettings()
    embed: EmbedSettings = EmbedSettings()
    heads: HeadsSettings = HeadsSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @model_validator(mode="after")
    def _tasks_have_labels(self) -> Settings:
        labels = self.prepare.labels
        for name, task in (self.heads.tasks or {}).items():
            if name not in labels:
                raise PlacedError(
                    ("heads", "tasks", name),
                    f"no such label in prepare.labels{suggest(name, labels)}",
                )
            classes = label_classes(labels[name])
            kind = label_kind(labels[name])
            if task.type is not None and task.type not in _TYPES_OF[kind]:
                raise PlacedError(
                    ("heads", "tasks", name, "type"),
                    f"must be one of {', '.join(_TYPES_OF[kind])} for a label that holds "
                    f"{kind}, got '{task.type}'",
                )
            if classes is not None and isinstance(task.class_weights, dict):
                given = {normalize_value(c) for c in task.class_weights}
                if given != set(classes):
                    raise PlacedError(
                        ("heads", "tasks", name, "class_weights"),
                        f"must give a weight for each of {', '.join(classes)}, got "
                        f"{', '.join(sorted(given))}",
                    )
        return self


def label_kind(label: Label) -> LabelKind:
    """What a value of a label is."""
    return label.kind if isinstance(label, ColumnLabel) else "class"


_TYPES_OF: dict[LabelKind, tuple[TaskType, ...]] = {
    "class": ("binary", "multiclass", "ordinal"),
    "tags": ("multilabel",),
    "number": ("regression",),
}


def label_classes(label: Label) -> tuple[str, ...] | None:
    """The class names of a label in the order of their index, if the settings give them."""
    if isinstance(label, VaderLabel):
        return ("negative", "neutral", "positive")
    if label.classes is not None:
        return tuple(normalize_value(c) for c in label.classes)
    return None


def load_settings(path: Path) -> Settings:
    """Read and validate a settings file.

    :param path: a YAML file (YAML 1.2, as DVC reads it). Sections and keys that it leaves out have
        their defaults.
    :raises SettingsError: listing every problem at once, one a line.
    """
    name = str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SettingsError(
            "no such file",
            hint="run in the project, name the file with --params, or write one with "
            "`pipeline params default > params.yaml`",
            source=name,
        ) from error
    except OSError as error:
        raise SettingsError(
            f"cannot be read: {error.strerror}",
            hint="name another file with --params",
            source=name,
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

    :param name: what the messages call it.
    :raises SettingsError: listing every problem at once, one a line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        line = _find_line(error, text)
        where = f"line {line} " if line else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{where}is not valid YAML: {problem}", source=name) from error
    except (ValueError, RecursionError) as error:  # an impossible date, an endless number
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


def _find_line(error: Exception, text: str) -> int | None:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else None
