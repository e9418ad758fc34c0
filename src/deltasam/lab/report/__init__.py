"""Self-contained web pages of comparisons: their parts, their charts, and what these draw."""
