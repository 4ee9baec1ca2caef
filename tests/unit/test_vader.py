"""VADER is paid once: what is scored, by whom, and what a run remembers of the runs before."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from nltk.sentiment.vader import VaderConstants

from pipeline.config import RuntimeSettings
from pipeline.errors import DeviceError, ReadError, WriteError
from pipeline.prepare.labelers import scoring, sentiment, vader
from pipeline.prepare.labelers.base import LabelingContext
from pipeline.prepare.labelers.scoring import score_texts
from pipeline.prepare.labelers.sentiment import VaderScorer
from pipeline.prepare.labelers.vader import score_by_vader
from pipeline.project import Project
from tests.conftest import ROOT, Cli, edit_params, run_stages
from tests.nltk_vader import make_reference

LEXICON = "good\t1.9\t0.5\t[2]\nbad\t-2.5\t0.5\t[-2]\nawful\t-2.0\t0.5\t[-2]"
VALENCES = {"good": 1.9, "bad": -2.5, "awful": -2.0}
TEXTS = [f"{feeling} message {n}" for n in range(40) for feeling in ("good", "not bad", "a")]


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    path = tmp_path / "lexicon.txt"
    path.write_text(LEXICON)
    return path


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were scored, in their order, and not remembered."""
    texts: list[str] = []

    def record(given: Sequence[str], *arguments: Any, **options: Any) -> array[float]:
        texts.extend(given)
        return score_texts(given, *arguments, **options)

    monkeypatch.setattr(vader, "score_texts", record)
    return texts


@pytest.fixture
def context(tmp_path: Path) -> LabelingContext:
    return LabelingContext(Project(tmp_path), RuntimeSettings())


def list_files(context: LabelingContext) -> list[Path]:
    return sorted(context.project.scores.iterdir())


def test_the_words_and_numbers_of_the_rules_are_nltks() -> None:
    constants = VaderConstants()
    assert sentiment.NEGATIONS == constants.NEGATE
    assert sentiment.BOOSTERS == constants.BOOSTER_DICT
    assert sentiment.IDIOMS == constants.SPECIAL_CASE_IDIOMS
    assert set(constants.PUNC_LIST) == sentiment.PUNCTUATION
    assert sentiment.INCREASE == constants.B_INCR
    assert sentiment.DECREASE == constants.B_DECR
    assert sentiment.CAPITALS == constants.C_INCR
    assert sentiment.NEGATION == constants.N_SCALAR


def test_words_are_forgotten_when_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sentiment, "_KEPT_WORDS", 5)
    score = make_reference(LEXICON, tmp_path)
    scorer = VaderScorer(VALENCES)
    assert scorer.score(TEXTS) == [score(text) for text in TEXTS]
    assert len(scorer._words) <= 5 + 4  # one text more


# --- what is remembered ------------------------------------------------------------------------


def test_distinct_texts_are_scored_once_for_all_runs(
    lexicon: Path, context: LabelingContext, scored: list[str], tmp_path: Path
) -> None:
    reference = make_reference(LEXICON, tmp_path / "nltk")
    corpus = [*TEXTS, *TEXTS[:7], ""]
    expected = [reference(text) for text in corpus]
    assert score_by_vader(corpus, lexicon, context).tolist() == expected
    assert scored == [*TEXTS, ""]
    assert score_by_vader(corpus[::-1], lexicon, context).tolist() == expected[::-1]
    assert scored == [*TEXTS, ""]
    more = ["good news", *corpus, "a bad end", "good news"]
    scores = score_by_vader(more, lexicon, context).tolist()
    assert scores == [reference(text) for text in more]
    assert scored == [*TEXTS, "", "good news", "a bad end"]
    (file,) = list_files(context)
    assert file.name.startswith("vader-")
    assert pq.read_table(file)["scores"].to_pylist() == [[reference(text)] for text in scored]


def test_texts_that_are_not_the_corpus_are_not_remembered(
    lexicon: Path, context: LabelingContext, scored: list[str]
) -> None:
    score_by_vader(TEXTS, lexicon, context)
    (file,) = list_files(context)
    before = file.read_bytes()
    others = replace(context, is_corpus=False)
    for _ in range(2):
        score_by_vader([*TEXTS, "a good month"], lexicon, others)
    assert scored == [*TEXTS, "a good month", "a good month"]
    assert file.read_bytes() == before


