"""The command line: parsing, progress and tables; everything else happens in the rooms below."""
