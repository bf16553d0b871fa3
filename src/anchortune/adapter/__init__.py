"""Stage 4 of 6: adapters on disk -> merged into weights."""
