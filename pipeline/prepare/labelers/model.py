"""Labels by a Hugging Face classification model, from the text itself.

This module and no other of the stage imports torch and transformers, where texts have no scores.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.architecture import Architecture
from pipeline.config import ModelLabel, RuntimeSettings, ValueLabel, normalize_value
from pipeline.config_errors import suggest
from pipeline.console import say, show_progress
from pipeline.corpus.cells import Table
from pipeline.device import choose_devices
from pipeline.errors import AssetError, PipelineError, SettingsError
from pipeline.files import hash_file, parse_json, read_bounded
from pipeline.prepare.labelers.base import LabelingContext, Labels
from pipeline.prepare.labelers.column import label_by_values
from pipeline.prepare.labelers.distinct import DistinctTexts, RowValues, split_batches
from pipeline.prepare.labelers.score_memory import ScoreMemory, Scores

# Scores go to the disk this often, so that a kill costs no more than that and what a batch takes.
_KEEP_SECONDS = 20.0
_KEEP_PAUSES = 20  # how many times as long as writing them takes they wait at least
_PART_TEXTS = 32_768  # that are in memory at once, and are sorted by length
_ENCODED_TEXTS = 1024  # whose tokens the tokenizer gives at a time, with much that is not needed
# The version of what is computed; a new one makes what is kept of an older useless.
_ALGORITHM = 1
# Tokens in one batch, padding counted in, by the type of device.
_TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536, "mps": 16384}
# What `problem_type` of a configuration may be, by the kind of label.
_PROBLEMS = {"class": "single_label_classification", "tags": "multi_label_classification"}
_MULTI_LABEL = "multi_label_classification"


class ModelLabeler:
    """What a classification model says of each text: the class with the highest score, or tags.

    Scores are kept in the project by the model's files and ``max_tokens``, so that a text is scored
    once, however often labels are made of its scores.

    :param task: the task that the labels are for.
    :param settings: the model, and what its answers mean.
    :param context: the project that keeps the scores, and the devices.
    """

    def __init__(self, task: str, settings: ModelLabel, context: LabelingContext) -> None:
        self._task = task
        self._settings = settings
        self._context = context

    def label(self, frame: Table, texts: Sequence[str], assets: Mapping[str, Path]) -> Labels:
        """Label every row; ``assets`` holds the model's folder. See ``Labeler.label``."""
        folder = assets[f"{self._task}.model"]
        outputs = self._read_outputs(folder)
        names = self._name_outputs(outputs)
        sources = {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.name in {"config.json", "tokenizer.json"} or path.suffix == ".safetensors"
        }
        contents = {
            "algorithm": _ALGORITHM,
            "files": sources,
            "max_tokens": self._settings.max_tokens,
            "classes": list(outputs),
        }
        kept = ScoreMemory(
            self._context.project.scores,
            "model",
            contents,
            outputs=len(outputs),
            dtype=np.float32,
        )
        answers = ScoreReading(names, self._settings, self._list_classes(names))
        values = self._answer_texts(DistinctTexts(texts), folder, kept, answers)
        reading = ValueLabel(
            labeler="model", kind=self._settings.kind, classes=self._list_classes(names)
        )
        made = label_by_values(reading, values, f"model {self._settings.model}")
        unusable = {row: what for row, what in made.unusable.items() if texts[row]}
        return replace(made, unusable=unusable, sources=sources)

    def _complain(self, key: str, what: str, hint: str | None = None) -> SettingsError:
        return SettingsError(f"prepare.labels.{self._task}.{key}: {what}", hint=hint)

    def _read_outputs(self, folder: Path) -> tuple[str, ...]:
        """The names that a model's configuration gives to its outputs.

        :raises AssetError: if it is not that of a text classifier.
        :raises SettingsError: if it does not answer as the settings say, or takes only shorter
            texts.
        """
        settings = self._settings
        hint = f"choose another model in prepare.labels.{self._task}.model"
        try:
            about = parse_json(read_bounded(folder / "config.json"))
            architecture = Architecture.read(folder)
            named = about.get("id2label") or {n: f"LABEL_{n}" for n in range(2)}
            outputs = tuple(str(named[key]) for key in sorted(named, key=int))
            problem = about.get("problem_type")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise AssetError(
                f"{folder / 'config.json'}: not that of a text classifier ({error})", hint=hint
            ) from error
        except AssetError as error:
            raise AssetError(error.message, hint=hint) from error
        if len(outputs) < 2:
            raise AssetError(
                f"model {settings.model}: has one output, which names no class", hint=hint
            )
        if problem is not None and problem != _PROBLEMS[settings.kind]:
            remedy = "set it to tags" if problem == _MULTI_LABEL else "set it to class"
            is_other = problem in _PROBLEMS.values()
            raise self._complain(
                "kind",
                f"is {settings.kind}, but config.json of {settings.model} says "
                f"problem_type {problem!r:.60}",
                remedy if is_other else hint,
            )
        if settings.max_tokens > architecture.max_tokens:
            raise self._complain(
                "max_tokens",
                f"must be <= {architecture.max_tokens} for this model, got {settings.max_tokens}",
            )
        return outputs

    def _name_outputs(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """The class or tag that each output of the model stands for.

        :raises SettingsError: if the settings name what the model does not know.
        """
        plain = [normalize_value(name) for name in outputs]
        mapping = {normalize_value(k): normalize_value(v) for k, v in self._iterate_mapping()}
        for name in mapping:
            if name not in plain:
                raise self._complain(
                    f"mapping.{name}", f"the model has no such output{suggest(name, plain)}"
                )
        names = tuple(mapping.get(name, name) for name in plain)
        for name in self._settings.get_classes() or ():
            if name not in names:
                raise self._complain(
                    "classes", f"the model never answers {name!r}{suggest(name, names)}"
                )
        if len(set(names)) < 2:
            raise self._complain("mapping", f"leads all outputs to {names[0]!r}")
        return names

    def _iterate_mapping(self) -> Iterator[tuple[Any, Any]]:
        yield from (self._settings.mapping or {}).items()

    def _list_classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """The classes or tags in the order of their index."""
        return self._settings.get_classes() or tuple(dict.fromkeys(names))

    def _answer_texts(
        self, texts: DistinctTexts, folder: Path, kept: ScoreMemory, answers: ScoreReading
    ) -> RowValues:
        """What the scores say of each row's text; those that are not kept are computed now.

        An empty text, which stands where a row has none, has no answer.
        """
        of_text = np.zeros(len(texts), np.int32)
        is_missing = texts.find_filled()
        total = int(is_missing.sum())
        for numbers, scores in kept.look_up(texts.keys):
            of_text[numbers], is_missing[numbers] = answers.number(scores), False
        if is_missing.any():
            say(
                f"model     {self._settings.model}: scoring {int(is_missing.sum()):,} of "
                f"{total:,} texts"
            )
            keeper = _Keeper(kept, texts.keys, self._context.is_corpus)
            for numbers, scores in self._score_texts(texts, is_missing, folder):
                of_text[numbers] = answers.number(scores)
                keeper.add(numbers, scores)
            keeper.keep()
        return RowValues(answers.values, of_text[texts.numbers])

    def _score_texts(
        self, texts: DistinctTexts, are_wanted: npt.NDArray[np.bool_], folder: Path
    ) -> Iterator[tuple[npt.NDArray[np.int64], Scores]]:
        """The outputs of the model for some texts, of which a part is in memory at a time.

        :param are_wanted: whether each of the texts is one of them, bool, [N].
        :yields: numbers of texts, int64, [B], and their outputs, [B, C].
        """
        wanted = texts.choose(are_wanted)
        all_numbers, start = np.flatnonzero(are_wanted), 0
        with (
            open_classifier(folder, self._settings.max_tokens, self._context.runtime) as classifier,
            show_progress("model", len(wanted), "texts") as advance,
        ):
            for part in split_batches(wanted, _PART_TEXTS):
                numbers = all_numbers[start : start + len(part)]
                start += len(part)
                for batch, outputs in classifier.score(part):
                    self._check_scores(outputs, [part[number] for number in batch.tolist()])
                    yield numbers[batch], outputs
                    advance(len(batch))

    def _check_scores(self, outputs: Scores, texts: Sequence[str]) -> None:
        """Make sure that scores are finite.

        :raises AssetError: naming the first text whose scores are not.
        """
        wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if len(wrong):
            raise AssetError(
                f"model {self._settings.model}: its scores of {texts[wrong[0]]!r:.60} are not "
                "finite",
                hint=f"choose another model in prepare.labels.{self._task}.model",
            )


class ScoreReading:
    """What scores say: a class for each text, or a list of tags.

    Tags that the settings leave out are of no account.

    :param names: what each output of the model stands for, [C].
    :param settings: whether it is a class or tags, and the threshold of these.
    :param wanted: the tags that count, in their order.
    :ivar values: ``None``, then the answers that were given.
    """

    def __init__(self, names: Sequence[str], settings: ModelLabel, wanted: Sequence[str]) -> None:
        self.values: list[Any] = [None]
        self._names, self._wanted, self._settings = names, wanted, settings
        self._number_of: dict[bytes, int] = {}
        if settings.kind == "class":
            self.values += names

    def number(self, scores: Scores) -> npt.NDArray[np.int32]:
        """The number among the values of the answer to each text: [B].

        :param scores: the outputs of the model, [B, C].
        """
        if self._settings.kind == "class":
            best: npt.NDArray[np.int32] = scores.argmax(axis=1).astype(np.int32)
            return 1 + best
        held = compute_sigmoid(scores) >= self._settings.threshold
        return np.fromiter(map(self._number_tags, held), np.int32, len(held))

    def _number_tags(self, held: npt.NDArray[np.bool_]) -> int:
        """The number of the list of the tags whose outputs are high enough: bool, [C]."""
        number = self._number_of.setdefault(held.tobytes(), len(self.values))
        if number == len(self.values):
            names = {self._names[at] for at in np.flatnonzero(held).tolist()}
            self.values.append([name for name in self._wanted if name in names])
        return number


class _Keeper:
    """Puts new scores on the disk from time to time, which takes no more than a part of the time.

    :param memory: where they are kept.
    :param keys: the keys of the distinct texts, uint8, [N, 16].
    :param is_corpus: whether the texts are the corpus; else nothing is kept.
    """

    def __init__(self, memory: ScoreMemory, keys: npt.NDArray[np.uint8], is_corpus: bool) -> None:
        self._memory, self._keys, self._is_corpus = memory, keys, is_corpus
        self._waiting: list[tuple[npt.NDArray[np.uint8], Scores]] = []
        self._last = time.monotonic()
        self._pause = _KEEP_SECONDS

    def add(self, numbers: npt.NDArray[np.int64], scores: Scores) -> None:
        """Take the scores of some texts.

        :param numbers: the numbers of the texts, int64, [B].
        :param scores: their scores, [B, C].
        """
        if self._is_corpus:
            self._waiting.append((self._keys[numbers], scores))
        if time.monotonic() - self._last > self._pause:
            self.keep()

    def keep(self) -> None:
        """Put what was taken on the disk."""
        start = time.monotonic()
        if self._waiting:
            keys = np.concatenate([keys for keys, _ in self._waiting])
            scores = np.concatenate([scores for _, scores in self._waiting])
            self._memory.add(lambda: [(keys, scores)], len(keys), self._keys)
            self._waiting.clear()
        self._last = time.monotonic()
        # The file is written as a whole, which takes the longer the more it has.
        self._pause = max(_KEEP_SECONDS, _KEEP_PAUSES * (self._last - start))


def compute_sigmoid(scores: Scores) -> npt.NDArray[np.float64]:
    """The probability of each tag: 1 / (1 + exp(-score)), without overflow.

    :param scores: [B, C].
    """
    return 0.5 * (1 + np.tanh(0.5 * scores.astype(np.float64)))


@dataclass(frozen=True)
class Classifier:
    """A classification model that is loaded, and its tokenizer.

    :param model: transformers' model, in eval mode.
    :param tokenizer: the tokenizer of its folder, which cuts texts.
    :param device: the device that the model is on.
    :param token_budget: tokens in one batch, padding counted in.
    :param pad_id: id of the padding token.
    """

    model: Any
    tokenizer: Any
    device: Any
    token_budget: int
    pad_id: int

    def score(self, texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int64], Scores]]:
        """The outputs for texts, the longest first, so that a batch has texts of like lengths.

        :param texts: [B].
        :returns: batches: indices of texts, [b], and their outputs, [b, C].
        """
        import torch

        ids = [
            np.array(encoding.ids, np.int32)
            for start in range(0, len(texts), _ENCODED_TEXTS)
            for encoding in self.tokenizer.encode_batch(list(texts[start : start + _ENCODED_TEXTS]))
        ]
        lengths = np.array([len(of_text) for of_text in ids], np.int64)
        for batch in self._plan_batches(lengths):
            padded = np.full((len(batch), lengths[batch].max()), self.pad_id, np.int64)
            mask = np.arange(padded.shape[1]) < lengths[batch][:, None]
            padded[mask] = np.concatenate([ids[number] for number in batch.tolist()])
            with torch.inference_mode():
                answer = self.model(
                    input_ids=torch.from_numpy(padded).to(self.device),
                    attention_mask=torch.from_numpy(mask).to(self.device, torch.int64),
                )
            yield batch, answer.logits.float().cpu().numpy()

    def _plan_batches(self, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        order = np.argsort(-lengths, kind="stable")
        # Without a padding token, a model that reads from left to right cannot tell a text's end.
        alone = self.model.config.pad_token_id is None
        start = 0
        while start < len(order):
            longest = max(1, int(lengths[order[start]]))
            stop = start + (1 if alone else max(1, self.token_budget // longest))
            yield order[start:stop]
            start = stop


@contextlib.contextmanager
def open_classifier(
    folder: Path, max_tokens: int, runtime: RuntimeSettings
) -> Iterator[Classifier]:
    """A classification model in float32 on the first device, with the threads of the settings.

    :param folder: a Hugging Face folder with ``tokenizer.json`` and weights as safetensors.
    :param max_tokens: length to cut longer texts to, special tokens counted in.
    :param runtime: devices, threads and token budget.
    :raises AssetError: if it cannot be loaded, or its weights lack a tensor.
    """
    import torch
    from tokenizers import Tokenizer

    threads = torch.get_num_threads()
    device = choose_devices(runtime.devices)[0]
    try:
        if runtime.threads:
            torch.set_num_threads(runtime.threads)
        model = _load_model(folder).to(device)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_tokens)
        except Exception as error:  # the Rust library raises plain Exception
            raise AssetError(
                f"{folder / 'tokenizer.json'}: cannot be used ({error})",
                hint="run `pipeline fetch` again",
            ) from error
        budget = runtime.token_budget or _TOKEN_BUDGET[device.type]
        pad_id = Architecture.read(folder).pad_id
        yield Classifier(model, tokenizer, device, budget, pad_id)
    finally:
        torch.set_num_threads(threads)


def _load_model(folder: Path) -> Any:
    import torch
    import transformers

    # Untyped in transformers itself.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        known: Mapping[Any, Any] = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if type(config) not in known:
            raise AssetError(
                f"{folder}: transformers has no text classifier of type {config.model_type}"
            )
        kind = known[type(config)]
        model, loading = kind.from_pretrained(
            folder,
            config=config,
            # The configuration may name one that is not installed here, or code from the hub.
            attn_implementation="sdpa" if kind._supports_sdpa else "eager",
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except PipelineError:
        raise
    except Exception as error:  # transformers raises many kinds for a folder it cannot load
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AssetError(
            f"{folder}: the model cannot be loaded: {reason}",
            hint="run `pipeline fetch --refresh`, or choose another model",
        ) from error
    # transformers fills a tensor that is missing with random numbers.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise AssetError(
            f"{folder}: the weights lack {len(missing)} tensors of a classifier, the first is "
            f"{missing[0]}",
            hint="choose a model that was trained to classify, not a backbone alone",
        )
    return model.eval().requires_grad_(False)
