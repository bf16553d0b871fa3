"""Stage 5 of 6: a model and prompts -> answers, a harmful score and an accuracy, with intervals."""
