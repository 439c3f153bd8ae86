"""Raw formats → rows, one file each. Readers are safe: they run no code and read nothing outside the folder."""
