"""Tasks and prompt sets: what is asked, how an answer is read, and whether it is right."""
