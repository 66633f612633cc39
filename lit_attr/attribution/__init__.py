"""How facts are scored: gradient × activation, further rules, exact effects."""
