"""Stage 6 of 6: figures and tables of what was measured; no torch here."""
