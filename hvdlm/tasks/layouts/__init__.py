"""How records become the rows of int64 that a batch is cut from: a file a task, without model or loss."""

from hvdlm.tasks.layouts.classify import ClassifyLayout
from hvdlm.tasks.layouts.packing import PackedLayout
from hvdlm.tasks.layouts.pairs import PairLayout, PrefixLayout
from hvdlm.tasks.layouts.span import NO_ANSWER, SpanFields, SpanLayout
from hvdlm.tasks.layouts.tag import TagFields, TagLayout
from hvdlm.tasks.layouts.text import Text

__all__ = [
    "NO_ANSWER",
    "ClassifyLayout",
    "PackedLayout",
    "PairLayout",
    "PrefixLayout",
    "SpanFields",
    "SpanLayout",
    "TagFields",
    "TagLayout",
    "Text",
]
