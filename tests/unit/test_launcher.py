"""The console script where a project has a module `pipeline` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline import __version__
from tests.conftest import ROOT


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    """The command of an installed console script: the launcher beside the package, as a wheel lays
    it, named as the script names it."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    module, _, function = content["project"]["scripts"]["pipeline"].partition(":")
    included = content["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    (source,) = [path for path, target in included.items() if target == f"{module}.py"]
    site = tmp_path / "site-packages"
    site.mkdir()
    shutil.copy(ROOT / source, site / f"{module}.py")
    (site / "pipeline").symlink_to(ROOT / "pipeline")
    # As `site` does, the folder of packages comes last, behind PYTHONPATH and the standard library.
    code = f"import sys; sys.path.append({str(site)!r}); from {module} import {function} as run; "
    return [sys.executable, "-P", "-c", code + "sys.exit(run())", "--version"]


@pytest.mark.parametrize("kind", ["file", "package", "none", "folder"])
def test_a_module_that_hides_the_package_is_named(
    kind: str, script: list[str], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    own = project / ("pipeline/__init__.py" if kind == "package" else "pipeline.py")
    if kind in {"file", "package"}:
        own.parent.mkdir(exist_ok=True)
        own.write_text("open('was-run', 'w')\n")
    elif kind == "folder":  # without an `__init__.py` it hides nothing
        (project / "pipeline").mkdir()
    environment = os.environ | {"PYTHONPATH": "."}
    result = subprocess.run(script, cwd=project, env=environment, capture_output=True, text=True)
    assert not (project / "was-run").exists()
    if kind in {"file", "package"}:
        assert result.returncode == 1
        assert result.stderr.startswith(f"Error: {own}: hides the package of this command")
        assert "\n  next: rename it" in result.stderr
        assert "Traceback" not in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == f"pipeline, version {__version__}"
