"""Before the first run: a config written after a look at model and data; the machine looked at."""
