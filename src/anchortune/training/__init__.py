"""Stage 3 of 6: an aligned model, a task and an anchor -> an adapter that keeps the alignment."""
