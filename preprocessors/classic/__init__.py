"""Hints made without weights: measurements on the picture's own pixels."""
