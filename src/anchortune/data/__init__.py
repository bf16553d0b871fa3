"""Rows of a file or a Hub dataset, and the conversations they hold."""
