"""`besteffort serve --demo` and `load --demo`: a gateway, three small models and requests with known answers."""
