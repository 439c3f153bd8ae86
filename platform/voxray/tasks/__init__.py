"""Five domains with the same few files each; none imports another."""
