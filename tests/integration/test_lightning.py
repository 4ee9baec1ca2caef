"""The light import of Lightning, in a process of its own, where nothing is loaded yet."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys
import torch
import pipeline.heads.lightning
torch.optim.SGD([torch.zeros(1)], lr=1.0).zero_grad()
assert not {"torch._dynamo", "torchmetrics", "transformers"} & set(sys.modules)
import torchmetrics
assert torchmetrics.Metric.__module__ == "torchmetrics.metric"
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert torch._dynamo.__file__
"""


def test_what_stood_in_is_gone_afterwards() -> None:
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
