"""Our policies inside other people's tools; each file needs the extra of its name."""
