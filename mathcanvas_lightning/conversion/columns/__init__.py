"""One source format for many data sets: a few lines of YAML name the columns.

In: a record (a row of Parquet or CSV, a JSON object, a sample of a tar) and a `ColumnsConfig`.
Out: a `Draft` with texts and pictures in reading order. `presets/` holds YAML of public data sets.
"""

from mathcanvas_lightning.conversion.columns.config import (
    ColumnKeys,
    ColumnsConfig,
    ConversationConfig,
)
from mathcanvas_lightning.conversion.columns.presets import find_columns, preset_names
from mathcanvas_lightning.conversion.columns.source import Columns

__all__ = [
    "ColumnKeys",
    "Columns",
    "ColumnsConfig",
    "ConversationConfig",
    "find_columns",
    "preset_names",
]
