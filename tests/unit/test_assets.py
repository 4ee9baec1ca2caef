"""The registry of assets, and what `cache/assets.json` may hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets import Asset, check_files, read_assets, write_assets
from pipeline.errors import ReadError, StageError
from pipeline.fetch import catalog
from pipeline.fetch.catalog import HubSource, WheelSource
from pipeline.project import Project

SOURCES = [
    source
    for sources in (
        *catalog.DATASETS.values(),
        *(sources for known in catalog.LABEL_ASSETS.values() for sources in known.values()),
        *(catalog.list_backbone_sources(name) for name in catalog.BACKBONES),
    )
    for source in sources
]


def test_registry_pins_what_is_not_from_the_hub() -> None:
    for source in SOURCES:
        assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in source.sha256.values())
        if isinstance(source, HubSource):
            assert source.revision is None or re.fullmatch("[0-9a-f]{40}", source.revision)
        else:
            assert source.sha256, f"{source} is not pinned"
        if isinstance(source, WheelSource):
            assert all("==" in requirement for requirement in source.requirements)
            assert list(source.requirements) == sorted(source.requirements)
            assert set(source.sha256) <= set(source.files)


def test_backbones_come_without_code_or_pickles() -> None:
    for source in SOURCES:
        if isinstance(source, HubSource) and source.kind == "model":
            assert all(p.endswith((".json", ".safetensors")) for p in source.patterns)
        if isinstance(source, WheelSource) and "model.safetensors" in source.files:
            assert all(f.endswith((".json", ".safetensors")) for f in source.files)


def test_revision_that_the_user_names_is_on_the_hub_only() -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    pinned, wheel = catalog.list_backbone_sources(name)
    assert isinstance(wheel, WheelSource)
    (named,) = catalog.list_backbone_sources(f"{name}@main")
    assert isinstance(pinned, HubSource)
    assert isinstance(named, HubSource)
    assert (named.repo, named.revision) == (name, "main")
    assert pinned.revision != named.revision
    (unknown,) = catalog.list_backbone_sources("acme/tiny")
    assert isinstance(unknown, HubSource)
    assert unknown.revision is None


@pytest.fixture
def kept(private_cache: Path) -> Asset:
    import hashlib

    folder = private_cache / "datasets/corpus"
    folder.mkdir(parents=True)
    (folder / "corpus.csv").write_bytes(b"text\nhello\n")
    return Asset(
        id="corpus",
        source="hub: datasets/acme/corpus@main",
        files={"corpus.csv": hashlib.sha256(b"text\nhello\n").hexdigest()},
        folder="datasets/corpus",
        extra={"format": "csv", "header": None},
    )


def test_record_round_trip(kept: Asset, private_cache: Path) -> None:
    record = json.loads(json.dumps(kept.to_record()))
    assert Asset.from_record(record) == kept
    assert str(private_cache) not in json.dumps(record), "the same on every machine"
    local = Asset(id="a.csv", source="local file", files={"a.csv": "0" * 64}, path="./a.csv")
    assert Asset.from_record(json.loads(json.dumps(local.to_record()))) == local
    both = Asset(id="corpus, a.csv", source="hub, local file", files={}, members=(kept, local))
    assert Asset.from_record(json.loads(json.dumps(both.to_record()))) == both
    assert both.list_members() == (kept, local)
    assert local.list_members() == (local,)


def test_a_folder_is_told_from_a_file_of_the_same_name(tmp_path: Path) -> None:
    files = {"a.csv": "0" * 64}
    for path, folder in (("data/a.csv", "data"), ("data/a.csv/", "data/a.csv"), ("./", "")):
        asset = Asset(id=path, source="local files", files=files, path=path)
        assert asset.locate(Project(tmp_path)) == tmp_path / folder


def test_check_files(kept: Asset, private_cache: Path) -> None:
    folder = private_cache / "datasets/corpus"
    check_files(kept, "dataset", folder)
    (folder / "corpus.csv").write_bytes(b"text\nHello\n")
    with pytest.raises(StageError, match=r"dataset corpus: .* has changed") as caught:
        check_files(kept, "dataset", folder)
    assert "pipeline fetch" in str(caught.value.hint)
    (folder / "corpus.csv").unlink()
    with pytest.raises(StageError, match="is not there any more"):
        check_files(kept, "dataset", folder)
    (folder / "corpus.csv").symlink_to("/proc/self/mem")  # which not even root can read
    with pytest.raises(ReadError) as unreadable:
        check_files(kept, "dataset", folder)
    assert unreadable.value.message == f"cannot read {folder}/corpus.csv: Input/output error"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '"text"', '{"dataset": []}', '{"dataset": {"id": "a"}}', "files", "null"],
)
def test_damaged_record_of_a_project(
    content: str, kept: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Project().cache.mkdir()
    if content == "files":
        record = kept.to_record() | {"files": ["corpus.csv"]}
        content = json.dumps(dict.fromkeys(("dataset", "backbone"), record))
    Project().assets.write_text(content)
    with pytest.raises(StageError, match=r"cache/assets\.json: ") as caught:
        read_assets(Project().assets)
    assert caught.value.hint == "run `pipeline fetch` again"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["backbone"].update(id="acme/other"),
        lambda record: record["dataset"]["files"].update({"corpus.csv": "0" * 64}),
        lambda record: record.pop("lexicon"),
        lambda record: record.update(sha256="0" * 64),
        lambda record: record.update(sha257=record.pop("sha256")),
    ],
)
def test_a_changed_record_of_a_project(
    change: Callable[[dict[str, Any]], object], kept: Asset, tmp_path: Path
) -> None:
    path = tmp_path / "cache" / "assets.json"
    assets = dict.fromkeys(("dataset", "lexicon", "backbone"), kept)
    write_assets(path, assets)
    assert read_assets(path) == assets
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(StageError, match=f"^{path}: damaged") as caught:
        read_assets(path)
    assert caught.value.hint == "run `pipeline fetch` again"


def test_a_record_of_an_earlier_version_is_read(kept: Asset, tmp_path: Path) -> None:
    """It states no hash."""
    path = tmp_path / "assets.json"
    assets = dict.fromkeys(("dataset", "backbone"), kept)
    path.write_text(json.dumps({key: asset.to_record() for key, asset in assets.items()}))
    assert read_assets(path) == assets
