"""anchortune inside other people's training tools."""
