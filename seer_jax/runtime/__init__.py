"""Processes, devices, folders: what any long program needs."""
