"""The ways to fine-tune that are compared: one small module a method, all of one shape."""
