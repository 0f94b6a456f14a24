"""Plans for hardware that is elsewhere, and the diagnosis of this machine."""
