"""Stage 2 of 6: two checkpoints -> an anchor, the small file that says which way safety lies."""
