"""Where a rank computes, what it draws, and how fast it could be."""
