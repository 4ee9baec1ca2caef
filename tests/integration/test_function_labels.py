"""Labels by a function of the user's own, from the settings to the report."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import FunctionLabel, RuntimeSettings
from pipeline.errors import DataError, SettingsError
from pipeline.prepare.labelers.base import LabelingContext, Labels, make_labeler
from pipeline.project import Project
from tests.conftest import Cli, edit_params, run_stages

TEXTS = [f"{'call now ' * (n % 2)}message number {n}" for n in range(90)]
RULES = """\
import words


def find(texts):
    return ["urgent" if any(w in t for w in words.URGENT) else "calm" for t in texts]
"""


def label(root: Path, function: str, texts: list[str], **settings: object) -> Labels:
    """The labels that a function of a project's folder gives."""
    import pandas as pd

    made = FunctionLabel(labeler="function", function=function, **settings)  # type: ignore[arg-type]
    context = LabelingContext(Project(root), RuntimeSettings())
    return make_labeler("t", made, context).label(pd.DataFrame({"text": texts}), texts, {})


def fail(root: Path, function: str, texts: list[str], **settings: object) -> str:
    """The message and the hint of the error that a function leads to."""
    with pytest.raises((DataError, SettingsError)) as caught:
        label(root, function, texts, **settings)
    return f"{caught.value.message}\n{caught.value.hint}"


@pytest.fixture
def own(project: Path, tiny_backbone: Path) -> Path:
    (project / "data.csv").write_text("message\n" + "\n".join(TEXTS) + "\n")
    (project / "rules.py").write_text(RULES)
    (project / "words.py").write_text("URGENT = ['call now']\n")
    edit_params(
        {
            "fetch.dataset": "data.csv",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.labels": {"mood": {"labeler": "function", "function": "rules:find"}},
            "heads.tasks": {"mood": {"type": "binary"}},
            "heads.search": [],
            "runtime.devices": "cpu",
        }
    )
    return project


def test_it_runs_from_settings_to_report(own: Path, cli: Cli) -> None:
    run_stages(cli, "fetch", "prepare", "embed", "train-heads", "report")
    table = pq.read_table(Project(own).labels_file)
    expected = [int("call now" in text) for text in TEXTS]  # calm 0, urgent 1: sorted
    assert table["mood"].to_pylist() == expected
    about = json.loads(table.schema.metadata[b"identity"])["labels"]["mood"]["settings"]
    assert about["sources"] == {
        name: hashlib.sha256((own / name).read_bytes()).hexdigest()
        for name in ("rules.py", "words.py")
    }
    assert not {"rules", "words"} & set(sys.modules)
    assert str(own) not in sys.path
    assert not (own / "__pycache__").exists()


def test_a_changed_function_is_noticed(own: Path, cli: Cli) -> None:
    run_stages(cli, "fetch", "prepare", "embed", "train-heads")
    (own / "words.py").write_text("URGENT = ['number 1']\n")
    run_stages(cli, "prepare")
    result = cli("report")
    assert result.returncode == 1
    assert "other labels mood (sources" in result.stderr
    run_stages(cli, "train-heads", "report")
    table = pq.read_table(Project(own).labels_file)
    assert table["mood"].to_pylist() == [int("number 1" in text) for text in TEXTS]


def test_dvc_is_pointed_to(own: Path, cli: Cli) -> None:
    (own / "dvc.yaml").write_text("stages: {prepare: {deps: [words.py]}}\n")
    run_stages(cli, "fetch")
    result = cli("prepare")
    assert "changes of rules.py, add it to the `deps` of the stage `prepare`" in result.stdout
    assert "changes of words.py" not in result.stdout


def test_what_a_function_may_return(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nimport pandas as pd\n"
        "def classes(texts): return np.array([len(t) > 1 for t in texts])\n"
        "def numbers(texts): return pd.Series([len(t) / 2 for t in texts])\n"
        "def tags(texts): return [None if t == 'd' else set(t) for t in texts]\n"
        "def lazy(texts): return (pd.NA if t == 'd' else np.int64(len(t)) for t in texts)\n"
    )
    texts = ["ab", "c", "d", "ab"]
    made = label(tmp_path, "mine:classes", texts)
    assert (made.classes, made.values.tolist()) == (("false", "true"), [1, 0, 0, 1])
    made = label(tmp_path, "mine:numbers", texts, kind="number")
    assert made.values.tolist() == [1.0, 0.5, 0.5, 1.0]
    made = label(tmp_path, "mine:tags", texts, kind="tags", optional=True)
    assert made.classes == ("a", "b", "c")
    assert made.values.tolist() == [[1, 1, 0], [0, 0, 1], [-1, -1, -1], [1, 1, 0]]
    made = label(tmp_path, "mine:lazy", texts, mapping={2: "long", 1: "short"})
    assert (made.classes, made.unusable) == (("long", "short"), {2: "no value"})
    given = label(tmp_path, "mine:lazy", texts, classes=[2, 1], optional=True)
    assert (given.classes, given.values.tolist()) == (("2", "1"), [0, 1, -1, 0])


def test_it_is_called_with_each_usable_text_once_and_not_too_many(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def write(texts):\n"
        "    assert type(texts) is list\n"
        f"    with open({str(tmp_path / 'calls.txt')!r}, 'a') as file:\n"
        "        print(len(texts), len(set(texts)), file=file)\n"
        "    return [t[-1] for t in texts]\n"
    )
    texts = ["", *(str(n) for n in range(3000)), "7", ""]
    made = label(tmp_path, "mine:write", texts)
    assert made.unusable == {}  # that rows have no text, others say
    assert made.values[[8, 3001]].tolist() == [7, 7]
    lines = (tmp_path / "calls.txt").read_text().splitlines()
    calls = [tuple(map(int, line.split())) for line in lines]
    assert sum(total for total, _ in calls) == 3000
    assert all(total == distinct <= 1024 for total, distinct in calls)


