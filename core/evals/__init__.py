"""Reported evaluations of frozen backbones, one file each."""
