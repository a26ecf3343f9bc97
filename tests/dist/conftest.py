"""Here so that the rooms find `planned`, `problems` and `ranks`: pytest puts the folder of a conftest on the path."""
