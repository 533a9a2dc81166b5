"""What a launcher has to be told, and what it told us."""
