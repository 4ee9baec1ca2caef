"""The face of the engine: texts in, vectors of a frozen backbone out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.architecture import Architecture
from pipeline.arrays import wrap_texts
from pipeline.console import Advance
from pipeline.device import choose_devices
from pipeline.embed.backbone import Backbone
from pipeline.embed.engine import AnyEngine, Engine, Job, Keep, ignore_progress, keep_nothing
from pipeline.embed.loading import EnginePlan
from pipeline.embed.packed import PackedEncoder
from pipeline.embed.pooling import find_pooling
from pipeline.embed.tokenizing import TokenizerGroup, TokenizerPlan
from pipeline.embed.tokens import DistinctTokens
from pipeline.embed.windows import WindowCutter
from pipeline.errors import DataError, SettingsError
from pipeline.layers import resolve_layers
from pipeline.recipe import Precision, TextRecipe, resolve_precision
from pipeline.store import Recipe, Rows

Texts: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray


class Embedder:
    """Texts to pooled vectors of one backbone, from a Hugging Face folder alone.

    ::

        with Embedder("models/all-MiniLM-L6-v2") as embedder:
            rows = embedder.embed(["a text", "another"])
        rows.vectors.shape  # (2, 7, 384): 2 texts, 7 layers, 384 numbers

    The weights are read when the first texts come. ``embed`` does all in one call; ``tokenize`` and
    ``start`` do it in steps, so that a caller with many texts can tokenize and store some while the
    device computes others.

    :param folder: a folder with ``config.json``, ``tokenizer.json`` and ``model.safetensors``.
    :param max_tokens: length to cut longer texts to, special tokens and the prompt counted in;
        ``auto`` is what the folder declares.
    :param layers: ``all``, ``last``, or numbers of layers: 0 is the output of the embedding layer,
        -1 the last layer.
    :param precision: the type of weights and activations; ``auto`` is float16 on a GPU,
        bfloat16 on a CPU that multiplies it natively, and float32 on others.
    :param dtype: type of the vectors.
    :param pooling: way to make a text's vector of its tokens', a key of ``POOLINGS``, or several,
        whose vectors are joined; ``auto`` is what the folder declares, and else the mean.
    :param normalize: whether vectors are scaled to length 1; ``auto`` is what the folder declares.
    :param prompt: text to put before each text; empty for none.
    :param long_texts: ``cut`` to cut texts that are too long, ``windows`` to embed them in
        overlapping windows, whose means are joined to that over the whole text.
    :param devices: ``cpu``, ``cuda``, ``cuda:N``, ``mps``, ``auto`` for all GPUs or else the CPU,
        or several devices; several run in a process each.
    :param token_budget: tokens in one batch; ``None`` for what suits the device.
    :param threads: threads of the CPU while the embedder is loaded; ``None`` for all cores.
    :param tokenizer_processes: number of processes to tokenize in; 0 for this one alone.
    :ivar architecture: facts that the folder states of the backbone.
    :ivar text_recipe: the settings that make one vector of a text, none of them ``auto``.
    :ivar cutter: what cuts long texts into windows; ``None`` if they are cut off.
    :ivar width: D, the numbers of a text's vector in one layer.
    :ivar layers: numbers of the L layers, ascending.
    :ivar devices: the devices.
    :ivar precision: the precision, never ``auto``.
    :raises AssetError: if the folder lacks the configuration or the tokenizer of a text encoder.
    :raises SettingsError: if the backbone cannot do what is asked for, or a device is not there.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_tokens: int | Literal["auto"] = 128,
        layers: Literal["all", "last"] | Sequence[int] = "all",
        precision: Precision | Literal["auto"] = "auto",
        dtype: Literal["float16", "float32"] = "float32",
        pooling: str | Sequence[str] = "auto",
        normalize: bool | Literal["auto"] = False,
        prompt: str = "",
        long_texts: Literal["cut", "windows"] = "cut",
        devices: str | Sequence[str | torch.device] = "cpu",
        token_budget: int | None = None,
        threads: int | None = None,
        tokenizer_processes: int = 0,
    ) -> None:
        folder = Path(folder)
        self.architecture = Architecture.read(folder)
        self.text_recipe = TextRecipe.resolve(
            folder,
            self.architecture,
            max_tokens=max_tokens,
            pooling=pooling,
            normalize=normalize,
            prompt=prompt,
            long_texts=long_texts,
        )
        self.width = self.architecture.width * find_pooling(self.text_recipe.pooling).parts
        available = tuple(range(self.architecture.layers + 1))
        self.layers = resolve_layers(layers, available, "embed.layers")
        self.devices = tuple(choose_devices(devices))
        self.precision = resolve_precision(precision, self.devices[0].type)
        _check_choice("precision", self.precision, ("float32", "float16", "bfloat16"))
        _check_choice("dtype", dtype, ("float16", "float32"))
        most, is_whole = self.text_recipe.max_tokens, self.text_recipe.long_texts == "windows"
        tokenizers = TokenizerPlan(folder, most, prompt, is_whole)
        self._tokenizer = tokenizers.load()
        self.cutter = WindowCutter(most, *self._tokenizer.framing) if is_whole else None
        self.architecture.check_vocabulary(self._tokenizer.find_highest_id(), folder)
        self._plan = EnginePlan(
            folder,
            self.precision,
            self.layers,
            dtype,
            self.text_recipe.pooling,
            self.text_recipe.normalize,
            token_budget=token_budget,
            threads=threads,
        )
        self._engine: AnyEngine | None = None
        self._threads_before = 0
        # Last, so that an error above leaves no process behind.
        self._tokenizers = TokenizerGroup(tokenizers, self._tokenizer, tokenizer_processes)

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        folder: str | os.PathLike[str],
        *,
        devices: str | Sequence[str | torch.device] = "cpu",
        token_budget: int | None = None,
        threads: int | None = None,
        tokenizer_processes: int = 0,
    ) -> Embedder:
        """The embedder that makes the vectors of a store's recipe.

        :param recipe: all that changes a vector, as ``make_recipe`` or a store's manifest has it.
        :param folder: the backbone's folder.
        :param devices: devices, as ``Embedder`` has them.
        :param token_budget: tokens in one batch; ``None`` for what suits the device.
        :param threads: threads of the CPU; ``None`` for all cores.
        :param tokenizer_processes: number of processes to tokenize in; 0 for this one alone.
        :raises AssetError: if the folder lacks the configuration or the tokenizer.
        :raises SettingsError: if the backbone cannot do what the recipe asks for.
        """
        contents = recipe.contents
        text_recipe = TextRecipe.from_contents(contents)
        return cls(
            folder,
            max_tokens=text_recipe.max_tokens,
            layers=recipe.layers,
            precision=contents["precision"],
            dtype=contents["dtype"],
            pooling=text_recipe.pooling,
            normalize=text_recipe.normalize,
            prompt=text_recipe.prompt,
            long_texts=text_recipe.long_texts,
            devices=devices,
            token_budget=token_budget,
            threads=threads,
            tokenizer_processes=tokenizer_processes,
        )

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the weights, and end threads and processes.

        Texts that come later load the weights again, and are tokenized in this process.
        """
        self._tokenizers.close()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            torch.set_num_threads(self._threads_before)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights have been read."""
        return self._engine is not None

    @property
    def family(self) -> type[PackedEncoder] | None:
        """The packed family that the backbone is of; ``None`` if its texts are padded."""
        return self._plan.family

    def describe(self) -> str:
        """The kind of forward pass and the number of devices, for the log."""
        return self._plan.describe(self.devices)

    def load(self) -> None:
        """Read the weights, if this has not happened yet, before the first texts come.

        :raises AssetError: if the weights cannot be loaded, or lack a tensor that the model needs.
        """
        if self._engine is not None:
            return
        self._threads_before = torch.get_num_threads()
        if self._plan.threads:
            torch.set_num_threads(self._plan.threads)
        self._engine = self._plan.open_engine(self.devices)

    def load_reference(self) -> Backbone:
        """Hugging Face's forward pass in float32 on the first device, to gauge vectors by.

        The embedder does not hold on to it, as its weights take memory of their own.

        :raises AssetError: if the weights cannot be loaded, or lack a tensor that the model needs.
        """
        encoder = self._engine.encoder if isinstance(self._engine, Engine) else None
        if isinstance(encoder, Backbone) and self.precision == "float32":
            return encoder
        return self._plan.load_reference(self.devices[0])

    def embed(self, texts: Texts, advance: Advance = ignore_progress) -> Rows:
        """The pooled vectors of texts, in their order.

        Texts that are the same tokens are computed once. Texts and vectors are in memory as a
        whole, so that a very large corpus has to come in parts.

        :param texts: strings without nulls: [B].
        :param advance: a function to call with the number of texts just finished.
        :returns: ``n_tokens``, the tokens of each text as the backbone saw it, special tokens
            counted in: int32, [B]; and ``vectors``, in the embedder's dtype: [B, L, D].
        :raises DataError: if ``texts`` is not a list or array of strings.
        :raises AssetError: if the weights cannot be loaded.
        :raises DeviceError: if the device has not the memory for a single text.
        """
        tokens = self.tokenize(texts)
        return tokens.expand(self.start(tokens, advance).finish())

    def tokenize(self, texts: Texts) -> DistinctTokens:
        """The token ids of texts; threads may do this while another one runs ``start``.

        :param texts: strings without nulls: [B].
        :raises DataError: if ``texts`` is not a list or array of strings.
        """
        return self._tokenizers.tokenize(_take_texts(texts))

    def find_hollow(self, texts: DistinctTokens) -> npt.NDArray[np.bool_]:
        """The texts of which nothing is left but special tokens and pieces that are unknown.

        The vectors of such texts tell nothing of them.

        :param texts: token ids of B texts from ``tokenize``.
        :returns: bool, [B].
        """
        return self._tokenizer.find_hollow(texts.tokens)[texts.indices]

    def start(
        self,
        texts: DistinctTokens,
        advance: Advance = ignore_progress,
        keep: Keep = keep_nothing,
    ) -> Job:
        """Queue texts behind those started before, so that no device is idle between the two.

        :param texts: token ids of B texts from ``tokenize``.
        :param advance: a function to call with the number of texts just finished; it moves with
            their tokens, which is what takes the time.
        :param keep: a function to call with indices of distinct texts just finished, and the rows
            of all distinct texts.
        :returns: a job whose ``finish`` gives the rows of the distinct texts, which
            ``texts.expand`` turns into rows of the B texts.
        :raises AssetError: if the weights cannot be loaded.
        """
        if self._engine is None:
            self.load()
        assert self._engine is not None
        tokens = self.cutter.cut(texts.tokens) if self.cutter else texts.tokens
        texts_per_token = len(texts) / max(1, len(tokens.ids))
        return self._engine.start(tokens, lambda amount: advance(amount * texts_per_token), keep)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"embed.{key}: must be one of {', '.join(choices)}, got {value!r}")


def _take_texts(texts: Texts) -> pa.Array:
    """Texts as one Arrow array of strings.

    :raises DataError: if they are none.
    """
    if isinstance(texts, str):
        raise DataError("texts: a single text instead of a list", hint="put it into a list")
    try:
        is_array = isinstance(texts, pa.Array | pa.ChunkedArray)
        array: Any = texts if is_array else wrap_texts(texts)
    except (pa.ArrowException, UnicodeError) as error:
        raise DataError(f"texts: not a list of strings ({error})") from error
    if array.type not in (pa.string(), pa.large_string()):
        raise DataError(f"texts: an array of {array.type} instead of strings")
    if isinstance(array, pa.ChunkedArray):  # as one array, whose offsets may need 64 bits
        array = array.cast(pa.large_string()).combine_chunks()
    if array.null_count:
        first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"texts: {array.null_count:,} of {len(array):,} are missing, the first is number "
            f"{first:,} (counted from 0)",
            hint="drop them, or put empty texts in their place",
        )
    return array
