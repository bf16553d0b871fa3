"""The command line: one file a command, thin, with no logic of its own."""
