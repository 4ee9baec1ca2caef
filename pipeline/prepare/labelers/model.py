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
from pipeline.arrays import wrap_keys, wrap_numbers
from pipeline.config import ModelLabel, RuntimeSettings, ValueLabel, normalize_value
from pipeline.config_errors import suggest
from pipeline.console import say, show_progress
from pipeline.corpus.cells import Table
from pipeline.corpus.keys import hash_texts
from pipeline.device import choose_devices
from pipeline.errors import AssetError, PipelineError, SettingsError
from pipeline.files import hash_file, parse_json, read_bounded
from pipeline.prepare.labelers.base import LabelingContext, Labels
from pipeline.prepare.labelers.column import label_by_values
from pipeline.prepare.labelers.score_memory import ScoreMemory, Scores

# Scores go to the disk this often, so that a kill costs no more than that and what a batch takes.
_KEEP_SECONDS = 20.0
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
        distinct = [text for text in dict.fromkeys(texts) if text]  # none where a row has no text
        scores = self._score_texts(distinct, folder, kept)
        of_text = dict(zip(distinct, self._choose(scores, names), strict=True))
        reading = ValueLabel(
            labeler="model", kind=self._settings.kind, classes=self._list_classes(names)
        )
        values = [of_text.get(text) for text in texts]
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

    def _choose(self, scores: Scores, names: Sequence[str]) -> list[Any]:
        """What the scores say: a class for each text, or a list of tags.

        Tags that the settings leave out are of no account.

        :param scores: the outputs of the model, [B, C].
        :param names: what each output stands for, [C].
        """
        if self._settings.kind == "class":
            return [names[best] for best in scores.argmax(axis=1).tolist()]
        wanted = self._list_classes(names)
        held = compute_sigmoid(scores) >= self._settings.threshold
        return [
            [name for name in wanted if name in {names[at] for at in np.flatnonzero(row).tolist()}]
            for row in held
        ]

    def _score_texts(self, texts: Sequence[str], folder: Path, kept: ScoreMemory) -> Scores:
        """The outputs of the model for texts, those that are not kept computed now: [B, C]."""
        keys = wrap_keys(hash_texts(texts))
        scores, is_known = kept.look_up(keys)
        missing = np.flatnonzero(~is_known)
        if not len(missing):
            return scores
        settings = self._settings
        say(f"model     {settings.model}: scoring {len(missing):,} of {len(texts):,} texts")
        waiting: list[int] = []

        def keep() -> None:
            if self._context.is_corpus:
                kept.add(
                    keys.take(wrap_numbers(np.array(waiting, np.int64))), scores[waiting], keys
                )
            waiting.clear()

        with (
            open_classifier(folder, settings.max_tokens, self._context.runtime) as classifier,
            show_progress("model", len(missing), "texts") as advance,
        ):
            last = time.monotonic()
            wanted = [texts[number] for number in missing.tolist()]
            for batch, outputs in classifier.score(wanted):
                numbers = missing[batch]
                scores[numbers] = outputs
                self._check_scores(outputs, [wanted[number] for number in batch.tolist()])
                waiting += numbers.tolist()
                advance(len(numbers))
                if time.monotonic() - last > _KEEP_SECONDS:
                    keep()
                    last = time.monotonic()
            keep()
        return scores

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

        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
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
