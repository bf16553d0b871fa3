"""Beside stage 5: the model moved along directions, and how far it stays safe; and how runs drift."""
