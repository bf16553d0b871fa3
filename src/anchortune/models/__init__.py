"""Models that run: located, loaded with their adapters, and named by the hashes of their files."""
