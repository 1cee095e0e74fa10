"""Reading untrusted files as data only, and writing files whole or not at all."""