def test_an_exception_names_the_row_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def find(texts):\n    return list(map(share, texts))\n\n"
        "def share(text):\n    return 1 // text.count('a')\n"
    )
    message = fail(tmp_path, "mine:find", ["a", "aa", "ba", "xyz", "none", "a"])
    assert message == (
        "prepare.labels.t.function: mine:find failed for row 3 (the first is 0), 'xyz': "
        "ZeroDivisionError: integer division or modulo by zero\n"
        "  mine.py, line 2, in find: return list(map(share, texts))\n"
        "  mine.py, line 5, in share: return 1 // text.count('a')\n"
        "correct the function; it may return None for a text without a label"
    )


def test_an_exception_far_below_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import json\n\ndef find(texts):\n    return [t for t in map(json.loads, texts)]\n"
    )
    message = fail(tmp_path, "mine:find", ["1", "2", "{"])
    assert "failed for row 2 (the first is 0), '{': JSONDecodeError: Expecting prop" in message
    assert "\n  mine.py, line 4, in " in message
    assert message.count(", line ") == 3


def test_an_exception_of_several_texts_together(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def find(texts):\n    if len(texts) > 1:\n        raise ValueError('too many')\n"
        "    return texts\n"
    )
    message = fail(tmp_path, "mine:find", ["a", "b", "c", "d"])
    assert "failed for 2 texts together, the first in row 0 (the first is 0), 'a': Val" in message
    assert "ValueError: too many\n  mine.py, line 3, in find: raise ValueError" in message


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return 'abc'", "returned a str for a list of 2 texts"),
        ("return {t: 1 for t in texts}", "returned a dict for a list of 2 texts"),
        ("pass", "returned a NoneType for a list of 2 texts"),
        ("return texts[:1]", "returned 1 label for 2 texts"),
        ("raise SystemExit", "SystemExit\n  mine.py, line 2, in find: raise SystemExit"),
        ("return [[1], {}]", "unusable"),
    ],
)
def test_answers_that_are_no_labels(tmp_path: Path, body: str, found: str) -> None:
    (tmp_path / "mine.py").write_text(f"def find(texts):\n    {body}\n")
    if found == "unusable":
        made = label(tmp_path, "mine:find", ["a", "b"])
        assert made.unusable == {0: "a list, not one value: [1]", 1: "an object, not one value: {}"}
    else:
        assert found in fail(tmp_path, "mine:find", ["a", "b"])


def test_modules_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nothing_like_it\n\ndef find(texts): ...\n")
    (tmp_path / "torn.py").write_text("x = 1\ndef find(:\n")
    (tmp_path / "loud.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "plain.py").write_text("def find(texts): ...\nFOUND = 1\n")
    assert fail(tmp_path, "mien:find", ["a"]) == (
        f"prepare.labels.t.function: there is no module 'mien', neither in {tmp_path} nor among "
        "those that are installed; did you mean `mine`?\n"
        "write mien.py there, or correct the setting"
    )
    assert fail(tmp_path, "mine:find", ["a"]).startswith(
        "prepare.labels.t.function: mine cannot be imported: ModuleNotFoundError: No module named "
        "'nothing_like_it'\n  mine.py, line 1, in <module>: import nothing_like_it"
    )
    assert "SyntaxError: invalid syntax (torn.py, line 2)\n  torn.py, line 2: def find(:" in fail(
        tmp_path, "torn:find", ["a"]
    )
    assert "SystemExit: 3\n  loud.py, line 2, in <module>" in fail(tmp_path, "loud:find", ["a"])
    assert "fnd is not there in" in fail(tmp_path, "plain:fnd", ["a"])
    assert "did you mean `find`?" in fail(tmp_path, "plain:fnd", ["a"])
    assert "FOUND is no function in" in fail(tmp_path, "plain:FOUND", ["a"])


def test_a_project_hides_no_module_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def find(texts): return texts\n")
    (tmp_path / "colorsys.py").write_text("def find(texts): return texts\n")
    message = fail(tmp_path, "colorsys:find", ["a"])
    assert f"it hides {tmp_path / 'colorsys.py'}" in message
    assert message.endswith("\nrename your file")


def test_two_projects_in_one_process(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            "from parts.inner import NAME\n\ndef find(texts): return [NAME for _ in texts]\n"
        )
        (tmp_path / name / "parts").mkdir()
        (tmp_path / name / "parts" / "inner.py").write_text(f"NAME = {name!r}\n")
    for name in ("one", "two"):
        made = label(tmp_path / name, "mine:find", ["a"])
        assert made.classes == (name,)
        assert set(made.sources) == {"mine.py", "parts/inner.py"}


def test_a_function_of_a_library(tmp_path: Path) -> None:
    made = label(tmp_path, "copy:copy", ["one two"])
    assert made.classes == ("one two",)
    assert list(made.sources) == ["copy"]


def test_its_settings_are_checked() -> None:
    from pipeline.config import parse_settings

    with pytest.raises(SettingsError) as caught:
        parse_settings(
            "prepare: {labels: {a: {labeler: function, function: labels.py},"
            " b: {labeler: function, function: 'm:f', kind: number, classes: [a, b]}}}",
            "params.yaml",
        )
    assert caught.value.message == (
        "params.yaml: prepare.labels.a.function: must be module:name, such as labels:is_urgent, "
        "got 'labels.py'\n"
        "params.yaml: prepare.labels.b.classes: a number has none; set kind to class or tags"
    )
