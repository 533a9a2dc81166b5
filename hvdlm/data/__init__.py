"""The shard format, its only writer and reader, and the order in which training sees it."""
