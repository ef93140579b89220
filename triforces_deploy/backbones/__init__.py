"""Interaction backbones: one file each, listed in :mod:`triforces_deploy.backbones.table`."""
