"""What people do with a representation; each file is behind a command."""
