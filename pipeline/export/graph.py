"""A backbone, its pooling and all heads as one module, which torch writes as one ONNX graph."""

from __future__ import annotations

import contextlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.embed.backbone import Backbone, compute_layers
from pipeline.embed.pooling import scale_to_unit
from pipeline.errors import ExportError
from pipeline.export.labels import INPUTS, name_outputs
from pipeline.model.saved import Heads, SavedHead
from pipeline.model.tasks import SharedOrdinal, TaskType
from pipeline.model.weights import MAX_COORDINATE, Centers, HeadWeights

# Of ONNX's operators: what torch's exporter writes natively, and any ONNX Runtime since 1.14 runs.
OPSET = 18
# Protocol Buffers, ONNX's file format, hold 2 GiB. Larger weights go to a file of their own.
MOST_FILE_BYTES = 1_900_000_000
# The shape of the token ids that the module is traced with. Neither size is 0 or 1, which torch
# would take for constants.
_TRACED_SHAPE = (2, 4)


class Tail(nn.Module, ABC):
    """Logits of one head to its outputs, as the ``TaskType`` of the same name answers in NumPy.

    As there, logits are divided by the temperature in float32, and all that follows is in float64.

    :param head: the head.
    """

    thresholds: Tensor

    def __init__(self, head: SavedHead) -> None:
        super().__init__()
        self._temperature = head.decision.temperature
        thresholds = torch.tensor(head.decision.thresholds or (0.5,), dtype=torch.float64)
        self.register_buffer("thresholds", thresholds)

    def scale(self, logits: Tensor) -> Tensor:
        """Logits at the head's temperature: float64, [B, O]."""
        return (logits / self._temperature).double()

    @abstractmethod
    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The outputs that ``name_outputs`` names.

        :param logits: float32, [B, O].
        :returns: probabilities, float32, [B, C]; class index, int64, [B].
        """


class _Binary(Tail):
    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        scaled = self.scale(logits)
        yes = torch.sigmoid(scaled)
        label = (yes > self.thresholds).long().squeeze(1)
        return torch.cat([torch.sigmoid(-scaled), yes], dim=1).float(), label


class _Multiclass(Tail):
    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        return torch.softmax(self.scale(logits), dim=1).float(), logits.argmax(dim=1)


class _Ordinal(Tail):
    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        columns = torch.split(torch.sigmoid(self.scale(logits)), 1, dim=1)
        above = [torch.ones_like(columns[0])]
        for column in columns:  # a running minimum, for which ONNX has no operator
            above.append(torch.minimum(above[-1], column))
        above.append(torch.zeros_like(columns[0]))
        bounds = torch.cat(above, dim=1)
        probabilities = bounds[:, :-1] - bounds[:, 1:]
        return probabilities.float(), self.decide(logits, probabilities)

    def decide(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """The class of each text, int64, [B], as ``TaskType.predict`` has it.

        :param logits: float32, [B, O].
        :param probabilities: float64, [B, C].
        """
        return probabilities.argmax(dim=1)


class _SharedOrdinal(_Ordinal):
    def decide(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        return (logits > 0).long().sum(dim=1)


class _Multilabel(Tail):
    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The tags are 0 or 1: int64, [B, C]."""
        probabilities = torch.sigmoid(self.scale(logits))
        return probabilities.float(), (probabilities > self.thresholds).long()


