"""Hardware that is elsewhere, and what is wrong with this one."""
