"""Whole jobs: screen → anchor → train → evaluate → report → gate, each step resumable."""
