"""The published tables on our own policies: each is one command, a section of one page, and JSON."""
