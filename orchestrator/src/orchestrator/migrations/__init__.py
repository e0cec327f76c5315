"""The database's changes, one file each, in the order of their names."""