def test_each_lexicon_has_scores_of_its_own(
    lexicon: Path, context: LabelingContext, scored: list[str]
) -> None:
    by_valence = {}
    for valence in (1, 2, 3, 4):
        lexicon.write_text(f"good\t{valence}")
        by_valence[valence] = score_by_vader(["good"], lexicon, context)[0]
        for file in list_files(context):  # so that the clock tells files apart
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
    assert len(set(by_valence.values())) == 4
    assert len(list_files(context)) == 3
    for valence in (2, 3, 4):
        lexicon.write_text(f"good\t{valence}\n\n")  # the same lexicon in other bytes
        assert score_by_vader(["good"], lexicon, context)[0] == by_valence[valence]
    assert len(scored) == 4
    lexicon.write_text("good\t1")  # which was the first to be forgotten
    assert score_by_vader(["good"], lexicon, context)[0] == by_valence[1]
    assert len(scored) == 5


def test_scores_by_other_rules_are_not_used(
    lexicon: Path, context: LabelingContext, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score_by_vader(TEXTS, lexicon, context)
    monkeypatch.setattr(vader, "RULES_VERSION", sentiment.RULES_VERSION + 1)
    score_by_vader(TEXTS, lexicon, context)
    assert len(scored) == 2 * len(TEXTS)


def test_texts_of_earlier_corpora_are_forgotten_at_last(
    lexicon: Path, context: LabelingContext
) -> None:
    score_by_vader(TEXTS, lexicon, context)
    (file,) = list_files(context)
    score_by_vader([f"other {n}" for n in range(40)], lexicon, context)
    assert pq.read_metadata(file).num_rows == 160
    score_by_vader([*TEXTS[:19], "new"], lexicon, context)
    assert pq.read_metadata(file).num_rows == 20


def damage_in_a_bit(content: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(content))
    flipped = content[start] ^ 1 << generator.randrange(8)
    return content[:start] + bytes([flipped]) + content[start + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        damage_in_a_bit,
        lambda content, generator: content[: generator.randrange(len(content))],
        lambda content, generator: generator.randbytes(generator.randrange(500)),
    ],
    ids=["a bit", "cut", "other bytes"],
)
def test_a_damaged_memory_is_made_anew(
    lexicon: Path,
    context: LabelingContext,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes, random.Random], bytes],
) -> None:
    expected = score_by_vader(TEXTS, lexicon, context)
    (file,) = list_files(context)
    whole = file.read_bytes()
    generator = random.Random(0)
    warned = 0
    for _ in range(60):
        file.write_bytes(damage(whole, generator))
        scores = score_by_vader(TEXTS, lexicon, context)
        np.testing.assert_array_equal(scores, expected)
        said = capsys.readouterr().out
        if said:
            assert said.startswith(f"warning: {file}: damaged (")
            assert said.endswith("); its texts are scored again\n")
            assert file.read_bytes() == whole
            warned += 1
    assert warned >= 40  # some bits of the footer mean nothing


