"""What the pages show is run here, one test a page."""
