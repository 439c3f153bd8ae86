"""Raw formats → rows, one file each. Readers run no code and read nothing outside the folder."""
