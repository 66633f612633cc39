"""The rules of the catalogue beside the plain gradient and exact effects, a file for each."""
