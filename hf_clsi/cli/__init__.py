"""Turns command lines into calls of the package: one short file per command, which parses and forwards."""
