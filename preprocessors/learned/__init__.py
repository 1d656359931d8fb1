"""Hints estimated by networks: small torch modules that load the official weights files strictly."""
