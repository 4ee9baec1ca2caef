"""The only reader and writer of embeddings: a folder of plain Parquet shards and a manifest.

One row per distinct text, in order of first appearance: ``key`` (16 bytes), ``n_tokens``, and one
FixedSizeList column ``layer_NN`` per cached layer. A new state of the store is built in a folder
beside it and moved over when it is whole; an interrupted run is taken up where it stopped.

A store of earlier settings is kept beside the present one, so that going back costs nothing.
Several machines may embed slices of what a store lacks side by side, which it takes up when they
are whole.

Reading trusts nothing: the values of each column of each row group are checked against a hash in
the manifest, which is checked against its own.
"""

from pipeline.store.alike import find_alike
from pipeline.store.commit import (
    Snapshot,
    finish_commit,
    read_kept,
    read_manifest,
    read_snapshot,
)
from pipeline.store.folders import aside_folder, staging_folder
from pipeline.store.hits import Hits, read_hits
from pipeline.store.lengths import CutTexts, count_lengths
from pipeline.store.manifest import (
    Manifest,
    Recipe,
    Rows,
    Shard,
    holds_exactly,
    name_columns,
    name_layer,
    plan_shards,
    write_manifest,
)
from pipeline.store.reader import (
    VectorStream,
    find_keys,
    read_ahead,
    read_keys,
    read_rows,
    read_token_counts,
    read_vectors,
    stream_vectors,
)
from pipeline.store.update import Update
from pipeline.store.writer import StoreUpdate

__all__ = [
    "CutTexts",
    "Hits",
    "Manifest",
    "Recipe",
    "Rows",
    "Shard",
    "Snapshot",
    "StoreUpdate",
    "Update",
    "VectorStream",
    "aside_folder",
    "count_lengths",
    "find_alike",
    "find_keys",
    "finish_commit",
    "holds_exactly",
    "name_columns",
    "name_layer",
    "plan_shards",
    "read_ahead",
    "read_hits",
    "read_kept",
    "read_keys",
    "read_manifest",
    "read_rows",
    "read_snapshot",
    "read_token_counts",
    "read_vectors",
    "staging_folder",
    "stream_vectors",
    "write_manifest",
]
