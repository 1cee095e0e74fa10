"""Reading what strangers wrote as data, and writing files that are whole or absent."""
