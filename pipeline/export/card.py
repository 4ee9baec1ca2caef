"""The model card of an export: what the model is for people, and metadata for the model hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.assets import Asset
from pipeline.model.saved import Heads, SavedHead
from pipeline.version import __version__

Figures = Mapping[str, Mapping[str, Any]]  # task → metric → value

# What the licences of the backbones that this project knows are called on the hub. Heads on a
# backbone are handed on with its weights, so its licence holds for them.
_LICENSES = {
    "thenlper/gte-base": "mit",
    "sentence-transformers/all-MiniLM-L6-v2": "apache-2.0",
    "sentence-transformers/all-mpnet-base-v2": "apache-2.0",
}
UNKNOWN_LICENSE = "unknown"
# Datasets that `fetch` knows by a name of its own → their ids on the hub.
_HUB_DATASETS = {"sms-spam-collection": "codesignal/sms-spam-collection"}
# Metric of the report → its id on the hub, and the arguments that make it this one.
_HUB_METRICS: Mapping[str, tuple[str, Mapping[str, Any] | None]] = {
    "accuracy": ("accuracy", None),
    "f1": ("f1", None),
    "f1_macro": ("f1", {"average": "macro"}),
    "f1_micro": ("f1", {"average": "micro"}),
    "f1_weighted": ("f1", {"average": "weighted"}),
    "roc_auc": ("roc_auc", None),
    "mean_absolute_error": ("mae", None),
    "root_mean_squared_error": ("mse", {"squared": False}),
    "r2": ("r_squared", None),
}
# The parts that figures may be of, those that tell more of new texts first.
_PARTS = ("test", "validation")
_SHOWN_CLASSES = 20  # of a task, in the table of tasks


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    :param name: the name of the model.
    :param heads: the heads.
    :param dataset: what the texts were taken from.
    :param backbone: what the vectors were made with.
    :param license: the licence's id on the hub; ``None`` for that of a known backbone.
    :param report: part → the figures of the last report; empty if there are none of these heads.
    :param agreement: a sentence on how the graph was checked.
    :param files: name → what it holds.
    """

    name: str
    heads: Heads
    dataset: Asset
    backbone: Asset
    license: str | None
    report: Mapping[str, Figures]
    agreement: str
    files: Mapping[str, str]

    @property
    def hub_license(self) -> str:
        """The licence's id on the hub."""
        return self.license or _LICENSES.get(self._hub_backbone or "", UNKNOWN_LICENSE)

    @property
    def _part(self) -> str | None:
        """The part whose figures the card tells; ``None`` if it tells none."""
        return next((part for part in _PARTS if part in self.report), None)

    @property
    def _figures(self) -> Figures:
        return self.report[self._part] if self._part else {}

    @property
    def _hub_backbone(self) -> str | None:
        """The backbone's id on the hub, without a revision; ``None`` of a local folder."""
        return None if self.backbone.path is not None else self.backbone.id.partition("@")[0]

    @property
    def _hub_dataset(self) -> str | None:
        """The dataset's id on the hub; ``None`` if it is not from there."""
        repos = {self._find_hub_repo(member.id) for member in self.dataset.list_members()}
        return repos.pop() if len(repos) == 1 else None

    @staticmethod
    def _find_hub_repo(name: str) -> str | None:
        if name.startswith("hf://datasets/"):
            owner, repo = name.split("/")[3:5]
            return f"{owner}/{repo.partition('@')[0]}"
        return _HUB_DATASETS.get(name)

    @property
    def _dataset_name(self) -> str:
        """The dataset's name for people, which tells no folder of this machine."""
        return ", ".join(
            PurePath(member.id).name if member.path is not None else member.id
            for member in self.dataset.list_members()
        )

    @property
    def _backbone_name(self) -> str:
        return self._hub_backbone or PurePath(self.backbone.id).name

    def render(self) -> str:
        """The content of the card, ``README.md``."""
        parts = [
            f"---\n{self._make_metadata()}\n---\n\n# {self.name}\n",
            f"Labels texts: {', '.join(head.name for head in self.heads.heads)}. Heads on "
            f"the frozen backbone {self._backbone_name}, trained by embedding-pipeline "
            f"{__version__} on {self._dataset_name}.\n",
            self._describe_tasks(),
            _USE,
            self._describe_outputs(),
            self._describe_figures(),
            f"## How it was checked\n\n{self.agreement}\n",
            "\n".join(
                ["## Files\n", "| file | holds |", "| --- | --- |"]
                + [f"| `{name}` | {what} |" for name, what in self.files.items()]
            )
            + "\n",
        ]
        return "\n".join(part for part in parts if part)

    def _make_metadata(self) -> str:
        """The hub's metadata as YAML."""
        from huggingface_hub import ModelCardData

        hub_metrics = dict.fromkeys(
            _HUB_METRICS[metric][0] for _, metric in self._iterate_figures()
        )
        data = ModelCardData(
            base_model=self._hub_backbone,
            datasets=[self._hub_dataset] if self._hub_dataset else None,
            eval_results=list(self._iterate_results()) or None,
            library_name="onnx",
            license=self.hub_license,
            metrics=list(hub_metrics) or None,
            model_name=self.name,
            pipeline_tag="text-classification",
            tags=["onnx", "text-classification", "embedding-pipeline", "multitask"],
        )
        return data.to_yaml().strip()

    def _iterate_figures(self) -> Iterator[tuple[SavedHead, str]]:
        """The figures that the card tells: heads and metrics."""
        for head in self.heads.heads:
            for metric in head.type.headline:
                if self._figures.get(head.name, {}).get(metric) is not None:
                    yield head, metric

    def _iterate_results(self) -> Iterator[Any]:
        """The figures as the hub's ``EvalResult``."""
        from huggingface_hub import EvalResult

        for head, metric in self._iterate_figures():
            hub_metric, arguments = _HUB_METRICS[metric]
            yield EvalResult(
                task_type="text-classification",
                task_name=f"{head.name} ({head.type.name})",
                dataset_type=self._hub_dataset or self._dataset_name,
                dataset_name=self._dataset_name,
                # The hub joins the results of one configuration and split, whatever their task.
                dataset_config=head.name,
                dataset_split=self._part,
                metric_type=hub_metric,
                metric_name=f"{head.name} {metric}",
                metric_args=dict(arguments) if arguments else None,
                metric_value=self._figures[head.name][metric],
            )

    def _describe_tasks(self) -> str:
        """A table of the tasks."""
        lines = ["| task | type | classes |", "| --- | --- | --- |"]
        for head in self.heads.heads:
            shown = ", ".join(head.classes[:_SHOWN_CLASSES])
            more = f", … ({len(head.classes)})" if len(head.classes) > _SHOWN_CLASSES else ""
            lines.append(f"| {head.name} | {head.type.name} | {_escape(shown + more)} |")
        return "\n".join(lines) + "\n"

    def _describe_outputs(self) -> str:
        """What the graph takes and gives."""
        prompt = self.heads.recipe.get("prompt")
        behind = f"Each text stands behind the prompt `{prompt}`. " if prompt else ""
        return (
            f"`model.onnx` takes `input_ids` and `attention_mask`, int64, [texts, tokens], at most "
            f"{self.heads.recipe['max_tokens']} tokens a text, as `tokenizer.json` makes them; "
            f"longer texts are cut. {behind}For each task it gives `TASK_label`: the index of the "
            "class; of a multilabel task 0 or 1 for each tag; of a regression the number; and, but "
            "of a regression, `TASK_probabilities`, [texts, classes], calibrated. `labels.json` "
            "has the names of the classes, in the order of their index, and the thresholds, which "
            "the labels already follow.\n"
        )

    def _describe_figures(self) -> str:
        """A table of the figures with their intervals."""
        rows = []
        for head, metric in self._iterate_figures():
            of_task = self._figures[head.name]
            ends = of_task.get("intervals", {}).get(metric)
            interval = f"{ends['low']:.4f} to {ends['high']:.4f}" if ends else ""
            rows.append(
                f"| {head.name} | {metric} | {of_task[metric]:.4f} | {interval} | "
                f"{of_task['rows']} |"
            )
        if not rows:
            return ""
        return (
            f"## Figures\n\n{self._describe_part()}\n\n"
            "| task | metric | value | 95 % interval | rows |\n| --- | --- | --- | --- | --- |\n"
            + "\n".join(rows)
            + "\n"
        )

    def _describe_part(self) -> str:
        """What the figures are of."""
        parts = self.heads.trained_parts
        sentences = [f"Of the {self._part} part, by vectors as embedding-pipeline stores them."]
        if self._part != _PARTS[0]:
            sentences.append("There is no test part: the heads were chosen by these rows.")
        if self.heads.scored_sha256 is not None:
            sentences.append(
                "They are figures of heads that saw only rows of the train part. Those in this "
                f"folder were trained again, likewise, on {' and '.join(parts)}."
            )
        return " ".join(sentences)


_USE = """## Use

Without the program that trained it, by ONNX Runtime on any machine:

```console
$ pip install onnxruntime tokenizers numpy
$ python predict.py "a text" "another text"
```

With it, vectors and probabilities as during training:

```python
import pipeline

with pipeline.load(".") as model:  # this folder
    print(model.predict(["a text", "another text"]))
```
"""


def _escape(text: str) -> str:
    """Names of classes for the cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
