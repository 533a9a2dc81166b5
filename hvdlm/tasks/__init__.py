"""What is learnt, and how well."""
