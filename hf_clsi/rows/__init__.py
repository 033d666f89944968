"""Turns units into rows: what a story, a parallel sentence or a cloze item is, and its Parquet shards.

| what for | files |
|---|---|
| rows and shards | schema, shards |
| building from texts or recordings of peers | builders; drafting (drafts, readers), plan, jobs, finishing |
| ... on this machine, or on many | running (worker), or cluster (executors, launches); build_folder |
| building from paired recordings | recordings, encoding (encoded), parallel_prompts |
| cards | cards, build_card |
| checking | validate (validation/) |
| for peers | writers |
"""

from .schema import (
    check_row,
    cloze_columns,
    cloze_features,
    infer_columns,
    pair_columns,
    pair_features,
    parallel_features,
    row_features,
    story_columns,
    story_features,
)
from .shards import (
    UnitColumn,
    list_shards,
    read_columns,
    read_rows,
    register_split,
    write_shard,
    write_shards,
)

__all__ = [
    "UnitColumn",
    "check_row",
    "cloze_columns",
    "cloze_features",
    "infer_columns",
    "list_shards",
    "pair_columns",
    "pair_features",
    "parallel_features",
    "read_columns",
    "read_rows",
    "register_split",
    "row_features",
    "story_columns",
    "story_features",
    "write_shard",
    "write_shards",
]
