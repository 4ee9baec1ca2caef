"""The files of a project beside its settings: the flow for DVC, what git and DVC leave out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pipeline.corpus.classes import quote_yaml
from pipeline.files import describe_read_error

DvcState = Literal["there", "made", "made without git", "missing", "failed"]
FLOW_FILE = "dvc.yaml"
_TEMPLATES = Path(__file__).parent / "templates"
_DVC_FOLDER = ".dvc"
# What DVC's own folder needs: the template of curves for its plots, and what git leaves out of it,
# which `dvc init --no-scm` does not write. File below the folder → template.
_DVC_FILES = {"plots/curves.json": "curves.json", ".gitignore": "dvc-gitignore"}
# The lines of the template that stand where the data file goes.
_DEPS_START = "    # Add your own data file here"
_DEPS_END = "    # deps: [data.csv]\n"
_FIRST_HEAD_STAGE = "\n  group:"


def make_flow(data: Sequence[str], *, has_tasks: bool) -> str:
    """The text of ``dvc.yaml``.

    :param data: the files and folders of the data, relative to the project or absolute; none if DVC
        cannot watch what the dataset is.
    :param has_tasks: whether there are heads; otherwise the flow ends with ``embed``.
    """
    text = _read_template(FLOW_FILE)
    if data:
        before, _, rest = text.partition(_DEPS_START)
        after = rest.partition(_DEPS_END)[2]
        text = f"{before}    deps: [{', '.join(map(quote_yaml, data))}]\n{after}"
    return text if has_tasks else text.partition(_FIRST_HEAD_STAGE)[0]


def add_head_stages(flow: str) -> str | None:
    """A flow that ends with ``embed``, with the stages behind it and their plots.

    :param flow: the text of ``dvc.yaml``.
    :returns: the text; ``None`` if the flow has these stages, or is not one that ``init`` wrote.
    """
    before, mark, rest = _read_template(FLOW_FILE).partition(_FIRST_HEAD_STAGE)
    is_ours = flow.rstrip().endswith(before.rstrip().splitlines()[-1])
    return f"{flow.rstrip()}\n{mark}{rest}" if is_ours else None


def list_ignore_files(root: Path) -> dict[Path, str]:
    """``.gitignore`` and ``.dvcignore`` as they are to be: what is there, and lines that lack.

    :param root: the project's folder.
    :returns: file → its text, for those that change.
    """
    changed = {}
    for name in ("gitignore", "dvcignore"):
        path = root / f".{name}"
        text, wanted = _read_text(path), _read_template(name)
        missing = [line for line in wanted.splitlines() if line not in text.splitlines()]
        patterns = [line for line in missing if not line.startswith("#")]
        if patterns:
            end = "\n" if text and not text.endswith("\n") else ""
            changed[path] = text + end + "".join(f"{line}\n" for line in missing)
    return changed


def list_dvc_files(root: Path) -> dict[Path, str]:
    """The files that DVC's folder is to hold and lacks, if there is such a folder.

    :param root: the project's folder.
    :returns: file → its text.
    """
    folder = find_dvc_folder(root)
    if folder is None:
        return {}
    return {
        folder / name: _read_template(template)
        for name, template in _DVC_FILES.items()
        if not (folder / name).exists()
    }


def find_dvc_folder(root: Path) -> Path | None:
    """The folder ``.dvc`` of the repository that a project is in; ``None`` if it is in none."""
    git = find_git_root(root)
    for folder in (root, *root.parents):
        if (folder / _DVC_FOLDER).is_dir():
            return folder / _DVC_FOLDER
        if folder == git:
            return None
    return None


def find_git_root(root: Path) -> Path | None:
    """The folder of the git repository that a project is in; ``None`` if it is in none."""
    return next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)


def find_dvc() -> list[str] | None:
    """The command that runs DVC; ``None`` if it is not installed."""
    if importlib.util.find_spec("dvc") is not None:
        return [sys.executable, "-P", "-m", "dvc"]
    program = shutil.which("dvc")
    return [program] if program else None


def start_dvc(root: Path) -> tuple[DvcState, str]:
    """Make the project's folder one of DVC, unless it is in one.

    :param root: the project's folder.
    :returns: what came of it, and what DVC says where it failed.
    """
    if find_dvc_folder(root) is not None:
        return "there", ""
    dvc, git = find_dvc(), find_git_root(root)
    if dvc is None:
        return "missing", ""
    result = subprocess.run(
        [*dvc, "init", "--quiet", *list_dvc_options(root)],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "DVC_NO_ANALYTICS": "true"},
        check=False,
    )
    if result.returncode != 0:
        return "failed", result.stderr.strip()
    return ("made" if git else "made without git"), ""


def list_dvc_options(root: Path) -> Sequence[str]:
    """The options of ``dvc init`` for a folder: it asks to be told of git."""
    git = find_git_root(root)
    if git is None:
        return ("--no-scm",)
    return () if git == root else ("--subdir",)


def name_data(root: Path, data: Path) -> str:
    """A data file as the settings name it: relative to the project if it lies below, else absolute.

    :param root: the project's folder, absolute.
    :param data: the file.
    """
    absolute = Path(os.path.abspath(data))  # noqa: PTH100 - a link to the file stays a link
    for folder in (root, root.resolve()):
        if absolute.is_relative_to(folder):
            return absolute.relative_to(folder).as_posix()
    in_place = data.parent.resolve() / data.name
    if in_place.is_relative_to(root.resolve()):
        return in_place.relative_to(root.resolve()).as_posix()
    return str(absolute)


def encode_files(files: Mapping[Path, str]) -> dict[Path, bytes]:
    """Files to write at once: path → UTF-8."""
    return {path: text.encode("utf-8") for path, text in files.items()}


def _read_template(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8")


def _read_text(path: Path) -> str:
    """The text of a file; nothing if it is not there."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise describe_read_error(
            error if isinstance(error, OSError) else OSError(str(error)), path
        ) from error
