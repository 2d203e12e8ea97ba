"""How varied prepared data are: what they cover, what they hardly cover, and what a change of them changed."""
