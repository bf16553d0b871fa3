"""anchortune."""
