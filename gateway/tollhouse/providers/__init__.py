"""Wire protocols, one module each. Pure: bodies in, bodies out, no I/O."""
