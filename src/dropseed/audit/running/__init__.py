"""Watching models that run. torch is imported inside functions."""
