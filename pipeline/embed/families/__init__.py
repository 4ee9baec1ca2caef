"""Families of encoders whose forward pass runs here without padding: one file and one entry each.

A backbone of no family still runs, by Hugging Face's own forward pass, which pads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.embed.families.bert import PackedBert
from pipeline.embed.families.distilbert import PackedDistilBert
from pipeline.embed.families.modernbert import PackedModernBert
from pipeline.embed.families.mpnet import PackedMpnet
from pipeline.embed.families.roberta import PackedRoberta, PackedXlmRoberta
from pipeline.embed.packed import PackedEncoder

# By `model_type` of Hugging Face's configuration.
FAMILIES: dict[str, type[PackedEncoder]] = {
    "bert": PackedBert,
    "roberta": PackedRoberta,
    "xlm-roberta": PackedXlmRoberta,
    "distilbert": PackedDistilBert,
    "mpnet": PackedMpnet,
    "modernbert": PackedModernBert,
}


def find_family(config: Mapping[str, Any]) -> type[PackedEncoder] | None:
    """The family that a backbone is of, or ``None`` if it has to be padded.

    :param config: the backbone's configuration.
    """
    family = FAMILIES.get(config["model_type"])
    if family is None or not family.is_supported(family.complete_config(config)):
        return None
    return family
