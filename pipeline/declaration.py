"""What a backbone's folder declares of how one vector is made of a text.

Models for sentence-transformers say it in four small files: ``modules.json`` lists the parts of the
model, ``1_Pooling/config.json`` says how the vectors of a text's tokens become one,
``sentence_bert_config.json`` at which length texts are cut, and
``config_sentence_transformers.json`` which prompts stand before texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import AssetError, SettingsError
from pipeline.files import parse_json, read_bounded

MODULES = "modules.json"
POOLING_CONFIG = "1_Pooling/config.json"
LENGTH_CONFIG = "sentence_bert_config.json"
PROMPT_CONFIG = "config_sentence_transformers.json"
DECLARATIONS = (MODULES, POOLING_CONFIG, LENGTH_CONFIG, PROMPT_CONFIG)
_TOKENIZER_CONFIG = "tokenizer_config.json"
# How sentence-transformers calls a pooling → what it is called here.
_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
}
# The keys of older files → the names of newer ones, in the order in which several are joined.
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_OLD_PREFIX = "pooling_mode_"
_OURS = "sentence_transformers."  # what the types of modules begin with, but for a model's own code
_CHAIN = ("Transformer", "Pooling", "Normalize")
_REMEDY = (
    "name what you want yourself (`embed.pooling: mean`, and `embed.normalize: false`), which then "
    "is of the backbone without this; or choose another backbone in fetch.backbones"
)


@dataclass(frozen=True)
class Declaration:
    """How a model makes one vector of the vectors of a text's tokens.

    :param pooling: the names of its poolings, whose vectors are joined in this order.
    :param normalize: whether the vector is scaled to length 1.
    :param include_prompt: whether the tokens of a prompt are pooled with those of the text.
    :param is_declared: whether the folder says so; one without ``modules.json`` is taken to mean
        the mean, as sentence-transformers takes it.
    """

    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True
    is_declared: bool = False

    @classmethod
    def read(cls, folder: Path) -> Declaration:
        """Read ``modules.json`` and the configuration of the pooling that it names.

        :param folder: the backbone's folder.
        :raises AssetError: if a part of the model is of no known kind, or a file is missing or odd.
        """
        path = folder / MODULES
        modules = _read_json(path, list)
        if modules is None:
            return cls()
        kinds = [_read_kind(path, module) for module in modules]
        names = [kind for kind, _ in kinds]
        if names not in (list(_CHAIN[:2]), list(_CHAIN)):
            raise AssetError(
                f"{path}: the parts of the model are {', '.join(names) or 'none'}, not "
                f"{', '.join(_CHAIN[:2])} and perhaps {_CHAIN[2]}, in this order",
                hint=_REMEDY,
            )
        _check_output(folder / LENGTH_CONFIG)
        config_path = folder / kinds[1][1] / "config.json"
        config = _read_json(config_path, dict)
        if config is None:
            raise AssetError(
                f"{config_path}: no such file, but {path} names it",
                hint="copy or fetch the whole folder again (`pipeline fetch --refresh`), or "
                + _REMEDY,
            )
        return cls(
            pooling=_read_pooling(config_path, config),
            normalize=names == list(_CHAIN),
            include_prompt=config.get("include_prompt", True) is not False,
            is_declared=True,
        )


def read_prompts(folder: Path) -> Mapping[str, str]:
    """The prompts that a model was trained with: name → text.

    :param folder: the backbone's folder.
    :raises AssetError: if the file is odd.
    """
    config = _read_json(folder / PROMPT_CONFIG, dict) or {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(t, str) for t in prompts.values()):
        raise AssetError(
            f"{folder / PROMPT_CONFIG}: prompts are no texts with names",
            hint="give the text itself in embed.prompt, and copy or fetch the folder again",
        )
    return prompts


def read_default_prompt(folder: Path) -> str | None:
    """The name of the prompt that a model's own library puts before a text unless told otherwise.

    :param folder: the backbone's folder.
    :returns: a name with a text, or ``None`` if there is none.
    """
    name = (_read_json(folder / PROMPT_CONFIG, dict) or {}).get("default_prompt_name")
    return name if isinstance(name, str) and read_prompts(folder).get(name) else None


def find_prompt(folder: Path, setting: str) -> str:
    """The text that a setting puts before each text.

    :param folder: the backbone's folder.
    :param setting: ``none``, the name of one of the model's prompts, or a text.
    :returns: the text, empty for none.
    :raises SettingsError: if it looks like a name, and the model has no prompt of that name.
    """
    if setting == "none":
        return ""
    prompts = read_prompts(folder)
    if setting in prompts:
        return prompts[setting]
    # A misspelt name would otherwise stand before each text as a word.
    if setting.replace("_", "").replace("-", "").isalnum():
        known = f"it has {', '.join(map(repr, prompts))}" if prompts else "it declares none"
        raise SettingsError(
            f"embed.prompt: the backbone has no prompt {setting!r}; {known}",
            hint="a text of your own has a character beside letters, digits, - and _, such as the "
            "colon and the blank of 'query: '",
        )
    return setting


def read_max_tokens(folder: Path, most: int) -> int:
    """The length at which a model's own library cuts texts, special tokens counted in.

    :param folder: the backbone's folder.
    :param most: the longest text that the backbone has positions for.
    :returns: what ``sentence_bert_config.json`` says, else the tokenizer's configuration, else
        ``most``; ``most`` in any case where that is shorter.
    :raises AssetError: if a file is odd.
    """
    for name, key in ((LENGTH_CONFIG, "max_seq_length"), (_TOKENIZER_CONFIG, "model_max_length")):
        length = (_read_json(folder / name, dict) or {}).get(key)
        if length is None:
            continue
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
            raise AssetError(
                f"{folder / name}: {key} is {length!r:.60}, no length of a text",
                hint="give the number of tokens in embed.max_tokens",
            )
        return int(min(length, most))
    return most


def wants_lower_case(folder: Path) -> bool:
    """Whether a model wants texts in lower case, which its tokenizer does not see to.

    :param folder: the backbone's folder.
    """
    if (_read_json(folder / LENGTH_CONFIG, dict) or {}).get("do_lower_case") is not True:
        return False
    normalizer = (_read_json(folder / "tokenizer.json", dict) or {}).get("normalizer")
    return not _lowers(normalizer)


def _lowers(normalizer: Any) -> bool:
    """Whether what a tokenizer does to texts first puts them into lower case."""
    if not isinstance(normalizer, dict):
        return False
    parts = normalizer.get("normalizers")
    return (
        normalizer.get("type") == "Lowercase"
        or normalizer.get("lowercase") is True
        or (isinstance(parts, list) and any(map(_lowers, parts)))
    )


def _read_kind(path: Path, module: Any) -> tuple[str, str]:
    """The kind of a part of a model, and its folder.

    :raises AssetError: if this program has no such part, or the folder is none below the model's.
    """
    kind = module.get("type") if isinstance(module, dict) else None
    where = module.get("path", "") if isinstance(module, dict) else None
    if not isinstance(kind, str) or not isinstance(where, str):
        raise AssetError(f"{path}: {module!r:.80} is no part of a model", hint=_REMEDY)
    name = kind.rpartition(".")[2]
    if not kind.startswith(_OURS) or name not in _CHAIN:
        named = f"{where} of the type {kind}" if where else kind
        raise AssetError(
            f"{path}: the model has the part {named}, which this program does not know",
            hint=_REMEDY,
        )
    if PurePosixPath(where).is_absolute() or ".." in PurePosixPath(where).parts:
        raise AssetError(f"{path}: {where} is no folder below the model's", hint=_REMEDY)
    return name, where


def _check_output(path: Path) -> None:
    """Make sure that what is pooled are the vectors of the last layer's tokens.

    :raises AssetError: if the model names another of its outputs.
    """
    config = _read_json(path, dict) or {}
    by_kind = config.get("modality_config")
    of_text = by_kind.get("text") if isinstance(by_kind, dict) else None
    output = of_text.get("method_output_name") if isinstance(of_text, dict) else None
    if output not in (None, "last_hidden_state"):
        raise AssetError(
            f"{path}: the model pools its output {output!r:.80}, and this program knows only the "
            "vectors of tokens, last_hidden_state",
            hint=_REMEDY,
        )


def _read_pooling(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The poolings that a configuration names, in newer or in older form."""
    modes: Any = config.get("pooling_mode")
    if modes is None:
        odd = [key for key in config if key.startswith(_OLD_PREFIX) and key not in _OLD_KEYS]
        modes = [mode for key, mode in _OLD_KEYS.items() if config.get(key)]
        modes += [key.removeprefix(_OLD_PREFIX) for key in odd if config[key]]
        modes = modes or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    known = isinstance(modes, Sequence) and all(isinstance(mode, str) for mode in modes)
    if not known or not modes or len(set(modes)) < len(modes):
        raise AssetError(f"{path}: {modes!r:.80} is no pooling", hint=_REMEDY)
    unknown = [mode for mode in modes if mode not in _MODES]
    if unknown:
        raise AssetError(
            f"{path}: the model pools by {', '.join(unknown)}, which this program does not know; "
            f"it knows {', '.join(_MODES)}",
            hint=_REMEDY,
        )
    return tuple(_MODES[mode] for mode in modes)


def _read_json(path: Path, kind: type[Any]) -> Any:
    """The content of a small file; ``None`` if there is no such file.

    :raises AssetError: if it is no JSON of this kind.
    """
    try:
        content = parse_json(read_bounded(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise AssetError(
            f"{path}: damaged ({error})", hint="copy or fetch the whole folder again"
        ) from error
    if not isinstance(content, kind):
        what = "a list of the model's parts" if kind is list else "an object"
        raise AssetError(f"{path}: is not {what}", hint="copy or fetch the whole folder again")
    return content
