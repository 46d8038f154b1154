"""Schemas as data: numbered SQL steps, one file per store."""
