"""Caching changes nothing: heads trained on cached vectors and through the live backbone agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from pipeline.assets import read_assets
from pipeline.config import Settings, load_settings, parse_settings
from pipeline.corpus.tables import read_labelled_rows
from pipeline.heads.configurations import list_configurations
from pipeline.heads.features import MemoryFeatures
from pipeline.heads.module import GradientHeads, ShuffledBatches, load_batches
from pipeline.heads.targets import Targets, make_targets
from pipeline.heads.tasks import Task, make_tasks
from pipeline.heads.trainer import make_trainer
from pipeline.presets import read_preset
from pipeline.project import Project
from pipeline.store import read_vectors
from tests.conftest import Cli, edit_params, run_stages


@pytest.fixture
def notebook_project(few_messages: Path, cli: Cli) -> Path:
    """Some hundred real messages, embedded under the notebook's own settings."""
    preset = parse_settings(read_preset("notebook"), "notebook").model_dump(mode="json")
    edit_params({"embed": preset["embed"], "heads": preset["heads"]})
    run_stages(cli, "fetch", "prepare", "embed")
    return few_messages


def make_module(settings: Settings, width: int, tasks: list[Task], targets: Targets) -> Recording:
    (configuration,) = list_configurations(settings.heads, (6,))
    return Recording(width, tasks, [configuration], targets)


class Recording(GradientHeads):
    """Notes the loss of each step."""

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        total = super().training_step(batch, batch_idx)
        self.noted = [*getattr(self, "noted", []), total.item()]
        return total


def unstack(module: GradientHeads) -> torch.nn.ModuleDict:
    """The heads as plain linear layers of the same weights."""
    heads = torch.nn.ModuleDict()
    for name, head in module.heads.items():
        (weight,), (bias,) = head.weight.detach(), head.bias.detach()
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        heads[name] = linear
    return heads


def train_live(
    heads: torch.nn.ModuleDict,
    texts: list[str],
    labels: torch.Tensor,
    order: torch.Tensor,
    folder: Path,
    batch_size: int,
) -> list[float]:
    """The notebook's way: backbone in the loop, everything padded to 128, a plain torch loop."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backbone = transformers.AutoModel.from_pretrained(folder).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-4)
    losses = []
    for rows in torch.split(order, batch_size):
        inputs = tokenizer(
            [texts[row] for row in rows],
            max_length=128,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        states = backbone(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        pooled = states.masked_fill(~mask.bool(), 0.0).sum(dim=1) / mask.sum(dim=1)
        spam = heads["spam"](pooled).view(-1)
        sentiment = heads["sentiment"](pooled)
        loss = torch.nn.BCEWithLogitsLoss()(spam, labels[rows, 0].float())
        loss = loss + torch.nn.CrossEntropyLoss()(sentiment, labels[rows, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_cached_and_live_training_have_the_same_losses(notebook_project: Path) -> None:
    settings = load_settings(Path("params.yaml"))
    rows = read_labelled_rows(Project())
    tasks = make_tasks(settings.heads.tasks, rows)
    assert [task.name for task in tasks] == ["spam", "sentiment"]
    train = rows.select("train")
    assert len(train) == 420
    vectors = read_vectors(Project().store, rows.keys.take(train), (6,))[:, 0]
    by_task = {task.name: rows.tasks[task.name].values[train] for task in tasks}
    labels = torch.from_numpy(np.stack(list(by_task.values()), axis=1))
    targets = make_targets(tasks, by_task, len(train), None, "cpu")

    cached = make_module(settings, vectors.shape[1], tasks, targets)
    start = unstack(cached)
    batch_size = settings.heads.batch_size
    features = MemoryFeatures(torch.from_numpy(vectors), len(train))
    batches = load_batches(ShuffledBatches(features, batch_size, settings.heads.seed))
    make_trainer(1, "cpu", []).fit(cached, batches)

    # The notebook's own start: plain layers, made one after the other from the seed.
    torch.manual_seed(settings.heads.seed)
    live = torch.nn.ModuleDict(
        {task.name: torch.nn.Linear(vectors.shape[1], task.outputs) for task in tasks}
    )
    for name, value in live.state_dict().items():
        torch.testing.assert_close(start.state_dict()[name], value, rtol=0, atol=0)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.heads.seed))
    texts = pq.read_table(Project().texts_file)["text"].take(train).to_pylist()
    folder = read_assets(Project().assets)["backbone"].locate(Project())
    expected = train_live(live, texts, labels, order, folder, batch_size)

    assert len(expected) == 14
    np.testing.assert_allclose(cached.noted, expected, rtol=1e-4)
    trained = unstack(cached)
    for name, value in live.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-3, atol=1e-5)
