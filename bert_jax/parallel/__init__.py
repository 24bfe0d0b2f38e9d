"""Meshes and the table of sharding rules."""