class _Regression(Tail):
    unit: Tensor

    def __init__(self, head: SavedHead) -> None:
        super().__init__(head)
        unit = torch.tensor([head.spread, head.center], dtype=torch.float64)
        self.register_buffer("unit", unit)

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The number, in the unit of the labels: float64, [B]."""
        return (logits[:, 0].double() * self.unit[0] + self.unit[1],)


# Name of a type of task → what makes its outputs.
TAILS: Mapping[str, type[Tail]] = {
    "binary": _Binary,
    "multiclass": _Multiclass,
    "ordinal": _Ordinal,
    "multilabel": _Multilabel,
    "regression": _Regression,
}


# Types whose heads had another form, see ``pipeline.model.tasks.OLDER_TYPES``.
OLDER_TAILS: Mapping[type[TaskType], type[Tail]] = {SharedOrdinal: _SharedOrdinal}


def make_tail(head: SavedHead) -> Tail:
    """What turns the logits of a head into its answers."""
    return OLDER_TAILS.get(type(head.type), TAILS[head.type.name])(head)


class _Kernel(nn.Module):
    """How like texts are to the centres of kernel heads, as ``Centers.compare`` has it."""

    positions: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, centers: Centers) -> None:
        super().__init__()
        self.register_buffer("positions", torch.from_numpy(centers.positions))
        self.register_buffer("scale", torch.from_numpy(centers.scale))
        self.register_buffer("shift", torch.from_numpy(centers.shift))

    def forward(self, features: Tensor) -> Tensor:
        positions = self.positions.float()
        z = (features * self.scale + self.shift).clamp(-MAX_COORDINATE, MAX_COORDINATE)
        z = z.half().float()
        squares = z.square().sum(dim=1, keepdim=True) + positions.square().sum(dim=1)
        return torch.exp(-(squares - 2 * (z @ positions.T)).clamp_min(0))


class _Logits(nn.Module):
    """The logits of one head, as ``HeadWeights.compute_logits`` and ``weigh`` have them."""

    weight: Tensor
    bias: Tensor
    input_weight: Tensor | None
    input_bias: Tensor | None

    def __init__(self, weights: HeadWeights) -> None:
        super().__init__()
        for name in ("weight", "bias", "input_weight", "input_bias"):
            value = getattr(weights, name)
            self.register_buffer(name, None if value is None else torch.from_numpy(value))
        self._is_kernel = weights.centers is not None

    def forward(self, features: Tensor) -> Tensor:
        """Logits: float32, [B, O].

        :param features: float32, [B, D]; of a kernel head what its centres gave, [B, U].
        """
        if self._is_kernel:  # whose large weights of both signs nearly cancel each other
            return (features.double() @ self.weight.double().T + self.bias.double()).float()
        if self.input_weight is not None and self.input_bias is not None:
            features = torch.relu(features @ self.input_weight.T + self.input_bias)
        return features @ self.weight.T + self.bias


class TextModel(nn.Module):
    """Token ids to the answers of all heads.

    :param backbone: the backbone in float32.
    :param heads: the heads.
    :param normalize: whether vectors are scaled to length 1.
    """

    def __init__(self, backbone: Backbone, heads: Heads, *, normalize: bool = False) -> None:
        super().__init__()
        self.encoder = backbone.model
        self._pooling = backbone.pooling
        self._normalize = normalize
        self._heads = heads
        weights = {head.name: head.weights[0] for head in heads.heads}  # those of the first seed
        self.kernels = nn.ModuleList()
        # Heads may share their centres, which are the largest tensors beside the backbone's.
        shared: dict[tuple[int, tuple[int, ...]], int] = {}
        self._kernel_of: dict[str, int] = {}
        for head in heads.heads:
            centers = weights[head.name].centers
            if centers is None:
                continue
            number = shared.setdefault((id(centers), head.layers), len(shared))
            if number == len(self.kernels):
                self.kernels.append(_Kernel(centers))
            self._kernel_of[head.name] = number
        self.logits = nn.ModuleList([_Logits(weights[head.name]) for head in heads.heads])
        self.tails = nn.ModuleList([make_tail(head) for head in heads.heads])
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all heads, in their order.

        :param input_ids: token ids of padded texts: int64, [B, T].
        :param attention_mask: 1 on real tokens, 0 on padding: int64, [B, T].
        :returns: for each head the outputs that ``name_outputs`` names.
        """
        states = compute_layers(self.encoder, input_ids, attention_mask)
        mask = attention_mask > 0
        pooled = {n: self._pooling.pool_padded(states[n], mask) for n in self._heads.layers}
        if self._normalize:
            pooled = {n: scale_to_unit(vectors) for n, vectors in pooled.items()}
        joined: dict[tuple[int, ...], Tensor] = {}
        likeness: dict[int, Tensor] = {}
        outputs: list[Tensor] = []
        for head, logits, tail in zip(self._heads.heads, self.logits, self.tails, strict=True):
            if head.layers not in joined:
                joined[head.layers] = torch.cat([pooled[n] for n in head.layers], dim=1)
            features = joined[head.layers]
            kernel = self._kernel_of.get(head.name)
            if kernel is not None:
                if kernel not in likeness:
                    likeness[kernel] = self.kernels[kernel](features)
                features = likeness[kernel]
            outputs += tail(logits(features))
        return tuple(outputs)


def write_graph(
    backbone: Backbone,
    heads: Heads,
    path: Path,
    about: Mapping[str, str],
    *,
    normalize: bool = False,
) -> tuple[str, ...]:
    """Write a model as an ONNX graph.

    Its weights stand in the file itself, or, if they are too large for it, in a file beside it that
    has ``DATA_ENDING`` behind the same name.

    :param backbone: the backbone in float32, whose attention is set to a form that ONNX has.
    :param heads: the heads.
    :param path: the file to write.
    :param about: metadata to write into the file.
    :param normalize: whether vectors are scaled to length 1.
    :returns: the names of those nodes of the graph that are not of the backbone.
    :raises ExportError: if torch cannot write the backbone as ONNX.
    """
    backbone.model.set_attn_implementation("eager")
    model = TextModel(backbone, heads, normalize=normalize)
    axes = {0: "batch", 1: "tokens"}
    ids = torch.arange(_TRACED_SHAPE[1]).repeat(_TRACED_SHAPE[0], 1)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    outputs = [name for head in heads.heads for name in name_outputs(head)]
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model,
                (ids, mask),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=outputs,
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"{backbone.architecture.model_type}: torch cannot write this backbone as ONNX: "
                f"{reason}",
                hint="choose another backbone in fetch.backbones",
            ) from error
        assert program is not None
        program.model.metadata_props.update(about)
        own_nodes = _forget_origins(program.model.graph)
        program.save(path, external_data=_count_bytes(model) > MOST_FILE_BYTES)
        return own_nodes


def _forget_origins(graph: Any) -> tuple[str, ...]:
    """Drop what torch notes of each node: lines of Python, with paths of this machine.

    :returns: the names of those nodes that these notes say are not of the backbone.
    """
    own_nodes = []
    for node in graph.all_nodes():
        scopes = str(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
        if "'encoder" not in scopes:
            own_nodes.append(str(node.name))
        for noted in (node, *node.outputs):
            noted.metadata_props.clear()
    return tuple(own_nodes)


def _count_bytes(model: nn.Module) -> int:
    """The size of a model's weights, those that parts share counted once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says to its developers, such as that torchvision is missing, to itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
