"""Where the stages meet: the files under ``cache/``, relative to the project's root."""

from pathlib import Path

PARAMS = Path("params.yaml")
CACHE = Path("cache")
ASSETS = CACHE / "assets.json"
TEXTS = CACHE / "texts.parquet"
LABELS = CACHE / "labels.parquet"
EMBEDDINGS = CACHE / "embeddings"
HEADS = CACHE / "heads"
REPORT = CACHE / "report"
TIMINGS = CACHE / "timings"
LAST_EMBED = TIMINGS / "embed-hits.json"
LOCK = CACHE / ".lock"


def user_cache() -> Path:
    """The folder of this user that holds datasets, lexicons and backbones, for all projects.

    The environment variable ``PIPELINE_CACHE_DIR`` moves it.
    """
    import os

    from platformdirs import user_cache_path

    moved = os.environ.get("PIPELINE_CACHE_DIR")
    return Path(moved) if moved else user_cache_path("embedding-pipeline", appauthor=False)
