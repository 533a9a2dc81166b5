"""Scaling measurements: record (what was measured), measure and sweep (how), scaling (statistics), report."""
