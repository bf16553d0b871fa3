"""Beside stage 5: the model moved along directions, how far it stays safe, and how runs drift."""
