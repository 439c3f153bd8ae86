"""A study's part of the page: reads the folder and the journal, draws the search, names what to type next."""
