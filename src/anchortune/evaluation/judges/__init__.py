"""Judges: is this answer to this prompt harmful, safe, or not to be told?"""
