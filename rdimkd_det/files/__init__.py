"""Reading untrusted files as data, and writing files that are whole or absent."""
