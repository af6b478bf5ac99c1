"""Thin: parse, call, print. One module a command group; `main` loads a group when it is asked for."""
