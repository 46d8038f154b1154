"""`haulier bench`: what a store and its workers do on this machine."""

from haulier.cli.bench.command import bench

__all__ = ["bench"]
