"""The frozen backbone as a transformer of scikit-learn, with a store of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline.architecture import Architecture
from pipeline.arrays import wrap_keys
from pipeline.assets import check_files
from pipeline.config import EmbedSettings
from pipeline.config_errors import describe_errors
from pipeline.corpus.keys import hash_texts
from pipeline.corpus.texts import find_fault
from pipeline.errors import DataError, LockedError, SettingsError, StoreError
from pipeline.files import hold_lock
from pipeline.project import user_cache
from pipeline.recipe import (
    Precision,
    list_possible_precisions,
    make_recipe,
    resolve_precision,
    resolve_text_recipe,
)
from pipeline.store import (
    Recipe,
    Rows,
    StoreUpdate,
    find_keys,
    finish_commit,
    name_columns,
    read_vectors,
)

if TYPE_CHECKING:
    from pipeline.embed.embedder import Embedder

_CACHE_FOLDER = "encoder"  # below the user's cache folder
_FINGERPRINT_CHARACTERS = 32  # that name a store
_PIECE_TEXTS = 1024  # embedded between two looks at the clock
_KEEP_SECONDS = 15.0  # finished vectors go to the disk this often, so that a kill costs no more
_WAIT_SECONDS = 0.1  # between two tries to write to a store that another process writes to


class TextsError(DataError, ValueError):
    """Texts that an encoder cannot take; scikit-learn and its users expect a ``ValueError``."""


class FrozenTextEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to pooled vectors of a frozen backbone, each distinct text embedded once.

    ::

        model = make_pipeline(FrozenTextEncoder("models/all-MiniLM-L6-v2"), LogisticRegression())
        cross_val_score(model, texts, labels)  # every fold takes its vectors from the store

    Nothing is learned from the texts. Vectors are kept in a store, a folder for each combination of
    backbone and settings that change a vector; other processes may use it at the same time. torch
    is imported when a text comes that has no vector.

    :param backbone: a Hugging Face folder, or an id on the hub, as ``fetch.backbones`` has them.
    :param layers: ``all``, ``last``, or numbers of layers, whose vectors are joined: 0 is the
        output of the embedding layer, -1 the last layer.
    :param max_tokens: length to cut longer texts to, special tokens counted in; ``auto`` is what
        the backbone declares.
    :param precision: the type of weights and activations; ``auto`` is that of the store that is
        there, else float16 on a GPU, bfloat16 on a CPU that multiplies it natively, and float32 on
        others.
    :param pooling: way to make a text's vector of its tokens', or several, whose vectors are
        joined, as ``embed.pooling`` has them; ``auto`` is what the backbone declares.
    :param prompt: ``none``, the name of one of the backbone's prompts, or a text to put before
        each text.
    :param normalize: whether vectors are scaled to length 1: ``False``, or ``auto`` for what the
        backbone declares.
    :param long_texts: ``cut`` to cut texts that are too long, ``windows`` to embed them whole.
    :param cache: folder that holds the stores; ``None`` for one in the user's cache folder.
    :param devices: ``auto`` for all GPUs or else the CPU, ``cpu``, ``cuda``, ``cuda:N``, ``mps``,
        or several.
    :param threads: threads of the CPU; ``None`` for all cores.
    :ivar asset_: the record of the backbone, with the hashes of its files.
    :ivar folder_: the folder of the backbone.
    :ivar layers_: numbers of the L layers, ascending.
    :ivar width_: D, the width of one layer's vector.
    :ivar n_features_in_: 1, the column of texts.
    :ivar feature_names_in_: the name of that column, if it has one.
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str],
        *,
        layers: Literal["all", "last"] | Sequence[int] = "last",
        max_tokens: int | Literal["auto"] = 128,
        precision: Precision | Literal["auto"] = "auto",
        pooling: str | Sequence[str] = "auto",
        prompt: str = "none",
        normalize: Literal[False, "auto"] = False,
        long_texts: Literal["cut", "windows"] = "cut",
        cache: str | os.PathLike[str] | None = None,
        devices: str | Sequence[str] = "auto",
        threads: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.max_tokens = max_tokens
        self.precision = precision
        self.pooling = pooling
        self.prompt = prompt
        self.normalize = normalize
        self.long_texts = long_texts
        self.cache = cache
        self.devices = devices
        self.threads = threads

    def fit(self, X: Any, y: Any = None) -> FrozenTextEncoder:
        """Find the backbone, and check that it can do what is asked for; no text is embedded.

        :param X: texts: a list, array or Series of strings, or a table with one column: [B].
        :param y: labels, which are of no account.
        :returns: the encoder itself.
        :raises TextsError: if there is no text, or one cannot be used.
        :raises AssetError: if the backbone cannot be had, or is not what a backbone should be.
        :raises SettingsError: if the backbone cannot do what is asked for.
        """
        from pipeline.fetch.run import fetch_backbone

        texts = self._read_texts(X)
        if not texts:
            raise TextsError("texts: 0 samples, where one is the least")
        self.asset_, folder = fetch_backbone(os.fspath(self.backbone))
        self.folder_ = str(folder)
        recipe = self._make_recipe("float32")
        self.layers_, self.width_ = recipe.layers, recipe.width
        self.n_features_in_ = 1
        names = _list_names(X)
        if names is not None:
            self.feature_names_in_ = np.array(names, object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """The vectors of texts, those without one in the store embedded now and kept there.

        :param X: texts: a list, array or Series of strings, or a table with one column: [B].
        :returns: the layers joined, in ascending order: float32, [B, L·D].
        :raises TextsError: if a text cannot be used.
        :raises StageError: if the backbone has changed since ``fit``.
        :raises StoreError: if the store is damaged.
        """
        check_is_fitted(self, "asset_")
        texts = self._read_texts(X)
        features = len(self.layers_) * self.width_
        if not texts:
            return np.empty((0, features), np.float32)
        keys = hash_texts(texts)
        recipe, known = self._choose_recipe(keys)
        folder = self._name_store(recipe)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            with _ONE_AT_A_TIME, _wait_for_lock(folder):
                self._embed(folder, recipe, missing)
        vectors = read_vectors(folder, keys, recipe.layers, fingerprint=recipe.fingerprint)
        return np.asarray(vectors.reshape(len(keys), features), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[Any]:
        """The names of the columns of ``transform``: ``layer_NN_i``, ``layer_NN_cls_i``.

        :param input_features: the name of the column of texts, which is of no account.
        :returns: strings as objects, [L·D].
        """
        check_is_fitted(self, "asset_")
        recipe = self._make_recipe("float32")
        names = [
            f"{column}_{number}"
            for layer in self.layers_
            for column in name_columns(recipe, layer)
            for number in range(self.width_ // len(recipe.poolings))
        ]
        return np.array(names, object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # vectors are always float32
        return tags

    def _read_texts(self, X: Any) -> list[str]:
        """The texts that an input holds, [B].

        :raises TextsError: if it holds something else, naming the first that cannot be used.
        """
        if isinstance(X, str):
            raise TextsError("texts: a single text instead of a list", hint="put it into a list")
        if hasattr(X, "tocsr"):
            raise TextsError("texts: a sparse matrix instead of a list")
        shape = getattr(X, "shape", None)
        if shape is not None and len(shape) == 2:
            if shape[1] != 1:
                raise TextsError(
                    f"texts: a table of {shape[1]:,} columns, where one is to hold the texts",
                    hint="name the column, or use a ColumnTransformer",
                )
            X = X.iloc[:, 0] if hasattr(X, "iloc") else np.asarray(X)[:, 0]
        elif shape is not None and len(shape) != 1:
            raise TextsError(f"texts: an array of {len(shape)} dimensions instead of one")
        try:
            values = X.tolist() if hasattr(X, "tolist") else list(X)
        except TypeError as error:
            raise TextsError(f"texts: a {type(X).__name__} instead of a list") from error
        for number, value in enumerate(values):
            fault = find_fault(value)
            if fault:
                raise TextsError(f"texts: number {number:,} (the first is 0): {fault}")
        return values

    def _make_recipe(self, precision: str) -> Recipe:
        from pydantic import ValidationError

        given: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "pooling": self.pooling,
            "prompt": self.prompt,
            "normalize": self.normalize,
            "long_texts": self.long_texts,
            "precision": self.precision,
            "dtype": "float32",
        }
        try:
            given["layers"] = self.layers if isinstance(self.layers, str) else tuple(self.layers)
        except TypeError as error:
            raise SettingsError(f"layers: {error}") from error
        try:
            settings = EmbedSettings.model_validate(given)
        except ValidationError as error:
            raise SettingsError("\n".join(describe_errors(error, EmbedSettings, given))) from error
        folder = Path(self.folder_)
        architecture = Architecture.read(folder)
        text_recipe = resolve_text_recipe(settings, architecture, folder)
        return make_recipe(self.asset_, architecture, settings, text_recipe, precision)

    def _name_store(self, recipe: Recipe) -> Path:
        parent = user_cache() / _CACHE_FOLDER if self.cache is None else Path(self.cache)
        return parent.expanduser().absolute() / recipe.fingerprint[:_FINGERPRINT_CHARACTERS]

    def _choose_recipe(self, keys: Sequence[bytes]) -> tuple[Recipe, set[bytes]]:
        """What the vectors are to be, and the keys of the texts that have such vectors.

        The precision of a store that is there already wins over what ``auto`` means on this
        machine: of several, that of the store that has most of the texts.

        :param keys: the keys of the texts wanted.
        """
        first = self.devices if isinstance(self.devices, str) else str(self.devices[0])
        wanted = set(keys)
        best: tuple[Recipe, set[bytes]] | None = None
        for precision in list_possible_precisions(self.precision, first):
            recipe = self._make_recipe(precision)
            known = set(_list_known(self._name_store(recipe)))
            if known and (best is None or len(known & wanted) > len(best[1] & wanted)):
                best = recipe, known
        if best is not None:
            return best
        from pipeline.device import choose_devices

        device = choose_devices(self.devices)[0].type
        recipe = self._make_recipe(resolve_precision(self.precision, device))
        return recipe, set(_list_known(self._name_store(recipe)))

    def _embed(self, folder: Path, recipe: Recipe, texts: Mapping[bytes, str]) -> None:
        """Add texts to a store that no other process writes to.

        :param texts: key → text; those that another process has added meanwhile are left out.
        :raises StoreError: if what the store holds cannot be read.
        """
        check_files(self.asset_, "backbone", Path(self.folder_))
        finish_commit(folder)
        held = _list_known(folder)
        known = set(held)
        keys = [*held, *(key for key in texts if key not in known)]
        if len(keys) == len(held):
            return
        update = StoreUpdate(folder, recipe, wrap_keys(keys))
        embedder = _open_embedder(recipe, self.folder_, self.devices, self.threads)
        for start, stop in update.list_missing():
            is_known, kept = update.find_known(start, stop)
            if is_known.all():
                update.write_shard(start, kept)
                continue
            places = np.flatnonzero(~is_known) + start
            wanted = [keys[place] for place in places.tolist()]
            lost = [key for key in wanted if key not in texts]
            if lost:
                raise StoreError(
                    f"{folder}: cannot read the vectors of {len(lost):,} texts",
                    hint="remove the folder; its vectors are then made anew",
                )
            fresh = _embed_in_pieces(embedder, update, [texts[key] for key in wanted], places)
            update.write_shard(start, _join_rows(is_known, kept, fresh))
        update.commit()


def _list_names(X: Any) -> list[str] | None:
    """The name of the one column of a table, if it has a name of text."""
    names = list(getattr(X, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def _list_known(folder: Path) -> list[bytes]:
    """The keys of the texts that a store holds, in its order; none if there is no store.

    :raises StoreError: if there is a store that cannot be read.
    """
    keys = find_keys(folder)
    return [] if keys is None else keys.to_pylist()


@contextlib.contextmanager
def _wait_for_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a store, as soon as no other process or thread holds it."""
    path = folder.with_name(f"{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold_lock(path, what=str(folder)))
                break
            except LockedError:
                time.sleep(_WAIT_SECONDS)
        yield


# The backbone that was used last stays loaded, as a pipeline may come with text after text. It
# stands here and not in an encoder, so that encoders stay small enough to copy and pickle. One
# thread at a time embeds, so that none closes the backbone of another.
_LOADED: dict[tuple[Any, ...], Embedder] = {}
_ONE_AT_A_TIME = threading.Lock()


def _open_embedder(
    recipe: Recipe, folder: str, devices: str | Sequence[str], threads: int | None
) -> Embedder:
    """An embedder for a recipe: the one that was used last, if it is of this recipe."""
    from pipeline.embed.embedder import Embedder

    wanted = devices if isinstance(devices, str) else tuple(devices)
    process = os.getpid()
    name = (process, recipe.fingerprint, folder, wanted, threads)
    if name not in _LOADED:
        for other in list(_LOADED):
            embedder = _LOADED.pop(other)
            if other[0] == process:  # and not of the process that this one was forked from
                embedder.close()
        _LOADED[name] = Embedder.from_recipe(recipe, folder, devices=devices, threads=threads)
    return _LOADED[name]


def _embed_in_pieces(
    embedder: Embedder, update: StoreUpdate, texts: Sequence[str], places: npt.NDArray[np.int64]
) -> Rows:
    """The rows of texts; what is finished is kept from time to time.

    :param update: the change of the store.
    :param texts: [b].
    :param places: indices of the texts among the keys of the store, [b].
    """
    pieces: list[Rows] = []
    last, waiting = time.monotonic(), 0
    for start in range(0, len(texts), _PIECE_TEXTS):
        pieces.append(embedder.embed(texts[start : start + _PIECE_TEXTS]))
        stop = start + len(pieces[-1].n_tokens)
        if time.monotonic() - last > _KEEP_SECONDS and stop < len(texts):
            update.save_progress(
                places[waiting:stop], _concatenate(pieces[waiting // _PIECE_TEXTS :])
            )
            last, waiting = time.monotonic(), stop
    return _concatenate(pieces)


def _concatenate(pieces: Sequence[Rows]) -> Rows:
    return Rows(
        np.concatenate([piece.n_tokens for piece in pieces]),
        np.concatenate([piece.vectors for piece in pieces]),
    )


def _join_rows(is_known: npt.NDArray[np.bool_], kept: Rows, fresh: Rows) -> Rows:
    """The rows of a shard of which some were known: [B] of ``is_known``, in their order."""
    B = len(is_known)
    n_tokens = np.empty(B, np.int32)
    vectors = np.empty((B, *fresh.vectors.shape[1:]), fresh.vectors.dtype)
    n_tokens[is_known], vectors[is_known] = kept.n_tokens, kept.vectors
    n_tokens[~is_known], vectors[~is_known] = fresh.n_tokens, fresh.vectors
    return Rows(n_tokens, vectors)
