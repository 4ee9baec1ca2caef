"""When vectors are gauged by Hugging Face, and what of it is remembered.

The same backbone by the same code on the same processor gives the same vectors, so that gauging
them once is enough. Hugging Face's libraries take seconds to import, which a run that finds a gauge
remembered is spared. A gauge that failed is never remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import platform
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import onednn
from pipeline.architecture import Architecture
from pipeline.embed.fidelity import Fidelity, check_fidelity, measure_fidelity
from pipeline.embed.gpu import find_kernels
from pipeline.errors import PipelineError
from pipeline.files import add_hash, check_hash, hash_json, parse_json, read_bounded, write_json
from pipeline.project import user_cache

if TYPE_CHECKING:
    from pipeline.embed.backbone import Backbone
    from pipeline.embed.embedder import Embedder
    from pipeline.embed.tokens import Tokens
    from pipeline.store import Recipe, Rows

_FOLDER = "gauges"  # in the user's cache folder, beside the backbones
# The parts of /proc/cpuinfo that tell the kind of a processor, of x86 and of Arm.
_CPU_FACTS = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
}  # fmt: skip
_CPU_BYTES = 16_384  # of /proc/cpuinfo, which has an entry for each core; the first is shorter
# A run of more operations than this takes minutes, so that it does not feel the seconds of another
# gauge.
_LONG_RUN_OPERATIONS = {"cpu": 5e13, "mps": 5e14, "cuda": 1e16}
_MOST_KEPT = 100  # files in the folder
_MOST_TEXTS = 1024  # of those at hand, of which the gauge draws a sample
# The sentences that vectors are gauged by where hardly any texts are at hand.
SENTENCES = (
    "Yes.",
    "Thank you for your message!",
    "Meet me at 7:30 pm, third floor, room 12-B?",
    "The quick brown fox jumps over the lazy dog, and then it sleeps until noon.",
    "Winner! You were selected for a prize of £1,000; call 0800 123 456 before Friday to claim it.",
    "I would like to return the two lamps that I ordered last week, since one of them was broken "
    "when it arrived and the other one is not of the colour that your catalogue shows.",
    "It rained for most of the morning. " * 6,
    "A frozen model turns each text into one vector, and small heads learn to answer from it. "
    * 12,
)


class Gauge:
    """Gauges the vectors of one embedder, unless the same have been gauged on this machine before.

    :param embedder: what makes the vectors.
    :param recipe: all that changes them.
    :ivar remembered: what the gauge has found before; ``None`` if it has not run.
    """

    def __init__(self, embedder: Embedder, recipe: Recipe) -> None:
        self._embedder = embedder
        self._subject = _describe_subject(embedder, recipe)
        self._path = user_cache() / _FOLDER / f"{hash_json(self._subject)}.json"
        self.remembered = self._recall()
        self._reference: Future[Backbone] | None = None

    def load_ahead(self) -> None:
        """Load Hugging Face and the weights in another thread, before the first vectors are there.

        What goes wrong there is raised by ``measure``.
        """
        loading = ThreadPoolExecutor(1, "gauge")
        self._reference = loading.submit(self._embedder.load_reference)
        loading.shutdown(wait=False)

    def measure(self, tokens: Tokens, rows: Rows) -> Fidelity:
        """Gauge vectors, and remember what was found.

        :param tokens: token ids of B texts.
        :param rows: the rows of these texts.
        :raises StoreError: if they are further off than the precision explains.
        :raises AssetError: if Hugging Face cannot load the backbone.
        """
        embedder = self._embedder
        if self._reference is not None:
            reference = self._reference.result()
        else:
            reference = embedder.load_reference()
        fidelity = measure_fidelity(
            reference,
            tokens,
            rows,
            embedder.layers,
            normalize=embedder.text_recipe.normalize,
            cutter=embedder.cutter,
        )
        check_fidelity(fidelity, self._embedder.precision)
        # A folder that takes no files only means that the gauge will run again.
        with contextlib.suppress(PipelineError, OSError):
            found = {"layers": self._embedder.layers, "fidelity": fidelity.to_record()}
            write_json(self._path, add_hash(self._subject | found))
            _drop_oldest(self._path.parent)
        return fidelity

    def _recall(self) -> Fidelity | None:
        """What the gauge has found of all layers; ``None`` if there is no file that says so."""
        try:
            record = check_hash(parse_json(read_bounded(self._path)))
            is_same = all(record[key] == value for key, value in self._subject.items())
            if not is_same or not set(self._embedder.layers) <= set(record["layers"]):
                return None
            numbers = [record["fidelity"][field.name] for field in fields(Fidelity)]
            if not all(type(number) in (int, float) for number in numbers):
                return None
            fidelity = Fidelity(*numbers)
            check_fidelity(fidelity, self._embedder.precision)
        except (OSError, PipelineError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return fidelity


def gauge_texts(embedder: Embedder, recipe: Recipe, texts: Sequence[str]) -> None:
    """Gauge an embedder by some texts, and where they are few by ``SENTENCES`` as well.

    Nothing happens if the same has been gauged on this machine before.

    :param embedder: what makes the vectors.
    :param recipe: all that changes them.
    :param texts: the first texts to embed: [B].
    :raises StoreError: if the vectors are further off than the precision explains.
    :raises AssetError: if the weights cannot be loaded.
    """
    gauge = Gauge(embedder, recipe)
    if gauge.remembered is None:
        more = SENTENCES if len(texts) < len(SENTENCES) else ()
        tokens = embedder.tokenize([*texts[:_MOST_TEXTS], *more])
        gauge.measure(tokens.tokens, embedder.start(tokens).finish())


def _drop_oldest(folder: Path) -> None:
    """Keep the latest gauges, of which every change of the code makes new ones."""
    kept = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in kept[_MOST_KEPT:]:
        path.unlink(missing_ok=True)


def repays_gauge(architecture: Architecture, tokens: int, device: str) -> bool:
    """Whether a run is so long that gauging its vectors again takes no time that a person feels.

    :param architecture: facts that the backbone's folder states.
    :param tokens: number of tokens of the run.
    :param device: type of the device: ``cpu``, ``cuda`` or ``mps``.
    """
    # A transformer layer has 12 D² weights, each of which is multiplied and added once a token.
    operations = 24.0 * architecture.layers * architecture.width**2 * tokens
    return operations >= _LONG_RUN_OPERATIONS[device]


def _describe_subject(embedder: Embedder, recipe: Recipe) -> dict[str, Any]:
    """All that a layer depends on: the backbone, the settings, the code, torch, the processor."""
    return {
        "recipe": {key: value for key, value in recipe.contents.items() if key != "layers"},
        "engine": _hash_engine(embedder),
        "torch": torch.__version__,
        "processor": describe_processor(embedder.devices[0]),
    }


def _hash_engine(embedder: Embedder) -> str:
    """SHA-256 of the code of the forward pass, so that no change of it goes without a gauge."""
    sources = [*Path(__file__).parent.rglob("*.py"), Path(onednn.__file__)]
    if embedder.family is not None:
        sources.append(Path(inspect.getfile(embedder.family)))
    has_kernels = find_kernels(embedder.devices[0]) is not None
    digest = hashlib.sha256(f"{embedder.family} {has_kernels}".encode())
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def describe_processor(device: torch.device) -> str:
    """The kind of processor that computes, as far as its results may depend on it.

    :param device: the device.
    """
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"{torch.cuda.get_device_name(device)}, {capability}, CUDA {torch.version.cuda}"
    facts = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            first = file.read(_CPU_BYTES).partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        facts += [value.strip() for key, _, value in pairs if key.strip() in _CPU_FACTS]
    except OSError:  # of a system without this file
        facts.append(platform.processor())
    return f"{device.type}: {', '.join(facts)}"