def test_the_memory_of_another_lexicon_is_not_taken_for_this_ones(
    lexicon: Path, context: LabelingContext, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    score_by_vader(["good"], lexicon, context)
    (first,) = list_files(context)
    lexicon.write_text("good\t-3")
    score_by_vader(["good"], lexicon, context)
    (second,) = set(list_files(context)) - {first}
    shutil.copy(first, second)
    score = make_reference("good\t-3", tmp_path / "nltk")("good")
    assert score_by_vader(["good"], lexicon, context).tolist() == [score]
    assert "its content is not what it states" in capsys.readouterr().out


def test_a_memory_that_cannot_be_read_or_written_is_one_message(
    lexicon: Path, context: LabelingContext
) -> None:
    score_by_vader(TEXTS, lexicon, context)
    (file,) = list_files(context)
    file.unlink()
    file.mkdir()
    with pytest.raises(ReadError, match="Is a directory"):
        score_by_vader(TEXTS, lexicon, context)
    shutil.rmtree(context.project.scores)
    context.project.scores.write_text("a file where the folder should be")
    with pytest.raises((ReadError, WriteError), match=str(context.project.scores)):
        score_by_vader(TEXTS, lexicon, context)


def test_prepare_scores_what_is_new_and_nothing_for_a_threshold(
    project: Path, tiny_backbone: Path, cli: Cli, scored: list[str]
) -> None:
    def write(texts: Sequence[str]) -> None:
        rows = [{"message": text, "label": "ham"} for text in texts]
        (project / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def read_labels() -> list[int]:
        labels: list[int] = pq.read_table(Project(project).labels_file)["mood"].to_pylist()
        return labels

    write(TEXTS)
    (project / "lexicon.txt").write_text(LEXICON)
    edit_params(
        {
            "fetch.dataset": "data.jsonl",
            "fetch.lexicon": "lexicon.txt",
            "fetch.backbones": [str(tiny_backbone)],
            "prepare.labels": {"mood": {"labeler": "vader"}},
            "heads.tasks": {"mood": {}},
        }
    )
    run_stages(cli, "fetch", "prepare")
    assert scored == TEXTS
    assert set(read_labels()) == {1, 2}
    first = Project(project).labels_file.read_bytes()
    edit_params({"prepare.labels.mood.positive_at_least": 0.99})
    run_stages(cli, "prepare")
    assert scored == TEXTS
    assert set(read_labels()) == {1}
    write([*TEXTS, "an awful one"])
    run_stages(cli, "fetch", "prepare")
    assert scored == [*TEXTS, "an awful one"]
    write(TEXTS)
    edit_params({"prepare.labels.mood.positive_at_least": 0.05})
    run_stages(cli, "fetch", "prepare")
    assert len(scored) == len(TEXTS) + 1
    assert Project(project).labels_file.read_bytes() == first


# --- several processes -------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts are enough for several processes."""
    monkeypatch.setattr(scoring, "TEXTS_A_PROCESS", 20)
    monkeypatch.setattr(scoring, "_CHUNK_TEXTS", 7)


@pytest.mark.usefixtures("small")
def test_several_processes_score_as_one_does(tmp_path: Path) -> None:
    score = make_reference(LEXICON, tmp_path)
    done: list[float] = []
    started = 0

    def advance(texts: float) -> None:
        nonlocal started
        started = max(started, len(multiprocessing.active_children()))
        done.append(texts)

    scores = score_texts(TEXTS, VALENCES, threads=2, advance=advance)
    assert scores.tolist() == [score(text) for text in TEXTS]
    assert started == 2
    assert sum(done) == len(TEXTS)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("threads", "texts"), [(1, 120), (2, 39)])
def test_one_core_and_few_texts_need_no_process(
    threads: int, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "ProcessPoolExecutor", None)
    assert len(score_texts(TEXTS[:texts], VALENCES, threads=threads)) == texts


@pytest.mark.usefixtures("small")
def test_a_process_that_is_killed_is_one_message() -> None:
    long_texts = [f"good {n} " * 2_000 for n in range(400)]

    def kill(_: float) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(DeviceError) as caught:
        score_texts(long_texts, VALENCES, threads=2, advance=kill)
    assert "scored texts by VADER ended before its work was done" in caught.value.message
    assert "runtime.threads" in (caught.value.hint or "")
    assert not multiprocessing.active_children()


SCRIPT = """
import sys
from pipeline.prepare.labelers import scoring


def main():
    scoring.TEXTS_A_PROCESS = 1000
    texts = [f"good {n} " * 50 for n in range(40_000)]
    print("begun", flush=True)
    try:
        scoring.score_texts(
            texts, {"good": 1.9}, threads=2, advance=lambda _: print("scored", flush=True)
        )
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
"""


def has_children(process: int) -> bool:
    return bool(Path(f"/proc/{process}/task/{process}/children").read_text())


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("moment", ["starting", "scoring"])
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_end_all_processes(
    moment: str, signal_: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "score.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "begun\n"
    if moment == "starting":
        wait_until(lambda: has_children(run.pid))
    else:
        assert run.stdout.readline() == "scored\n"
    if signal_ == signal.SIGINT:
        os.killpg(run.pid, signal_)  # as a terminal does
    else:
        run.kill()
    out, err = run.communicate(timeout=60)
    wait_until(lambda: is_gone(run.pid))
    if signal_ == signal.SIGINT:
        assert run.returncode == 130
        assert out.endswith("interrupted\n")
        assert "Traceback" not in err
