"""Settings: the presets, and a message for every mistake that names the key and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import (
    LABELERS,
    DrawnSplit,
    HeadsSettings,
    ReportSettings,
    Section,
    Settings,
    TaskSettings,
    load_settings,
    normalize_value,
    parse_settings,
)
from pipeline.errors import ReadError, SettingsError
from pipeline.heads.configurations import list_configurations, list_idle_settings
from pipeline.presets import list_presets, read_preset
from tests.conftest import ROOT, Cli


def complain(text: str) -> list[str]:
    """The lines of the message that a settings file gets."""
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, "params.yaml")
    return caught.value.message.splitlines()


def test_params_yaml_is_the_default_preset() -> None:
    assert (ROOT / "params.yaml").read_bytes() == read_preset("default").encode("utf-8")


@pytest.mark.parametrize("name", list_presets())
def test_presets_leave_nothing_to_guess(name: str) -> None:
    """Every setting stands in the file, so that a reader sees what can be set, and `-S` of DVC,
    which knows only keys that are there, can set it."""
    settings = parse_settings(read_preset(name), name)
    unwritten = {
        field
        for section in type(settings).model_fields
        for field in type(getattr(settings, section)).model_fields
        if field not in getattr(settings, section).model_fields_set
    }
    assert unwritten == set()


def list_tried(**heads: object) -> list[tuple[object, ...]]:
    """Head, optimizer, decay and logit adjustment of each configuration, in their order.

    Those of least squares, which few tasks try, follow the others; they are told by themselves.
    """
    settings = HeadsSettings.model_validate(heads)
    return [
        (c.head, c.optimizer, c.weight_decay, c.loss_changes.get("logit_adjustment"))
        for c in list_configurations(settings, (0, 1))
        if "loss" not in c.loss_changes
    ]


def list_squared(**heads: object) -> list[tuple[object, ...]]:
    """Head, bandwidth and logit adjustment of each configuration of least squares."""
    settings = HeadsSettings.model_validate(heads)
    return [
        (c.head, c.bandwidth, c.loss_changes.get("logit_adjustment"))
        for c in list_configurations(settings, (0, 1))
        if c.loss_changes.get("loss") == "least_squares"
    ]


def test_the_default_search_has_least_squares_unless_a_weight_decay_is_given() -> None:
    every = [(form, width, a) for form, width in (("linear", 1), ("kernel", 2)) for a in (0, 0.5)]
    assert list_squared() == every
    assert list_squared(head="kernel") == every[2:]
    assert list_squared(bandwidth=1.4) == [(form, 1.4, a) for form, _, a in every]
    assert list_squared(weight_decay=5) == list_squared(search=()) == []
    assert list_squared(optimizer="adamw") == []


FORMS = ("linear", "kernel")
# A weight decay of None is found along a path.
DEFAULT = [(form, "lbfgs", None, a) for form in FORMS for a in (0, 0.5)]


def test_the_default_search_tries_what_is_auto() -> None:
    assert list_tried() == DEFAULT
    assert list_tried(search=None) == list_tried(search="auto") == DEFAULT
    assert list_tried(layers="last", tasks={"a": {}}) == DEFAULT
    text = read_preset("default")
    shipped = parse_settings(text, "params.yaml").heads
    assert list_tried(**shipped.model_dump()) == DEFAULT


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"weight_decay": 5}, [(h, "lbfgs", 5, a) for h in FORMS for a in (0, 0.5)]),
        ({"head": "kernel"}, [one for one in DEFAULT if one[0] == "kernel"]),
        ({"head": "linear"}, [one for one in DEFAULT if one[0] == "linear"]),
        (
            {"tasks": {"a": {"logit_adjustment": 1.0}}},
            [(form, "lbfgs", None, None) for form in FORMS],
        ),
        # One of two tasks gives it: the other is still searched.
        ({"tasks": {"a": {"logit_adjustment": 1.0}, "b": {}}}, DEFAULT),
        # The default search is of heads that L-BFGS trains; kernel heads always are.
        ({"optimizer": "adamw"}, [("linear", "adamw", 0.03, None)]),
        ({"optimizer": "sgd", "head": "hidden"}, [("hidden", "sgd", 0.03, None)]),
        ({"optimizer": "adamw", "combine": "mix"}, [("linear", "adamw", 0.03, None)]),
        ({"optimizer": "adamw", "head": "kernel"}, [o for o in DEFAULT if o[0] == "kernel"]),
        ({"search": ()}, [("linear", "lbfgs", 0.03, None)]),
        ({"search": (), "weight_decay": 5, "head": "kernel"}, [("kernel", "lbfgs", 5, None)]),
        # A grid's own list takes precedence; where it has none, what is given holds.
        (
            {"weight_decay": 5, "search": ({"weight_decay": (0.1, 0.2)}, {"head": ("kernel",)})},
            [("linear", "lbfgs", 0.1, None), ("linear", "lbfgs", 0.2, None),
             ("kernel", "lbfgs", 5, None)],
        ),
    ],
)  # fmt: skip
def test_a_setting_that_is_given_takes_effect(
    given: dict[str, object], expected: list[tuple[object, ...]]
) -> None:
    assert list_tried(**given) == expected


def test_a_decay_in_the_place_of_the_shipped_one_takes_effect() -> None:
    text = read_preset("default")
    assert text.count("weight_decay: auto") == 1
    changed = parse_settings(text.replace("weight_decay: auto", "weight_decay: 5"), "a").heads
    found = list_configurations(changed, (0, 1))
    assert {(c.head, c.weight_decay) for c in found} == {("linear", 5), ("kernel", 5)}
    assert list_idle_settings(changed, found) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        ({"head": "auto", "weight_decay": "auto", "bandwidth": 1.0, "hidden_size": 64}, []),
        ({"weight_decay": 5, "search": ({"head": ("linear", "kernel")},)}, []),
        (
            {"weight_decay": 5, "search": ({"weight_decay": (0.1, 0.2)},)},
            ["heads.weight_decay: 5.0 does nothing, since heads.search.0 lists values of its own"],
        ),
        (
            {"head": "linear", "search": ({}, {"head": ("kernel",)})},
            ["heads.head: 'linear' holds in the other grids only, since heads.search.1 lists "
             "values of its own"],
        ),
        (
            {
                "tasks": {"a": {"class_weights": "balanced"}, "b": {}},
                "search": ({"class_weights": ("none",)}, {"class_weights": ("pos_weight",)}),
            },
            ["heads.tasks.a.class_weights: 'balanced' does nothing, since heads.search.0, "
             "heads.search.1 list values of their own"],
        ),
        ({"hidden_size": 128},
         ["heads.hidden_size: 128 does nothing, since no head has a hidden layer"]),
        ({"learning_rate": 0.1, "search": ()},
         ["heads.learning_rate: 0.1 does nothing, since no head is trained by adamw or sgd"]),
        ({"learning_rate": 0.1, "optimizer": "adamw"}, []),
        ({"bandwidth": 0.7, "head": "linear"},
         ["heads.bandwidth: 0.7 does nothing, since no head is a kernel head"]),
        ({"optimizer": "adamw", "head": "kernel"},
         ["heads.optimizer: 'adamw' does nothing, since kernel heads are trained by lbfgs on "
          "joined layers, without dropout"]),
    ],
)  # fmt: skip
def test_a_setting_that_does_nothing_is_named(given: dict[str, object], said: list[str]) -> None:
    settings = HeadsSettings.model_validate(given)
    assert list_idle_settings(settings, list_configurations(settings, (0, 1))) == said


@pytest.mark.parametrize("name", list_presets())
def test_presets_set_nothing_in_vain(name: str) -> None:
    settings = parse_settings(read_preset(name), name).heads
    assert list_idle_settings(settings, list_configurations(settings, (0, 1))) == []


def test_default_preset_is_what_an_empty_file_gives() -> None:
    written, empty = parse_settings(read_preset("default"), "a"), parse_settings("", "b")
    assert empty == Settings()
    # The file spells out a task for each label.
    left_out = {"heads": {"tasks"}}
    assert written.heads.grids == empty.heads.grids
    assert written.model_dump(exclude=left_out) == empty.model_dump(exclude=left_out)
    tasks = written.heads.tasks
    assert tasks is not None
    assert list(tasks) == list(empty.prepare.labels)
    assert [tasks["spam"].type, tasks["sentiment"].type] == ["binary", "multiclass"]
    assert {(t.loss_weight, str(t.class_weights)) for t in tasks.values()} == {(1.0, "none")}


def test_notebook_preset_is_the_notebooks_protocol() -> None:
    settings = parse_settings(read_preset("notebook"), "notebook")
    assert settings.fetch.backbones[0] == "thenlper/gte-base"
    assert settings.fetch.dataset == "sms-spam-collection"
    prepare = settings.prepare.model_dump()
    assert prepare["text_column"] == "message"
    assert prepare["labels"]["spam"]["column"] == "label"
    assert prepare["labels"]["spam"]["classes"] == ("ham", "spam")
    assert prepare["labels"]["sentiment"] == {
        "labeler": "vader",
        "negative_at_most": -0.05,
        "positive_at_least": 0.05,
    }
    assert prepare["split"] == {
        "train": 0.7,
        "validation": 0.15,
        "test": 0.15,
        "seed": 0,
        "stratify_by": (),
        "keep_duplicates_together": False,
    }
    assert settings.embed.model_dump() == {
        "max_tokens": 128,
        "pooling": "mean",
        "prompt": "none",
        "long_texts": "cut",
        "normalize": False,
        "layers": "last",
        "dtype": "float32",
        "precision": "float32",
    }
    heads = settings.heads.model_dump()
    tasks = settings.heads.tasks
    assert tasks == {
        "spam": TaskSettings(type="binary", logit_adjustment=0),
        "sentiment": TaskSettings(type="multiclass", logit_adjustment=0),
    }
    del heads["tasks"]
    del heads["seed"]  # the notebook has none
    assert heads == {
        "layers": "last",
        "combine": "join",
        "head": "linear",
        "bandwidth": 1.0,  # of no head
        "hidden_size": 64,  # nor this
        "dropout": 0.0,
        "standardize": False,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "batch_size": 32,
        "max_epochs": 5,
        "patience": None,
        "keep": "last",
        "folds": None,
        "calibrate": False,
        "layer_scores": False,  # there is but one
        "refit": "train",
        "search": (),
    }


def test_every_problem_is_listed_at_once() -> None:
    text = """
