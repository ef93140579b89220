"""Layers shared by backbones, streams and heads."""
