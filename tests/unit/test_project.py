"""Where the files of a project and of a user stand, also where nothing tells the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.project import user_cache
from tests.conftest import ROOT

VARIABLE = "PIPELINE_CACHE_DIR"


def test_a_tilde_in_the_variable_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in (("~/assets", tmp_path / "assets"), ("~", tmp_path)):
        monkeypatch.setenv(VARIABLE, given)
        assert user_cache() == expected
    for given in ("/data/~x", "/data/a b"):
        monkeypatch.setenv(VARIABLE, given)
        assert user_cache() == Path(given)


def test_a_relative_folder_is_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "assets")
    assert user_cache() == tmp_path / "assets"


@pytest.mark.parametrize("given", ["~nobody-of-this-name/assets", "~nobody-of-this-name"])
def test_the_home_folder_of_nobody(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(SettingsError, match=f"{VARIABLE}: {given}: no home folder of that name"):
        user_cache()


def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    usual = user_cache()
    monkeypatch.setenv(VARIABLE, "")
    assert user_cache() == usual
    assert usual.is_absolute()


@pytest.mark.parametrize("given", [None, "~/assets"])
def test_no_home_folder(tmp_path: Path, given: str | None) -> None:
    """As in a container whose user has no entry in the list of users."""
    without = {"HOME", "XDG_CACHE_HOME", VARIABLE}
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= {"PYTHONPATH": str(ROOT)} | ({VARIABLE: given} if given else {})
    code = (
        "import pwd, sys\n"
        "def unknown(number): raise KeyError(number)\n"
        "pwd.getpwuid = unknown\n"
        "from pipeline.cli import main\n"
        "sys.argv = ['pipeline', 'fetch']\n"
        "main()\n"
    )
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith(f"Error: environment: {VARIABLE}: ")
    assert "no home folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "~").exists()