fetch: {backbones: thenlper/gte-base}
prepare:
  on_bad_row: drop
  labels:
    spam: {column: label, clases: [ham, spam]}
    mood: {labeler: vader, negative_at_mots: -0.1, positive_at_least: 2}
  split: {train: 0.8}
embed: {max_tokens: 128.5}
heads: {learning_rate: -0.1, tasks: {spam: {loss_wight: 1}}}
runtimes: {}
"""
    assert complain(text) == [
        "params.yaml: fetch.backbones: must be a list, got 'thenlper/gte-base'",
        "params.yaml: prepare.labels.spam.clases: unknown key; did you mean `classes`?",
        "params.yaml: prepare.labels.mood.positive_at_least: must be <= 1, got 2",
        "params.yaml: prepare.labels.mood.negative_at_mots: unknown key; did you mean "
        "`negative_at_most`?",
        "params.yaml: prepare.split: train + validation + test must be 1, got 1.1",
        "params.yaml: prepare.on_bad_row: unknown key; did you mean `on_bad_rows`?",
        "params.yaml: embed.max_tokens: must be a whole number or auto, got 128.5",
        "params.yaml: heads.tasks.spam.loss_wight: unknown key; did you mean `loss_weight`?",
        "params.yaml: heads.learning_rate: must be > 0, got -0.1",
        "params.yaml: runtimes: unknown key; did you mean `runtime`?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("heads: {learning_rate: -0.1}", "heads.learning_rate: must be > 0, got -0.1"),
        ("heads: {learning_rate: .nan}", "heads.learning_rate: must be a finite number, got nan"),
        ("heads: {learning_rate: .inf}", "heads.learning_rate: must be a finite number, got inf"),
        ("heads: {learning_rate: '0.1'}", "heads.learning_rate: must be a number, got '0.1'"),
        ("heads: {learning_rate: true}", "heads.learning_rate: must be a number, got True"),
        ("heads: {max_epochs: 1.0}", "heads.max_epochs: must be a whole number, got 1.0"),
        ("heads: {max_epochs: null}", "heads.max_epochs: must be a whole number, got null"),
        ("heads: {seed: 4294967296}", "heads.seed: must be < 4294967296, got 4294967296"),
        ("heads: {standardize: no}", "heads.standardize: must be true or false, got 'no'"),
        (
            "heads: {keep: Best}",
            "heads.keep: must be one of best, last (did you mean `best`?), got 'Best'",
        ),
        ("heads: {layers: [a]}", "heads.layers.0: must be a whole number, got 'a'"),
        ("heads: {layers: 3}", "heads.layers: must be one of all, last or a list, got 3"),
        ("heads: {layers: []}", "heads.layers: must be one of all, last or a list of 1 or more"),
        (
            "heads: {search: [{layer: [all]}]}",
            "heads.search.0.layer: unknown key; did you mean `layers`?",
        ),
        ("heads: {search: [{layers: []}]}", "heads.search.0.layers: must be a list of 1 or more"),
        (
            "heads: {tasks: {spam: {threshold: {precision: 0.9, recall: 0.9}}}}",
            "heads.tasks.spam.threshold: must give precision, or recall, or false_positive and",
        ),
        (
            "heads: {tasks: {spam: {type: regression}}}",
            "heads.tasks.spam.type: must be one of binary, multiclass, ordinal for a label that",
        ),
        (
            "prepare: {labels: {s: {column: a, kind: number, classes: [a, b]}}}",
            "prepare.labels.s.classes: a number has none; set kind to class or tags",
        ),
        ("heads:", "heads: must be a mapping of names to values, got null"),
        ("heads: {2: 3}", "heads.2: a key must be text, got 2"),
        ("heads: {tasks: {spm: {}}}", "heads.tasks.spm: no such label in prepare.labels; did you "),
        # A task may be called what a key or a type is called.
        (
            "heads: {tasks: {type: {typ: binary}}}",
            "heads.tasks.type.typ: unknown key; did you mean `type`?",
        ),
        (
            "heads: {tasks: {int: {loss_weight: -1}}}",
            "heads.tasks.int.loss_weight: must be >= 0, got -1",
        ),
        (
            "heads: {tasks: {spam: {class_weights: {ham: 0, spam: 1}}}}",
            "heads.tasks.spam.class_weights.ham: must be > 0, got 0",
        ),
        (
            "heads: {tasks: {spam: {class_weights: {ham: 1}}}}",
            "heads.tasks.spam.class_weights: must give a weight for each of ham, spam, got ham",
        ),
        ("embed: {max_tokens: 2}", "embed.max_tokens: must be >= 3 or auto, got 2"),
        ("fetch: {backbones: []}", "fetch.backbones: must be a list of 1 or more, got []"),
        (
            "fetch: {dataset: ''}",
            "fetch.dataset: must be text that is not empty or a list, got ''",
        ),
        ("runtime: {devices: gpu}", "runtime.devices: must be auto, cpu, cuda, cuda:N, mps, or a "),
        (
            "runtime: {devices: [cpu, 1]}",
            "runtime.devices: must be auto, cpu, cuda, cuda:N, mps, or a ",
        ),
        ("runtime: {devices: [auto, cpu]}", "runtime.devices: must be auto alone, or name the "),
        ("prepare: {split: {test: -0.1}}", "prepare.split.test: must be >= 0, got -0.1"),
        ("prepare: {split: {test: 0}}", "prepare.split: train + validation + test must be 1"),
        ("prepare: {split: 0.7}", "prepare.split: must be a mapping of names to values, got 0.7"),
        (
            "prepare: {split: {train: [train]}}",
            "prepare.split.train: must be a number, the share of the rows; values of a column need "
            "prepare.split.column, which names it, got ['train']",
        ),
        (
            "prepare: {split: {column: part, test: 0}}",
            "prepare.split.test: must be a list of values of prepare.split.column; a share of the "
            "rows is for a split without that key, got 0",
        ),
        (
            "prepare: {split: {column: part, train: []}}",
            "prepare.split.train: must be a list of 1 or more, got []",
        ),
        (
            "prepare: {split: {column: part, test: [dev, 1], validation: ['dev', '1.0']}}",
            "prepare.split.test: 'dev' stands in validation too",
        ),
        (
            "prepare: {split: {column: part, leave_outs: [x]}}",
            "prepare.split.leave_outs: unknown key; did you mean `leave_out`?",
        ),
        (
            "prepare: {split: {leave_out: [x]}}",
            "prepare.split.leave_out: unknown key; known: train, validation, test, seed, "
            "stratify_by, keep_duplicates_together",
        ),
        (
            "prepare: {split: {column: message}}",
            "prepare.split.column: 'message' is the column of prepare.text_column too",
        ),
        (
            "prepare: {split: {column: label}}",
            "prepare.split.column: 'label' is the column of prepare.labels.spam.column too",
        ),
        (
            "prepare: {split: {column: part, stratify_by: [spm]}}",
            "prepare.split.stratify_by: no such label in prepare.labels: 'spm'; did you mean `sp",
        ),
        ("prepare: {split: {train: 1}}", "prepare.split.train: must be < 1, got 1"),
        (
            "prepare: {split: {train: 0.5, validation: 0.2, test: 0.2}}",
            "prepare.split: train + validation + test must be 1, got 0.9",
        ),
        (
            "prepare: {split: {stratify_by: [spm]}}",
            "prepare.split.stratify_by: no such label in prepare.labels: 'spm'; did you mean `sp",
        ),
        ("heads: {tasks: {}}", "heads.tasks: must be a mapping of 1 or more, got {}"),
        ("prepare: {labels: {s: }}", "prepare.labels.s: must be a mapping of names to values, got"),
        ("prepare: {labels: {s: {}}}", "prepare.labels.s.column: is missing"),
        (
            "prepare: {labels: {s: {labeler: vadr, negative_at_most: 0}}}",
            "prepare.labels.s.labeler: must be one of column, vader, function, model (did you mean "
            "`vader`?), got ",
        ),
        (
            "prepare: {labels: {s: {labeler: vader, negative_at_most: 0.5}}}",
            "prepare.labels.s: negative_at_most must be < positive_at_least, got 0.5 and 0.05",
        ),
        (
            "prepare: {labels: {s: {column: a, classes: [x, null]}}}",
            "prepare.labels.s.classes.1: must be text or a whole number or a number or true or "
            "false, got null",
        ),
        (
            "prepare: {labels: {s: {column: a, classes: [x, .nan]}}}",
            "prepare.labels.s.classes.1: must be text or a whole number or a finite number or true "
            "or false, got nan",
        ),
        (
            "prepare: {labels: {s: {column: a, classes: [1.0, 1]}}}",
            "prepare.labels.s.classes: must name each class once",
        ),
        (
            "prepare: {labels: {s: {column: a, mapping: {NA: null, x: y}}}}",
            "prepare.labels.s.mapping.NA: null is no class; if the value means that a label is "
            "missing, name it in prepare.missing",
        ),
        (
            "prepare: {labels: {s: {column: a, mapping: {1: x, '1.0': y}}}}",
            "prepare.labels.s.mapping.1.0: is the same value as 1",
        ),
        (
            "prepare: {labels: {s: {column: a, empty: none}}}",
            "prepare.labels.s.empty: is for tags, not for class",
        ),
        (
            "prepare: {labels: {s: {column: a, kind: tags, empty: skip}}}",
            "prepare.labels.s.empty: must be one of none, missing, got 'skip'",
        ),
        ("prepare: {missing: NA}", "prepare.missing: must be a list, got 'NA'"),
        (
            "prepare: {labels: {Topics: {column: a}, topics: {column: b}}}",
            "prepare.labels.topics: differs from Topics in nothing but case",
        ),
        (
            "prepare: {labels: {mood: {labeler: vader}, Mood_Compound: {column: b}}}",
            "prepare.labels.Mood_Compound: is the name of another column of labels.parquet",
        ),
        (
            f"prepare: {{labels: {{{'x' * 201}: {{column: a}}}}}}",
            f"prepare.labels.{'x' * 201}: must have at most 200 characters, got ",
        ),
        (
            "prepare: {labels: {s: {column: a, classes: [1, '1']}}}",
            "prepare.labels.s.classes: must name each class once",
        ),
        (
            "prepare: {labels: {s: {column: a, classes: [x, y], mapping: {1: z}}}}",
            "prepare.labels.s.mapping.1: must be one of the classes x, y, got 'z'",
        ),
        (
            "prepare: {labels: {split: {column: a}}}",
            "prepare.labels.split: is the name of another column of labels.parquet",
        ),
        ("prepare: {labels: {'a b': {column: a}}}", "prepare.labels.a b: must match "),
    ],
)
def test_one_mistake_gets_one_line(text: str, line: str) -> None:
    (found,) = complain(text)
    assert found.startswith(f"params.yaml: {line}")


def _list_models(model: type[BaseModel], place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield place
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _list_models(inner, (*place, name))


@pytest.mark.parametrize("place", list(_list_models(Settings, ())), ids=".".join)
def test_a_misspelt_key_is_met_with_the_nearest_at_every_depth(place: tuple[str, ...]) -> None:
    model: type[BaseModel] = Settings
    for part in place:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    for name in model.model_fields:
        content = f"{{{name}_: 1}}"
        for part in reversed(place):
            content = f"{{{part}: {content}}}"
        assert complain(content) == [
            f"params.yaml: {'.'.join((*place, name))}_: unknown key; did you mean `{name}`?"
        ]


def test_a_key_like_no_other_is_met_with_all() -> None:
    known = ", ".join(ReportSettings.model_fields)
    assert complain("report: {qqq: 1}") == [f"params.yaml: report.qqq: unknown key; known: {known}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("heads:\n  seed: 1\n  seed: 2\n", 'line 3 is not valid YAML: found duplicate key "seed"'),
        ("heads: [", "line 1 is not valid YAML: "),
        ("heads:\n\tseed: 1", "line 2 is not valid YAML: "),
        ("a: 1\nb: *c\n", "line 2 is not valid YAML: found undefined alias"),
        ("# one\na: \x00\n", "line 2 is not valid YAML: unacceptable character"),
        ("!!python/object/apply:os.system [ls]", "line 1 is not valid YAML: could not determine"),
        ("--- {}\n--- {}\n", "line 2 is not valid YAML: "),
        ("heads: {seed: 2020-99-99}", "holds a value that YAML cannot read: month must be"),
        (f"heads: {{seed: {'9' * 5000}}}", "holds a value that YAML cannot read: "),
        ("[" * 1000, "is nested too deeply"),
        ("- " * 1000 + "a", "is nested too deeply"),
        ("a: &a [*a]", "holds a value that YAML cannot read: its aliases stand for more than"),
        ("a: &a {b: {c: *a}}", "holds a value that YAML cannot read: its aliases stand for more"),
        ("a: &a [1]\nb: *c\n", "line 2 is not valid YAML: found undefined alias"),
        ("heads: {seed: !!bool x}", "holds a value that YAML cannot read: "),
        ("heads: {seed: !!int ''}", "holds a value that YAML cannot read: "),
        ("- a", "must hold sections such as `embed:`, got ['a']"),
        ("words", "must hold sections such as `embed:`, got 'words'"),
    ],
)
def test_what_is_not_settings_in_yaml_is_refused(text: str, problem: str) -> None:
    (line,) = complain(text)
    assert (
        line.replace("params.yaml: line", "line").removeprefix("params.yaml: ").startswith(problem)
    )


@pytest.mark.parametrize(
    ("first", "level"),
    [("[x, y]", "[{}]"), ("{x: 1, y: 2}", "{{<<: [{}]}}")],
    ids=["list", "merge"],
)
def test_a_bomb_of_aliases_is_refused_before_it_is_built(first: str, level: str) -> None:
    """Nine levels of nine aliases each: 350 bytes that stand for 800 million values."""
    lines = [f"a0: &a0 {first}"]
    for number in range(1, 10):
        aliases = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {level.format(aliases)}")
    (line,) = complain("\n".join(lines))
    assert line == (
        "params.yaml: holds a value that YAML cannot read: its aliases stand for more than "
        "100,000 values"
    )


def test_aliases_of_a_usual_number_are_read() -> None:
    settings = parse_settings(
        "heads: {tasks: {spam: &task {loss_weight: 2.0}, sentiment: *task}}", "params.yaml"
    )
    assert settings.heads.tasks["spam"].loss_weight == 2.0
    assert settings.heads.tasks["sentiment"].loss_weight == 2.0
    merged = "heads: {tasks: {spam: &task {loss_weight: 2.0}, sentiment: {<<: *task}}}"
    assert parse_settings(merged, "params.yaml").heads == settings.heads


@pytest.mark.parametrize("name", ["large", "endless"])
def test_what_is_too_large_for_settings_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    if name == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte that takes no space
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SettingsError, match=r"is no settings file: .* bytes, where 1,000,000"):
        load_settings(path)


def test_yaml_is_read_as_dvc_reads_it() -> None:
    """YAML 1.2: an exponent needs no point, and ``no`` and ``on`` are words."""
    settings = parse_settings(
        "heads: {learning_rate: 1e-4}\n"
        "prepare: {labels: {answer: {column: a, classes: [no, on]}}}\n",
        "params.yaml",
    )
    assert settings.heads.learning_rate == 0.0001
    assert settings.prepare.labels["answer"].model_dump()["classes"] == ("no", "on")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbfheads:\r\n  seed: 7\r\n")
    assert load_settings(path).heads.seed == 7


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(SettingsError, match=r"params\.yaml: no such file") as caught:
        load_settings(path)
    assert "pipeline params default > params.yaml" in (caught.value.hint or "")
    with pytest.raises(ReadError) as unreadable:
        load_settings(tmp_path)
    assert unreadable.value.message == f"cannot read {tmp_path}: Is a directory"
    assert "--params" in str(unreadable.value.hint)
    path.write_bytes(b"heads:\n  seed: 1\nreport:\n  title: caf\xe9\n")
    with pytest.raises(SettingsError, match=r"params\.yaml: line 4: byte 0xe9 is not UTF-8"):
        load_settings(path)


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.heads.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.heads = settings.heads


def test_shares_may_miss_one_by_rounding_only() -> None:
    assert DrawnSplit(train=1 / 3, validation=1 / 3, test=1 / 3).test == 1 / 3
    assert DrawnSplit(train=0.6, validation=0.3, test=0.1).train == 0.6
    with pytest.raises(ValidationError, match="must be 1"):
        DrawnSplit(train=0.7, validation=0.15, test=0.1501)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("True", "true"),
        ("FALSE", "false"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (1.5, "1.5"),
        ("1.0", "1"),
        ("-3.00", "-3"),
        ("-0.0", "0"),
        ("1.50", "1.50"),
        ("1.0.0", "1.0.0"),
        ("01", "01"),
        (Decimal("2.00"), "2"),
        ("Ham ", "Ham "),
        (1e300, str(int(1e300))),
    ],
)
def test_a_label_value_is_the_same_text_from_every_format(value: object, text: str) -> None:
    assert normalize_value(value) == text


@pytest.mark.parametrize("name", ["row", "split", "key", "text", "Text", "layer_06", "LAYER_1"])
def test_a_label_is_not_called_like_another_column_of_an_output(name: str) -> None:
    (line,) = complain(f"prepare: {{labels: {{{name}: {{column: a}}}}}}")
    assert f": prepare.labels.{name}: is the name of another column of labels.parquet or " in line
    assert line.endswith("; choose another")
    fine = f"prepare: {{labels: {{{name}s: {{column: a}}, layer_x: {{column: b}}}}}}"
    assert f"{name}s" in parse_settings(fine, "a").prepare.labels


def test_floats_name_classes_and_lead_to_them() -> None:
    settings = parse_settings(
        "prepare: {labels: {s: {column: a, classes: [0.0, 1.0, 1.5], mapping: {2.0: 1.0}}}}\n"
        "heads: {tasks: {s: {class_weights: {0.0: 1, 1: 2, 1.5: 3}}}}\n",
        "a",
    )
    assert settings.prepare.labels["s"].get_classes() == ("0", "1", "1.5")


def test_words_for_missing_may_be_numbers_and_the_word_null() -> None:
    settings = parse_settings("prepare: {missing: [NA, None, null, n/a, -1, 9.5]}", "a")
    assert settings.prepare.missing == ("NA", "None", "null", "n/a", -1, 9.5)


@pytest.mark.parametrize("stage", ["fetch", "prepare", "embed", "train-heads", "report"])
def test_every_stage_takes_the_settings_file_by_name(cli: Cli, project: Path, stage: str) -> None:
    (project / "mine.yaml").write_text("heads: {learning_rate: -0.1}\n")
    result = cli(stage, "--params", "mine.yaml")
    assert result.returncode == 1
    assert result.stderr == "Error: mine.yaml: heads.learning_rate: must be > 0, got -0.1\n"
    assert not (project / "cache").exists()


@pytest.mark.parametrize(
    "model", [*Section.__subclasses__(), *LABELERS.values()], ids=lambda model: model.__name__
)
def test_every_setting_is_described_in_full_sentences(model: type[BaseModel]) -> None:
    """The settings reference is made of these descriptions."""
    for name, field in model.model_fields.items():
        description = field.description or ""
        assert re.fullmatch(r"[A-Z].*\.", description), f"{model.__name__}.{name}: {description}"
