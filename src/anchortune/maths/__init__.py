"""The maths of every stage: pure functions of tensors, no files, no models, no other stage."""
