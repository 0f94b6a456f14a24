"""The network: a RegNet, and what is trained upon it."""
